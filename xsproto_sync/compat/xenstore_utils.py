"""The commands of Debian 12's xenstore-utils (Xen 4.17), byte for byte: output, errors, statuses.

They are ``xenstore-read``, ``-write``, ``-ls``, ``-list``, ``-exists``, ``-rm``, ``-chmod`` and
``-watch``, and ``xenstore`` with any of these as its first argument.

They are for scripts that parse the output. People should use the command ``xsproto``, which does
more. Run ``xsproto-xenstore read /path``, or make a link to ``xsproto-xenstore`` with the name
``xenstore-read``. The commands are not installed under these names, because they would hide Xen's.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from errno import EAGAIN, ENOENT
from typing import BinaryIO, Final, NoReturn, TextIO

from attrs import define

from xsproto.clients.retries import Retries
from xsproto.errors import RetriesExhausted, error_from_code
from xsproto.perms import PERM_LETTERS

from .libxenstore import Handle, Perms

__all__ = ["main", "run"]

# The bytes that xenstore_client.c cuts a path to in ls.
_LS_PATH_MAX: Final = 4095

_TAG_LENGTH: Final = len(' = "..."')
_WIDTH: Final = 80
_PERMS_COLUMN: Final = 60
_NO_WIDTH: Final = (2**31 - 1) // 2

#: The commands -> the letters of their own options, and their usage.
_MODES: Final[dict[bytes, tuple[bytes, bytes]]] = {
    b"read": (b"pR", b"[-h] [-p] [-s] [-R] key [...]"),
    b"write": (b"R", b"[-h] [-s] [-R] key value [...]"),
    b"rm": (b"t", b"[-h] [-s] [-t] key [...]"),
    b"exists": (b"", b"[-h] [-p] [-s] key [...]"),
    b"list": (b"p", b"[-h] [-p] [-s] key [...]"),
    b"ls": (b"fp", b"[-h] [-f] [-p] [-s] [path]"),
    b"chmod": (b"ur", b"[-h] [-u] [-r] [-s] key <mode [modes...]>"),
    b"watch": (b"n", b"[-h] [-n NR] key"),
}

_LONG: Final = {
    b"help": b"h",
    b"flat": b"f",
    b"prefix": b"p",
    b"tidy": b"t",
    b"upto": b"u",
    b"recurse": b"r",
    b"number": b"n",
    b"raw": b"R",
}
_LETTERS: Final = b"hfspturnR"
_WITH_ARGUMENT: Final = b"n"


class _Exit(Exception):
    """The end of the command, with its status."""


def main() -> NoReturn:
    """Run the command that the program's name, or its first argument, names."""
    # Signals end the process as they end a program in C: no traceback, and the signal's status.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    out, err = _output(sys.stdout), _output(sys.stderr)
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        columns = None
    argv = [os.fsencode(word) for word in sys.argv]
    try:
        status = run(argv, out, err, columns=columns)
        out.flush()
    except OSError as error:  # from writing to `out`; other errors have been printed already
        why = os.fsencode(error.strerror or "")
        err.write(b"%b: write error: %b\n" % (os.path.basename(argv[0]), why))
        err.flush()
        os._exit(1)  # `sys.exit` would try to write the rest of `out` again
    sys.exit(status)


def _output(stream: TextIO | None) -> BinaryIO:
    """Return the binary file of `stream`; /dev/null if the caller has closed its descriptor."""
    return open(os.devnull, "wb") if stream is None else stream.buffer


def run(
    argv: Sequence[bytes],
    out: BinaryIO,
    err: BinaryIO,
    connect: Callable[[], Handle] = Handle,
    *,
    columns: int | None = None,
) -> int:
    """Run a command.

    Arguments:
        argv: the program's name, which may be a path, and its arguments.
        out: standard output.
        err: standard error.
        connect: opens a connection.
        columns: the width of the terminal that `out` is; None if it is no terminal.

    Returns:
        the exit status: 0, or 1 for any failure.
    """
    command = _Command(os.path.basename(argv[0]), out, err, connect, columns)
    try:
        return command.run(list(argv[1:]))
    except _Exit as end:
        status: int = end.args[0]
        return status
    finally:
        err.flush()


@define
class _Options:
    flat: bool = False
    prefix: bool = False
    tidy: bool = False
    upto: bool = False
    recurse: bool = False
    raw: bool = False
    number: int = -1


class _Command:
    """One run of a command."""

    def __init__(
        self,
        name: bytes,
        out: BinaryIO,
        err: BinaryIO,
        connect: Callable[[], Handle],
        columns: int | None,
    ) -> None:
        self._name = name
        self._out = out
        self._err = err
        self._connect = connect
        self._mode = b""
        self._mode_is_argument = False
        self._options = _Options()
        self._result: list[bytes] = []  # printed after the transaction has ended with success
        self._columns = columns
        self._max_width = _WIDTH

    # Messages

    def _warn(self, message: bytes, error: OSError | None = None) -> None:
        text = b"" if error is None else b": " + os.fsencode(error.strerror or "")
        self._err.write(self._name + b": " + message + text + b"\n")

    def _fail(self, message: bytes, error: OSError | None = None) -> NoReturn:
        self._warn(message, error)
        raise _Exit(1)

    def _usage(self) -> NoReturn:
        if not self._mode:
            self._fail(b"Usage: %b <mode> [-h] [...]" % self._name)
        mode = self._mode + b" " if self._mode_is_argument else b""
        self._fail(b"Usage: %b %b%b" % (self._name, mode, _MODES[self._mode][1]))

    # Arguments

    def run(self, words: list[bytes]) -> int:
        name = self._name
        if self._name.startswith(b"xenstore-"):
            mode = self._name.removeprefix(b"xenstore-")
        elif words:
            self._mode_is_argument = True
            mode = name = words.pop(0)
        else:
            self._usage()
        if mode not in _MODES:
            self._fail(b"unknown mode %b\n" % mode)
        self._mode = mode
        arguments: list[bytes] = []
        for letter, value in _getopt(name, words, arguments, self._err):
            self._set(letter, value)
        if (mode != b"ls" and not arguments) or (mode == b"write" and len(arguments) % 2):
            self._usage()
        if self._columns is not None:
            self._max_width = self._columns - 2
        several = len(arguments) > {b"read": 1, b"write": 2}.get(mode, 0)
        return self._perform(arguments, several and mode not in (b"ls", b"watch"))

    def _set(self, letter: bytes, value: bytes) -> None:
        options = self._options
        if letter == b"s":
            return
        if letter not in _MODES[self._mode][0]:
            self._usage()
        match letter:
            case b"f":
                options.flat = True
                self._max_width = _NO_WIDTH
            case b"p":
                options.prefix = True
            case b"t":
                options.tidy = True
            case b"u":
                options.upto = True
            case b"r":
                options.recurse = True
            case b"R":
                options.raw = True
            case b"n":
                options.number = _atoi(value)

    # Actions

    def _perform(self, arguments: list[bytes], transaction: bool) -> int:
        try:
            handle = self._connect()
        except OSError as error:
            self._fail(b"xs_open", error)
        started = time.monotonic()
        retries = Retries(None, started, None)
        try:
            while True:
                tx_id = 0
                self._result.clear()
                if transaction:
                    try:
                        tx_id = handle.transaction_start()
                    except OSError:
                        self._fail(b"couldn't start transaction")
                status = self._do(handle, tx_id, arguments)
                if not transaction:
                    break
                try:
                    handle.transaction_end(tx_id, abort=bool(status))
                    break
                except OSError as error:
                    if status or error.errno != EAGAIN:
                        self._fail(b"couldn't end transaction")
                    # Debian's start again at once, for ever.
                    conflict = error_from_code("EAGAIN")
                from random import random  # it takes long to import, and most runs need none

                try:
                    now = time.monotonic()
                    time.sleep(retries.wait(conflict, started, now, random()))
                except RetriesExhausted:
                    self._fail(b"couldn't end transaction")
                started = time.monotonic()
            self._out.write(b"".join(self._result))
            return status
        finally:
            handle.close()

    def _do(self, handle: Handle, tx_id: int, arguments: list[bytes]) -> int:
        match self._mode:
            case b"ls":
                for path in arguments or [b"/"]:
                    self._ls(handle, path)
                return 0
            case b"chmod":
                self._chmod(handle, tx_id, arguments[0], arguments[1:])
                return 0
            case b"watch":
                self._watch(handle, arguments)
                return 0
            case b"write":
                pairs = zip(arguments[::2], arguments[1::2], strict=True)
                return int(not all(self._write(handle, tx_id, *pair) for pair in pairs))
        one = {
            b"read": self._read,
            b"rm": self._rm,
            b"exists": self._exists,
            b"list": self._list,
        }[self._mode]
        return int(not all(one(handle, tx_id, path) for path in arguments))

    def _read(self, handle: Handle, tx_id: int, path: bytes) -> bool:
        try:
            value = handle.read(tx_id, path)
        except OSError:
            self._warn(b"couldn't read path " + path)
            return False
        if self._options.prefix:
            self._result.append(path + b": ")
        self._result.append(value if self._options.raw else _escaped(value) + b"\n")
        return True

    def _write(self, handle: Handle, tx_id: int, path: bytes, text: bytes) -> bool:
        try:
            handle.write(tx_id, path, text if self._options.raw else _unescaped(text))
        except OSError:
            self._warn(b"could not write path " + path)
            return False
        return True

    def _exists(self, handle: Handle, tx_id: int, path: bytes) -> bool:
        try:
            handle.read(tx_id, path)
        except OSError:
            return False
        return True

    def _list(self, handle: Handle, tx_id: int, path: bytes) -> bool:
        try:
            names = handle.directory(tx_id, path)
        except OSError:
            self._warn(b"could not list path " + path)
            return False
        prefix = path + b"/" if self._options.prefix else b""
        self._result += [prefix + name + b"\n" for name in names]
        return True

    def _rm(self, handle: Handle, tx_id: int, path: bytes) -> bool:
        """Remove a node. With -t, remove also the parents that have no value and no children."""
        while True:
            try:
                handle.rm(tx_id, path)
            except OSError:
                self._warn(b"could not remove path " + path)
                return False
            if not self._options.tidy or b"/" not in path:
                return True
            path = path.rpartition(b"/")[0]
            try:
                if handle.read(tx_id, path) or handle.directory(tx_id, path):
                    return True
            except OSError:
                return True

    def _chmod(self, handle: Handle, tx_id: int, path: bytes, modes: list[bytes]) -> None:
        perms = []
        for mode in modes:
            bits = PERM_LETTERS.find(mode[:1]) if mode else -1
            if bits < 0:
                letter = mode[:1] or b"\0"
                self._fail(b"Invalid permission specification: '%b'" % letter)
            perms.append(Perms(_atoi(mode[1:]), bits))
        if not path:
            return
        self._set_perms(handle, tx_id, path, perms)
        above = path if self._options.upto else b""
        while above:
            parent, slash, _ = above.rpartition(b"/")
            if not slash:
                self._fail(b"Unable to locate path separator '/' in '%b'" % above)
            above = parent
            if above:
                self._set_perms(handle, tx_id, above, perms)
        if self._options.recurse:
            self._set_perms_below(handle, tx_id, path, perms)

    def _set_perms(self, handle: Handle, tx_id: int, path: bytes, perms: list[Perms]) -> None:
        try:
            handle.set_permissions(tx_id, path, perms)
        except OSError as error:
            self._fail(b"Error occurred setting permissions on '%b'" % path, error)

    def _set_perms_below(self, handle: Handle, tx_id: int, top: bytes, perms: list[Perms]) -> None:
        # A stack, since a guest makes nodes as deep as it likes. So in `_ls`.
        parents = [(top, self._children(handle, tx_id, top))]
        while parents:
            path, names = parents[-1]
            name = next(names, None)
            if name is None:
                parents.pop()
                continue
            child = path + b"/" + name
            self._set_perms(handle, tx_id, child, perms)
            parents.append((child, self._children(handle, tx_id, child)))

    def _children(self, handle: Handle, tx_id: int, path: bytes) -> Iterator[bytes]:
        try:
            return iter(handle.directory(tx_id, path))
        except OSError:
            return iter(())

    def _watch(self, handle: Handle, paths: list[bytes]) -> None:
        for path in paths:
            try:
                handle.watch(path, path)
            except OSError:
                self._fail(b"Unable to add watch on %b\n" % path)
        count = 0
        while self._options.number == -1 or count < self._options.number:
            count += 1
            try:
                path, _ = handle.read_watch()
            except OSError as error:
                self._fail(b"xs_read_watch", error)  # Xen's command would loop for ever
            self._out.write(path + b"\n")
            self._out.flush()

    def _ls(self, handle: Handle, top: bytes) -> None:
        parents = [(top, iter(self._listed(handle, top, 0)))]
        while parents:
            path, names = parents[-1]
            name = next(names, None)
            if name is None:
                parents.pop()
                continue
            child = (path + (b"" if path.endswith(b"/") else b"/") + name)[:_LS_PATH_MAX]
            self._put_node(handle, child, name, len(parents) - 1)
            parents.append((child, iter(self._listed(handle, child, len(parents)))))

    def _listed(self, handle: Handle, path: bytes, depth: int) -> list[bytes]:
        try:
            return handle.directory(0, path)
        except OSError as error:
            if depth and error.errno == ENOENT:
                return []  # another client has removed it
            self._fail(b"xs_directory (%b)" % path, error)

    def _put_node(self, handle: Handle, path: bytes, name: bytes, depth: int) -> None:
        put = self._out.write
        width = self._max_width
        column = 0
        if self._options.flat:
            put(path)
        else:
            shown = _cut(name, width - _TAG_LENGTH - depth)
            put(b" " * depth + shown)
            column = depth + len(shown)
        try:
            value = handle.read(0, path)
        except OSError:
            put(b":\n")
        else:
            text = _escaped(value)
            if 0 <= width < column + len(value) + _TAG_LENGTH:
                put(b' = "%b\\..."' % _cut(text, width - _TAG_LENGTH - column))
            else:
                put(b' = "%b"' % text)
                if self._options.prefix:
                    column += len(text) + len(b' = "" ')
                    end = min(0 if self._options.flat else _PERMS_COLUMN, width)
                    dots = (b"." if at & 1 else b" " for at in range(column, end))
                    put(b" " + b"".join(dots))
        if self._options.prefix:
            self._put_perms(handle, path, name)
        put(b"\n")

    def _put_perms(self, handle: Handle, path: bytes, name: bytes) -> None:
        try:
            perms = handle.get_permissions(0, path)
        except OSError as error:
            self._warn(b"\ncould not access permissions for " + name, error)
            return
        texts = [b"%c%d" % (PERM_LETTERS[bits], domid) for domid, bits in perms]
        self._out.write(b"  (%b)" % b",".join(texts))


# Options, as getopt_long of the GNU C library parses them


def _getopt(
    name: bytes, words: list[bytes], arguments: list[bytes], err: BinaryIO
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the letter and the value of each option; add the other words to `arguments`.

    A wrong option is reported on `err` and skipped.
    """

    def report(message: bytes) -> None:
        err.write(name + b": " + message + b"\n")

    rest = iter(words)
    for word in rest:
        if word == b"--" or (
            "POSIXLY_CORRECT" in os.environ and (word == b"-" or word[:1] != b"-")
        ):
            arguments += [] if word == b"--" else [word]
            arguments += rest
        elif word.startswith(b"--"):
            long, equals, value = word[2:].partition(b"=")
            found = [each for each in _LONG if each.startswith(long)]
            if long in _LONG:
                found = [long]
            if len(found) != 1:
                if found:
                    what = b"".join(b" '--%b'" % each for each in found)
                    report(b"option '%b' is ambiguous; possibilities:%b" % (word, what))
                else:
                    report(b"unrecognized option '%b'" % word)
            elif _LONG[found[0]] not in _WITH_ARGUMENT:
                if equals:
                    report(b"option '--%b' doesn't allow an argument" % found[0])
                else:
                    yield _LONG[found[0]], b""
            else:
                following = value if equals else next(rest, None)
                if following is None:
                    report(b"option '--%b' requires an argument" % found[0])
                else:
                    yield _LONG[found[0]], following
        elif word.startswith(b"-") and word != b"-":
            for at in range(1, len(word)):
                letter = word[at : at + 1]
                if letter not in _LETTERS:
                    report(b"invalid option -- '%b'" % letter)
                elif letter in _WITH_ARGUMENT:
                    following = word[at + 1 :] or next(rest, None)
                    if following is None:
                        report(b"option requires an argument -- '%b'" % letter)
                    else:
                        yield letter, following
                    break
                else:
                    yield letter, b""
        else:
            arguments.append(word)


# Values and numbers, as C has them


def _atoi(text: bytes) -> int:
    found = re.match(rb"[ \t-\r]*([+-]?[0-9]+)", text)
    number = int(found[1]) if found else 0
    number = max(-(2**63), min(number, 2**63 - 1))
    return (number + 2**31) % 2**32 - 2**31


def _cut(text: bytes, length: int) -> bytes:
    """Return ``%.*s``: the first `length` bytes of `text`; all of it if `length` is negative."""
    return text if length < 0 else text[:length]


def _escape_of(byte: int) -> bytes:
    named = {9: b"\\t", 10: b"\\n", 13: b"\\r", 92: b"\\\\"}
    if byte in named:
        return named[byte]
    if 0x20 <= byte <= 0x7E:
        return b"%c" % byte
    return b"\\%03o" % byte if byte < 8 else b"\\x%02x" % byte


_ESCAPES: Final = tuple(map(_escape_of, range(256)))


def _escaped(value: bytes) -> bytes:
    return b"".join([_ESCAPES[byte] for byte in value])


# A backslash with the characters of its escape. After an x they are what scanf takes for %2x.
_ESCAPED: Final = re.compile(
    rb"\\(?:x(?P<hex>[ \t-\r]*(?:[+-][0-9A-Fa-f]|0[xX]|[0-9A-Fa-f]{1,2}))"
    rb"|(?P<octal>[0-7]{1,3})|(?P<other>.|\Z))",
    re.DOTALL,
)


def _unescaped(text: bytes) -> bytes:
    return _ESCAPED.sub(_byte_of_escape, text)


def _byte_of_escape(found: re.Match[bytes]) -> bytes:
    if (digits := found["hex"]) is not None:
        return bytes([int(digits, 16) & 0xFF if digits[-1:] not in b"xX" else 0])
    if (digits := found["octal"]) is not None:
        return bytes([int(digits, 8) & 0xFF])
    other = found["other"]
    # A backslash at the end stands for a NUL.
    return {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"": b"\0"}.get(other, other)


if __name__ == "__main__":
    main()
