"""Open a XenStore on another host, through the system's OpenSSH.

**The near end.** OpenSSH runs as a process of its own. Its standard input and output are one end of
a pair of sockets, and the other end is the connection: one stream carries requests, answers and
watch events, and every client that takes a connected socket can use it. OpenSSH's standard error is
a second pair. `SshProcess.words` reads it, so that an error can show what ssh itself said. ssh must
never ask anything, because nobody may be there to answer: ``BatchMode`` makes it fail instead. It
runs in a session of its own, so that a Ctrl-C in the terminal reaches the program and not ssh. The
user's configuration of ssh holds in all other respects: aliases, keys, jump hosts.

**The far end** needs no more than a POSIX shell and one of four tools. ssh hands a command to the
login shell of the far end, and that shell runs `SCRIPT` by ``sh -c``. The script looks for
``xsproto stdio``, ``socat``, ``nc -U`` and ``python3``, in this order, and lets the first one that
it finds connect its standard input and output to the daemon's socket. ``xsproto stdio`` alone can
refuse requests that change something, and can use a XenBus device.

**Quoting.** The login shell may be a Bourne shell, csh, fish or another one. All of them take a
text in single quotes for what it is, unless it has a single quote, a backslash, an exclamation mark
or a newline. So the script has none of these, and a path that has one is refused.

**The greeting.** A login shell may print anything before the script runs. So the far end first
writes a line that begins with `GREETING`. What comes before it is skipped, up to `NOISE_MAX` bytes.
What comes behind it is the protocol. The line goes on in one of two ways::

    xsproto-stdio 1 ready TOOL
    xsproto-stdio 1 error REASON DETAILS

The script spells the line in two parts, so that a shell that prints the commands which it runs does
not print a greeting.

**The probe.** ``socat`` and ``nc`` connect to the daemon only once they run, after the greeting. So
`open_ssh` sends one harmless request, and waits for its answer: only then does it know that a
daemon is there, and every failure until then is an error of `open_ssh`.

**Time limits.** A host may swallow packets, an authentication may hang, a login shell may never
end. ssh gives up on a host that does not answer (``ConnectTimeout``), and says so. All steps
together have a limit of their own, `CONNECT_TIMEOUT` by default.

**The end.** An event loop must not wait for an ssh that hangs. So `SshProcess.close` asks nothing
of it: ssh is killed, together with what it has started for itself, such as a ProxyCommand. The
kernel closes its connection then, and the far end learns of that as of any other end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from attrs import frozen

from ..clients.connection import DEFAULT, Timeout
from ..errors import ConnectFailed, InvalidArgument, InvalidType, RemoteProtocolError
from ..wire import Op, Packet, PacketReader
from .backend import Backend
from .deadlines import WAIT_MAX
from .fork import register_for_fork
from .streams import Wrapper
from .transport import READ_SIZE

__all__ = [
    "CONNECT_TIMEOUT",
    "GREETING",
    "NOISE_MAX",
    "SCRIPT",
    "Destination",
    "SshProcess",
    "SshSocket",
    "command",
    "open_ssh",
    "parse_destination",
    "start_ssh",
]

#: The seconds that connecting may take, unless the caller says otherwise.
CONNECT_TIMEOUT: Final = 60.0

# The most seconds that ssh waits for a host to answer, unless the caller allows any time.
_ANSWER_TIMEOUT: Final = 30

#: How the first line of the far end begins.
GREETING: Final = b"xsproto-stdio 1 "

#: The most bytes that the login shell of the far end may print before the greeting.
NOISE_MAX: Final = 65536

# The longest greeting, and the most bytes of ssh's words that are kept.
_LINE_MAX: Final = 4096

# The most reads in a row of what ssh says: there may be no end of it.
_READS: Final = 16

# The seconds that ssh gets to end by itself, after the end of its connection.
_GRACE: Final = 2.0
# The seconds that the kernel gets to end an ssh that is killed.
_KILLED: Final = 0.1
# The seconds between two looks whether ssh has ended.
_PAUSE: Final = 0.001

# Of `signal`, the same on every system that has them.
_SIGHUP: Final = 1
_SIGINT: Final = 2
_SIGKILL: Final = 9
_SIGPIPE: Final = 13
_SIGTERM: Final = 15

_PROBE: Final = Packet(Op.READ, 1, 0, b"/\0")

_OPTIONS: Final = (
    "-T",  # a terminal would change bytes
    "-a",  # neither the user's agent nor the display is lent to the far end
    "-x",
    *("-o", "BatchMode=yes"),
    # A forwarding of the user's configuration would take a port that another ssh may have.
    *("-o", "ClearAllForwardings=yes"),
    # Connections that others share would end with this one.
    *("-o", "ControlMaster=no"),
    # Without these, nothing would tell that the far end has lost its power or its network.
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=3"),
)

# The bridge for a far end that has Python alone. It has no quote of either kind: the script stands
# in single quotes, and this within double ones.
_PYTHON: Final = """\
import os,socket,sys,threading;\
s=socket.socket(socket.AF_UNIX);\
s.connect(sys.argv[1]);\
o=sys.stdout.buffer;\
print(sys.argv[2],flush=True);\
send=lambda:[list(map(s.sendall,iter(lambda:os.read(0,65536),bytes()))),s.shutdown(1)];\
threading.Thread(target=send,daemon=True).start();\
[(o.write(d),o.flush()) for d in iter(lambda:s.recv(65536),bytes())]"""

#: What ``sh`` runs at the far end, with these fields for ``str.replace``: ``@SOCKET@``, the path of
#: the socket, or nothing; ``@OPTIONS@``, options of ``xsproto stdio``; ``@READ_ONLY@``, nothing if
#: any tool will do. One command a line here, one line in all there.
SCRIPT: Final = " ".join(
    """\
p="@SOCKET@"; m=xsproto-stdio; ro=@READ_ONLY@;
say() { echo "$m 1 $*"; };
fail() { say error "$@"; exit 0; };
has() { command -v "$1" >/dev/null 2>&1; };
if has xsproto && xsproto stdio --help >/dev/null 2>&1; then
exec xsproto stdio @OPTIONS@ ${p:+--socket "$p"};
fi;
test -z "$ro" || fail read-only;
test -n "$p" || p=$XENSTORED_PATH;
test -n "$p" || p=${XENSTORED_RUNDIR:+$XENSTORED_RUNDIR/socket};
test -n "$p" || for d in /var/run /run; do
p=$d/xenstored/socket; test -S "$p" && break;
done;
test -S "$p" || fail no-socket "$p";
test -w "$p" || fail not-allowed "$p";
rest=$(echo "$p" | tr -d a-zA-Z0-9/._@%+=~-);
if has socat && test -z "$rest"; then
say ready socat; exec socat - "UNIX-CONNECT:$p";
fi;
for t in nc ncat; do
has $t || continue;
h=$($t -h 2>&1);
case "$h" in *-U*) ;; *) continue;; esac;
n=; case "$h" in *-N*hutdown*) n=-N;; esac;
say ready $t; exec $t $n -U "$p";
done;
if has python3; then
exec python3 -c "@PYTHON@" "$p" "$m 1 ready python3";
fi;
fail no-tool""".replace("@PYTHON@", _PYTHON).split("\n")
)

# Characters that shells treat in different ways within quotes; see "Quoting".
_UNQUOTABLE: Final = frozenset("'\"\\!$`")

_NO_TOOL: Final = "install one of these there: xsproto with its extra cli, socat, netcat, python3"

#: What a REASON of the greeting says. Each takes the details.
_REASONS: Final[Mapping[str, str]] = {
    "no-socket": "no daemon has its socket at {} there; is xenstored running? In a guest, only "
    "xsproto can use the device",
    "not-allowed": "the user may not use {} there; usually only root may",
    "no-tool": f"nothing there can connect to a socket: {_NO_TOOL}",
    "read-only": "only `xsproto stdio` can refuse changes: install xsproto with its extra cli "
    "there",
    "failed": "{}",
}

#: What ssh says of its most frequent failures, each with what to do.
_HINTS: Final = (
    (
        "IDENTIFICATION HAS CHANGED",
        "the host has another key than before; `ssh-keygen -R` removes the old one, if that is "
        "right",
    ),
    (
        "Host key verification failed",
        "the host's key is not known; connect once by hand with ssh, and check the key",
    ),
    (
        "Permission denied",
        "ssh must not ask for a password here; it needs a key, or an agent that has one",
    ),
    ("timed out", "the host does not answer, or a firewall drops what is sent to it"),
)


@frozen
class Destination:
    """A XenStore on another host.

    Attributes:
        host: the host, as ssh takes it: a name, an address, or an alias of ssh's configuration.
        user: the user there; None for what ssh's configuration says.
        port: the port of its ssh daemon; None for what ssh's configuration says.
        path: the path of the socket there; None for what `SCRIPT` finds.

    Raises:
        InvalidArgument: ssh or a shell could take one of them for something else.
    """

    host: str
    user: str | None = None
    port: int | None = None
    path: str | None = None

    def __attrs_post_init__(self) -> None:
        texts = {"host": self.host} if self.user is None else {"host": self.host, "user": self.user}
        for what, text in texts.items():
            if not text:
                raise _invalid(self.name, f"it has no {what}")
            # ssh would take a dash for an option.
            if text.startswith("-") or " " in text or not text.isprintable():
                raise _invalid(self.name, f"no {what} is like that")
        if self.port is not None and not 0 < self.port < 65536:
            raise _invalid(self.name, f"{self.port} is no port")
        if self.path is not None and not self.path.startswith("/"):
            raise _invalid(self.name, "the path must begin with a slash")
        if self.path is not None and not (
            _UNQUOTABLE.isdisjoint(self.path) and self.path.isprintable()
        ):
            raise _invalid(self.name, "shells cannot quote the path in one way")

    @property
    def name(self) -> str:
        """The destination as a URL, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        port = "" if self.port is None else f":{self.port}"
        return f"ssh://{user}{host}{port}{self.path or ''}"


def parse_destination(where: str) -> Destination:
    """Make a destination of ``ssh://[user@]host[:port][/path]`` or ``[user@]host``.

    In the URL, ``%`` and two digits stand for a character. The other form is passed to ssh as it
    is, so that every alias of ssh's configuration can be used.

    Raises:
        InvalidType: `where` is no string.
        InvalidArgument: it is neither, or has a password, or a path that cannot be quoted.
    """
    if not isinstance(where, str):
        raise InvalidType(f"a host must be a str, not {type(where).__name__}: {where!r}")
    port = path = None
    user, at, host = where.rpartition("@")
    if "://" in where:
        scheme, _, rest = where.partition("://")
        if scheme.lower() != "ssh":
            raise _invalid(where, "only ssh:// is known")
        place, slash, path = rest.partition("/")
        path = unquote(slash + path) if path else None
        user, at, host = place.rpartition("@")
        if ":" in user:
            raise _invalid("the URL", "ssh takes no password from a URL")
        if host.startswith("["):
            host, bracket, digits = host[1:].partition("]")
            if not bracket or digits[:1] not in ("", ":"):
                raise _invalid(where, "an IPv6 address must end with ]")
            digits = digits[1:]
        else:
            host, _, digits = host.partition(":")
        if digits:
            if not (digits.isascii() and digits.isdigit()):
                raise _invalid(where, f"{digits!r} is no port")
            port = int(digits)
        host, user = unquote(host), unquote(user)
    return Destination(host, user if at else None, port, path)


def _invalid(where: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"{where if where == 'the URL' else repr(where)} is no host to reach by ssh: {why}. "
        "A host is [user@]host or ssh://[user@]host[:port][/path/of/socket]"
    )


def command(
    destination: Destination,
    *,
    timeout: float | None = None,
    read_only: bool = False,
    ssh: Sequence[str] = ("ssh",),
) -> list[str]:
    """Return the command that connects to a destination.

    Arguments:
        destination: where to connect to.
        timeout: the seconds that connecting may take; None for what ssh's configuration says.
        read_only: whether the far end must refuse whatever changes something.
        ssh: the program, and options of it.
    """
    script = (
        SCRIPT.replace("@SOCKET@", destination.path or "")
        .replace("@OPTIONS@ ", "--read-only " if read_only else "")
        .replace("@READ_ONLY@", "1" if read_only else "")
    )
    words = [*ssh, *_OPTIONS]
    if timeout is not None:
        # Before the time is over: ssh knows better than its caller what it has waited for.
        seconds = max(1, int(min(timeout - 1, _ANSWER_TIMEOUT)))
        words += ["-o", f"ConnectTimeout={seconds}"]
    if destination.port is not None:
        words += ["-p", str(destination.port)]
    if destination.user is not None:
        words += ["-l", destination.user]
    return [*words, "--", destination.host, f"sh -c '{script}'"]


class SshProcess:
    """OpenSSH, connected to a XenStore on another host. Made by `open_ssh` or `start_ssh`.

    A client that uses `sock` must keep this object, and call `close` at its own end.

    Attributes:
        name: the destination as a URL, for messages.
        sock: the connection, a blocking stream socket that a child does not inherit. `close` closes
            it; the client may do so before.
        tool: what connects to XenStore at the far end: ``xsproto``, ``socat``, ``nc``, ``ncat`` or
            ``python3``; empty until the far end has said it.
    """

    def __init__(
        self, name: str, words: Sequence[str], backend: Backend, timeout: float | None = None
    ) -> None:
        """Start ssh.

        Arguments:
            name: the destination, for messages.
            words: the command.
            backend: what the adapter gives.
            timeout: the seconds until `connect` gives up, from now; None for never.

        Raises:
            ConnectFailed: the program is not there, or cannot be started.
        """
        self.name = name
        self.tool = ""
        self._backend = backend
        self._timeout = timeout
        self._deadline = None if timeout is None else backend.now() + timeout
        os = backend.posix
        self._said = b""
        # What follows is kept in lists and by objects that close it: an interrupt, wherever it
        # comes, leaves neither a descriptor nor a process that nobody waits for.
        self._pids: list[int] = []
        #: How ssh has ended, as ``os.waitstatus_to_exitcode`` has it; None if that is not known.
        self._status: int | None = None
        self._opener = os.getpid()
        try:
            self.sock, far = _stream_sockets(backend.socket)
            self._errors, errors = _stream_sockets(backend.socket)
        except OSError as error:
            raise ConnectFailed(f"{name}: cannot make a pair of sockets: {error}") from error
        register_for_fork(self)
        start = partial(
            os.posix_spawnp,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, far.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, far.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable(os)),
            ],
            setsigmask=(),
            # Python ignores SIGPIPE. The program may ignore others.
            setsigdef=[_SIGPIPE, _SIGINT, _SIGTERM, _SIGHUP],
        )
        program = (words[0],), (words,), (dict(backend.os.environ),)
        try:
            try:
                self._pids += map(partial(start, setsid=True), *program)
            except NotImplementedError:
                # The C library cannot start a session. A group of its own keeps Ctrl-C off, too.
                self._pids += map(partial(start, setpgroup=0), *program)
        except OSError as error:
            self.close()
            hint = "; install OpenSSH's client" if isinstance(error, FileNotFoundError) else ""
            why = f"cannot run {words[0]}: {error.strerror}{hint}"
            failed = ConnectFailed(f"cannot connect to XenStore at {name}: {why}")
            failed.errno = error.errno
            raise failed from error
        except BaseException:
            self.close()
            raise
        finally:
            far.close()
            errors.close()

    def __repr__(self) -> str:
        state = "open" if self._pids else "closed"
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.name} {state}>"

    def connect(self) -> None:
        """Wait until a daemon has answered a request on the connection.

        It blocks: an adapter of an event loop calls it in a thread, and `kill` ends it. Whatever it
        raises, the process is closed then.

        Raises:
            ConnectFailed: one of the steps failed; the error says which one, and what ssh said.
        """
        step = "it is connecting, or the far end prints no greeting"
        try:
            self.tool = _greeting(self, self._deadline)
            step = f"{self.tool} runs at the far end, but no daemon answers"
            _probe(self, self._deadline)
        except TimeoutError:
            _fail(self, f"not within {self._timeout} s: {step}")
        except BaseException:
            self.close()
            raise

    def words(self) -> str:
        """Return what ssh has said on its standard error, or the last part of it. It never waits.

        It is text of the other host: what is not printable is shown as an escape.
        """
        self._drain()
        lines = self._said.decode("utf-8", "backslashreplace").split("\n")
        return "; ".join(filter(None, (_printable(line.strip()) for line in lines)))

    def _drain(self) -> bool:
        """Take what ssh has said; return whether it may say more."""
        flags = self._backend.socket.MSG_DONTWAIT
        try:
            for _ in range(_READS):
                data = self._errors.recv(READ_SIZE, flags)
                if not data:
                    return False
                self._said = (self._said + data)[-_LINE_MAX:]
        except BlockingIOError:
            pass
        except OSError:
            return False  # it is closed
        return True

    def receive(self, deadline: float | None) -> bytes:
        """Return the next bytes of the far end; none at the end of the connection.

        Arguments:
            deadline: when to stop waiting, in seconds of `Backend.now`; None for never.

        Raises:
            TimeoutError: nothing came by `deadline`.
        """
        backend = self._backend
        sock = self.sock.fileno()
        more = True
        while True:
            left = None if deadline is None else min(deadline - backend.now(), WAIT_MAX)
            if left is not None and left < 0:
                raise TimeoutError
            fds = (sock, self._errors.fileno()) if more else (sock,)
            ready = backend.wait(fds, left)
            # ssh must not wait for room for what it says.
            more = more and self._drain()
            if sock in ready:
                try:
                    data: bytes = self.sock.recv(READ_SIZE)
                except ConnectionError:
                    data = b""
                return data

    def ended(self) -> int | None:
        """Wait a moment for ssh to end by itself; return its exit status.

        Returns:
            the status; a negative number is the signal that ended ssh; None if ssh still runs, or
            if something else in this program has taken its status.
        """
        self._reap(_GRACE)
        return self._status

    def kill(self) -> None:
        """Kill ssh, and what it has started, and end the connection. From any thread.

        It waits for nothing. `connect`, in another thread, fails then.
        """
        backend = self._backend
        try:
            self.sock.shutdown(backend.socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed, or ssh has ended it
        for pid in tuple(self._pids):
            try:
                backend.posix.killpg(pid, _SIGKILL)
            except OSError:
                pass  # something else has taken its status

    def close(self) -> None:
        """Close the connection and kill ssh. Idempotent, from any thread.

        It waits until the kernel has ended ssh, which takes about a millisecond. An ssh that the
        kernel cannot end in `_KILLED` seconds is left to it.
        """
        self.sock.close()
        self._errors.close()
        if self._backend.posix.getpid() != self._opener:
            self._pids.clear()  # a forked child: ssh is the parent's
        if not self._reap(0):
            self.kill()
            self._reap(_KILLED)

    def _reap(self, seconds: float) -> bool:
        """Wait for ssh to end, and take its status; return whether it has ended."""
        backend = self._backend
        os = backend.posix
        deadline = backend.now() + seconds
        for pid in tuple(self._pids):
            while True:
                try:
                    found, status = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    found, status = pid, None
                if found:
                    self._pids.clear()
                    if status is not None:
                        self._status = _exit_status(os, status)
                    break
                if backend.now() >= deadline:
                    return False
                backend.wait((), _PAUSE)
        return True

    def close_after_fork(self) -> None:
        """Close the descriptors in a forked child, whose parent goes on with the connection."""
        self._pids.clear()
        self.close()

    def __del__(self) -> None:
        # Else ssh would stay as a zombie.
        if getattr(self, "_pids", None):
            self.close()


class SshSocket(Wrapper):
    """The connection of an `SshProcess`, for a client, which ends the process with it."""

    def __init__(self, process: SshProcess) -> None:
        process.sock.setblocking(False)
        self._process = process
        self._flags = process._backend.socket.MSG_NOSIGNAL

    def fileno(self) -> int:
        """See `Wrapper`."""
        fd: int = self._process.sock.fileno()
        return fd

    def send(self, data: bytes | memoryview, flags: int) -> int:
        """See `Wrapper`."""
        count: int = self._process.sock.send(data, self._flags)
        return count

    def recv(self, size: int) -> bytes:
        """See `Wrapper`. The end of ssh is an error with what ssh has said."""
        try:
            data: bytes = self._process.sock.recv(size)
        except ConnectionError:
            data = b""  # ssh has left requests unread
        if not data:
            words = self._process.words()
            raise ConnectionResetError(f"ssh has ended{': ' if words else ''}{words}")
        return data

    def close(self) -> None:
        """See `Wrapper`, and `SshProcess.close`."""
        self._process.close()


def _inheritable(os: Any) -> Iterator[int]:
    """Name the descriptors that a new program would inherit, beside the standard ones.

    The program has them from its own parent, or has made them so. ssh may leave a process behind
    that would keep them open: the master of shared connections.
    """
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return  # this system does not list them
    for fd in map(int, names):
        try:
            if fd > 2 and os.get_inheritable(fd):
                yield fd
        except OSError:
            pass  # it was that of the list, or another thread has closed it


def _exit_status(os: Any, status: int) -> int:
    code: int = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code


def open_ssh(
    where: str | Destination,
    backend: Backend,
    *,
    timeout: Timeout = DEFAULT,
    read_only: bool = False,
    ssh: Sequence[str] = ("ssh",),
) -> SshProcess:
    """Connect to the XenStore of another host.

    It blocks: an adapter of an event loop calls `start_ssh`, and `SshProcess.connect` in a thread.

    Arguments:
        where: ``ssh://[user@]host[:port][/path/of/socket]``, or ``[user@]host``; or a destination.
        backend: what the adapter gives.
        timeout: the seconds that it may take, by default `CONNECT_TIMEOUT`; None for as long as ssh
            tries, by its own configuration.
        read_only: whether the far end must refuse whatever changes something. It then needs
            xsproto.
        ssh: the program, and options of it.

    Returns:
        the process. A daemon has answered a request on its connection.

    Raises:
        InvalidType, InvalidArgument: `where` is no destination.
        ConnectFailed: one of the steps failed; the error says which one, and what ssh said.
    """
    process = start_ssh(where, backend, timeout=timeout, read_only=read_only, ssh=ssh)
    process.connect()
    return process


def start_ssh(
    where: str | Destination,
    backend: Backend,
    *,
    timeout: Timeout = DEFAULT,
    read_only: bool = False,
    ssh: Sequence[str] = ("ssh",),
) -> SshProcess:
    """Start to connect to the XenStore of another host; `SshProcess.connect` waits for it.

    Arguments:
        where, backend, timeout, read_only, ssh: see `open_ssh`.

    Raises:
        InvalidType, InvalidArgument: `where` is no destination.
        ConnectFailed: ssh cannot be started.
    """
    destination = where if isinstance(where, Destination) else parse_destination(where)
    seconds = CONNECT_TIMEOUT if timeout is DEFAULT else timeout
    words = command(destination, timeout=seconds, read_only=read_only, ssh=ssh)
    return SshProcess(destination.name, words, backend, seconds)


def _greeting(process: SshProcess, deadline: float | None) -> str:
    """Wait for the greeting; return the tool that it names."""
    data = b""
    while True:
        before, found, line = data.partition(GREETING)
        if found and b"\n" in line:
            break
        if len(before) > NOISE_MAX or len(line) > _LINE_MAX:
            _fail(process, f"the far end printed {len(data)} bytes, and not a greeting among them")
        more = process.receive(deadline)
        if not more:
            _fail(process, _why_ended(process, data))
        data += more
    line, _, rest = line.partition(b"\n")
    kind, _, text = line.decode("utf-8", "backslashreplace").partition(" ")
    text = _printable(text.strip())
    if kind != "ready":
        reason, _, details = text.partition(" ")
        if kind != "error" or reason not in _REASONS:
            _fail(process, f"the greeting of the far end is not known: {kind} {text}")
        # What it said beside the greeting says the same.
        _fail(process, _REASONS[reason].format(details), "")
    if rest:
        _fail(process, f"the far end printed {len(rest)} bytes behind its greeting")
    return text


def _probe(process: SshProcess, deadline: float | None) -> None:
    """Send one harmless request, and wait for its answer."""
    reader = PacketReader()
    try:
        process.sock.send(_PROBE.encode(), process._backend.socket.MSG_NOSIGNAL)
    except ConnectionError:
        pass  # what follows reads the end of the connection, and says why
    while data := process.receive(deadline):
        try:
            for packet in reader.receive_data(data):
                if packet.rq_id == _PROBE.rq_id:
                    return
        except RemoteProtocolError as error:
            _fail(process, f"{process.tool} at the far end does not reach a XenStore: {error}")
    process.ended()
    why = f"{process.tool} at the far end could not connect to the daemon, or the daemon ended"
    _fail(process, why)


def _why_ended(process: SshProcess, printed: bytes) -> str:
    """Say why ssh has ended the connection before the greeting."""
    status = process.ended()
    words = process.words()
    hints = [hint for said, hint in _HINTS if said in words][:1]
    # gevent's loop takes the status of every child, and may be faster.
    if status == 255 or (status is None and hints):
        return "; ".join(("ssh could not connect", *hints))
    if status is None:
        return "ssh has ended the connection"
    if status < 0:
        return f"ssh was ended by signal {-status}"
    lines = printed.decode("utf-8", "backslashreplace").split("\n")
    shown = [_printable(line.strip()) for line in lines if line.strip()]
    last = f"; the last line that it printed: {shown[-1][:200]}" if shown else ""
    return (
        f"the command at the far end ended with exit status {status} before it printed a "
        f"greeting{last}"
    )


def _fail(process: SshProcess, why: str, words: str | None = None) -> NoReturn:
    """Close the process, and raise the error that its connection failed.

    Arguments:
        process: the process.
        why: what failed.
        words: what ssh has said; None for all of it.
    """
    words = process.words() if words is None else words
    process.close()
    said = f"; it said: {words}" if words else ""
    raise ConnectFailed(f"cannot connect to XenStore at {process.name}: {why}{said}") from None


def _printable(text: str) -> str:
    """Return text of another host without what could act on a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _stream_sockets(socket: Any) -> tuple[Any, Any]:
    """Make two connected stream sockets that can wait, whatever ``setdefaulttimeout`` says.

    Neither is descriptor 0, 1 or 2, which a program may have closed: giving ssh one of these as
    another one would overwrite the first.
    """
    low = []
    while True:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if min(one.fileno(), other.fileno()) > 2:
            break
        low.append((one, other))
    one.setblocking(True)
    other.setblocking(True)
    return one, other
