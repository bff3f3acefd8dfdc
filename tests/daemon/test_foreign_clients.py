"""Other people's clients cannot tell the embedded daemon from the C xenstored 4.17.

Each runs against both: ``xsproto serve --profile c-4.17`` and the real one, each a process of its
own with a guest, domain 5, and a domain 6 that nobody has introduced. What is printed, every exit
status and the tree in the end must be the same. What differs on purpose: docs/explain/embedded.md.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import pytest

from ..support import daemons
from ..support.daemons import Connection, Daemon, Op
from ..support.embedded_daemon import serving
from ..support.foreign import PROGRAMS, scripts

pytestmark = pytest.mark.environment("plain", "programs")

T = TypeVar("T")

#: Where Debian keeps Xen's own programs, and its modules for Debian's Python.
XEN: Final = Path("/usr/lib/xen-4.17")
TIMEOUT: Final = 30


class Side(NamedTuple):
    """A daemon: where dom0's clients connect, and where those of domain 5."""

    socket: str
    guest: str

    def run(self, command: list[str], *, guest: bool = False) -> tuple[int, bytes, bytes]:
        """Run a program: its exit status, and what it printed."""
        environment = {
            **os.environ,
            "LC_ALL": "PROFILE_CURRENT",
            "PATH": f"{XEN}/bin:/usr/bin:/bin",
            "XENSTORED_PATH": self.guest if guest else self.socket,
        }
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )
        # (What test-xenstore measures is nobody's business here.)
        return result.returncode, re.sub(rb"\d+ ns", b"_ ns", result.stdout), result.stderr

    def tree(self) -> list[tuple[bytes, list[tuple[int, bytes]]]]:
        """Every node: its path, then the answers to READ, GET_PERMS and DIRECTORY."""
        nodes, paths = [], [b"/"]
        with Connection(self.socket) as dom0:
            while paths:
                path = paths.pop()
                ops = (Op.READ, Op.GET_PERMS, Op.DIRECTORY)
                answers = [dom0.request(op, path + b"\0") for op in ops]
                nodes.append((path, answers))
                assert answers[2][0] == Op.DIRECTORY, f"{path!r} cannot be listed: {answers[2]}"
                names = answers[2][1].split(b"\0")[:-1]
                paths += [path.rstrip(b"/") + b"/" + name for name in names]
        return nodes


@contextmanager
def ours() -> Iterator[Side]:
    with tempfile.TemporaryDirectory() as directory:
        side = Side(f"{directory}/socket", f"{directory}/guest")
        domains = ("--domain", f"5:{side.guest}", "--domain", f"6:{directory}/six")
        with serving("--profile", "c-4.17", "--socket", side.socket, *domains):
            with Connection(side.socket) as dom0:
                assert dom0.request(Op.INTRODUCE, b"5\x001\x001\0")[0] == Op.INTRODUCE
            yield side


@contextmanager
def theirs() -> Iterator[Side]:
    with Daemon("c") as daemon, daemon.guest(5) as guest, daemon.guest(6, introduce=False):
        yield Side(daemon.socket_path, guest.socket_path)


def compare(play: Callable[[Side], T]) -> T:
    """What `play` gives: the same on both sides, and with the same tree in the end."""
    daemons.require("c")
    with ours() as one, theirs() as other, ThreadPoolExecutor(2) as pool:
        (our, our_tree), (their, their_tree) = pool.map(
            lambda side: (play(side), side.tree()), (one, other)
        )
    assert our == their
    assert our_tree == their_tree
    return our


def require_tools() -> None:
    if shutil.which("xenstore-ls", path="/usr/bin") is None:
        daemons.skip("xenstore-ls is missing: install Debian's xenstore-utils.")


def play_script(
    script: str, run: Callable[..., tuple[int, bytes, bytes]]
) -> list[tuple[str, bytes, bytes]]:
    """Run each command of a script; return it with what it printed."""
    played = []
    for line in script.strip().split("\n"):
        status, *command = shlex.split(line)
        guest = command[0] == "@5"
        code, out, err = run(command[guest:], guest=guest)
        assert code == int(status), f"{line} ended with {code}: {out!r} {err!r}"
        played.append((line, out, err))
    return played


def compare_script(script: str) -> list[tuple[str, bytes, bytes]]:
    """Run commands, one a line after the exit status that it must have; ``@5`` is in the guest."""
    require_tools()
    return compare(lambda side: play_script(script, side.run))


# Debian's xenstore-utils


def test_xenstore_read_and_write() -> None:
    played = compare_script(scripts.READ_AND_WRITE)
    assert (played[1][1], played[3][1]) == (b"one\n", b"/a: one\n/b: \n")


def test_xenstore_ls_and_list() -> None:
    played = compare_script(scripts.LS_AND_LIST)
    assert played[3][1] == b'1 = ""\n name = "one"\n odd = "\\001\\n"\\xff"\n2 = ""\n'
    assert len(played[-5][1].splitlines()) == 200


def test_xenstore_rm_exists_and_chmod() -> None:
    played = compare_script(scripts.RM_EXISTS_AND_CHMOD)
    assert b"/a/b = " in played[13][1]


def test_wrong_options_and_one_program_for_all() -> None:
    played = compare_script(scripts.WRONG_OPTIONS)
    assert b"Usage: xenstore-exists" in played[0][2]


def test_the_tools_in_a_guest() -> None:
    played = compare_script(scripts.IN_A_GUEST)
    assert b"(n5,r0,r6,b6)" in played[-1][1]


def test_xenstore_watch_tells_of_what_happens() -> None:
    watched = ["/a", "/a/b", "@introduceDomain", "relative", "/missing"]
    # What is done, and how many lines that makes: they are awaited, for events may merge.
    steps = [
        (Op.WRITE, b"/a/b/c\0x", 2),
        (Op.SET_PERMS, b"/a/b\0n5\0", 2),
        (Op.WRITE, b"relative/x\0", 1),
        (Op.INTRODUCE, b"6\x001\x001\0", 1),
        (Op.RM, b"/a\0", 2),
        (Op.WRITE, b"/missing\0", 1),
    ]

    def play(side: Side) -> tuple[int, list[bytes], bytes]:
        count = len(watched) + sum(lines for _, _, lines in steps)
        process = subprocess.Popen(
            ["xenstore-watch", "-n", str(count), *watched],
            env={**os.environ, "XENSTORED_PATH": side.socket},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            printed = [process.stdout.readline() for _ in watched]
            with Connection(side.socket) as dom0:
                for op, body, lines in steps:
                    assert dom0.request(op, body) == (op, b"OK\0")
                    printed += [process.stdout.readline() for _ in range(lines)]
            rest, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.wait()
        return process.returncode, [*printed, rest], errors

    status, printed, _ = compare(play)
    assert status == 0
    told = b"/a/b/c /a/b/c /a/b /a/b relative/x @introduceDomain /a/b /a /missing"
    assert b"".join(printed).split()[5:] == told.split()


# Xen's own


def test_xenstore_control() -> None:
    commands = ["check", "check x", "print", "print text", "print a b", "help x", "bogus", "''"]
    commands += ["quota", "quota-soft", "quota 0", "quota 5", "quota 6", "quota 9", "quota -1"]
    commands += ["quota set permissions 3", "quota set watches 1", "quota set nodes 4k", "quota"]
    commands += ["quota set", "quota set nodes", "quota set nodes x", "quota set nodes 0"]
    commands += ["quota set bogus 1", "quota set nodes -5", "quota set nodes 1 2", "quota 5 6"]
    commands += ["quota set memory 9999999", "quota-soft set memory 7", "quota-soft set nodes 7"]
    commands += ["quota-soft", "quota"]
    then = [
        "xenstore-write /local/domain/5 ''",
        "xenstore-chmod /local/domain/5 n5",
        "@5 xenstore-write a 1 b 2 c 3",  # a transaction
        "@5 xenstore-write a 1 b 2",
        "@5 xenstore-write c 3",
        "@5 xenstore-write d 4",
        "@5 xenstore-chmod a n5 r0 r6",
        "@5 xenstore-chmod a n5 r0 r6 r7",
        "@5 xenstore-watch -n 2 a b",
        "@5 xenstore-watch -n 3 a b c",
        "@5 xenstore-control check",
        "xenstore-control quota 5",
    ]

    def play(side: Side) -> list[tuple[str, int, bytes, bytes]]:
        played = []
        for line in [*[f"xenstore-control {command}" for command in commands], *then]:
            words = shlex.split(line)
            guest = words[0] == "@5"
            code, out, err = side.run(words[guest:], guest=guest)
            # Help, titles and comments are each daemon's own words. (The tool asks for help where
            # a command is refused.) What requests take of a domain is not counted here.
            err = re.sub(rb"(?s)(?<=Valid commands are:\n).*", b"", err)
            rows = re.findall(rb"(?m)^(\S+) *: +(\d+)", out)
            if b"Domain" in out:
                rows = [row for row in rows if row[0] not in (b"outstanding", b"memory")]
            out = out if not rows else b" ".join([b"%b:%b" % row for row in rows])
            played.append((line, code, out, err))
        return played

    played = compare(play)
    codes = [code for _, code, _, _ in played][-len(then) :]
    assert codes == [0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 3, 0]
    assert played[-1][2] == b"nodes:4 watches:0 transactions:0"


@pytest.mark.parametrize("guest", ["", "@5"], ids=["dom0", "guest"])
def test_xens_test_program_passes(guest: str) -> None:
    played = compare_script(
        f"""
        0 xenstore-write /local/domain/5 ''
        0 xenstore-chmod /local/domain/5 n5
        0 {guest} test-xenstore -l
        0 {guest} test-xenstore -t 'ta err' -i 3
        """
    )
    assert len(played[2][1].splitlines()) == 12


def run_program(side: Side, python: list[str], name: str, *arguments: str) -> list[bytes]:
    """The lines that a program of `tests.support.foreign` prints."""
    code, out, err = side.run([*python, str(PROGRAMS / name), side.guest, *arguments])
    assert (code, err) == (0, b""), f"{out.decode()}\n{err.decode()}"
    return out.splitlines()


def test_xen_lowlevel_xs() -> None:
    python = ["env", f"PYTHONPATH={XEN}/lib/python", "/usr/bin/python3"]
    found = subprocess.run([*python, "-c", "import xen.lowlevel.xs"], capture_output=True)
    if found.returncode:
        daemons.skip("xen.lowlevel.xs for Debian's Python is missing: install xen-utils-4.17.")
    out = compare(lambda side: run_program(side, python, "lowlevel.py"))
    assert b"transaction_end('2'): False" in out
    assert b"read('0', '/a'): Error(13, 'Permission denied')" in out


# pyxs


def test_pyxs() -> None:
    out = compare(lambda side: run_program(side, [sys.executable], "pyxs_calls.py"))
    assert b"commit(): False" in out
    assert b"Event(path=b'name', token=b'token-of-name')" in out


def test_the_drop_in_for_pyxs_does_what_pyxs_does() -> None:
    daemons.require("c")
    told, trees = [], []
    for module in ("pyxs", "xsproto_sync.compat.pyxs"):
        with theirs() as side:
            told.append(run_program(side, [sys.executable], "pyxs_calls.py", module))
            trees.append(side.tree())
    assert [path for path, _ in trees[0]] == [path for path, _ in trees[1]]
    unequal = [one for one, other in zip(*trees, strict=True) if one != other]
    assert [path for path, _ in unequal] == [b"/a/c"]
    # In this order: an empty value, which pyxs 0.4.1 cannot write; lists of many; the walk with
    # that value; events that it tells twice, after a second watch was refused.
    differ = [(pyxs, ours) for pyxs, ours in zip(*told, strict=True) if pyxs != ours]
    assert [ours.partition(b": ")[0][:30] for _, ours in differ] == [
        *(b"write(b'/a/c', b'')", b"read(b'/a/c')", b"list(b'/many')", b"exists(b'/many')"),
        *(b"[(b'/', b'', [b'tool', b'a', b", b"[Event(path=b'/w/x', token=b't"),
    ]
    walks = [dict.fromkeys(re.findall(rb"\(b'[^\[]*", walk)) for walk in differ[4]]
    assert [*walks[0].keys() - walks[1].keys()] == [b"(b'/a/c', b'c', "]
    events = [re.findall(rb"path=b'([^']*)", lines) for lines in differ[5]]
    assert events[0] == [b"/w/x", b"/w/x", b"relative/y", b"@introduceDomain", b"@releaseDomain"]
    assert events[1] == [b"/w/x", b"relative/y", b"@introduceDomain", b"@releaseDomain", b"/w"]
