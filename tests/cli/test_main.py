"""The command ``xsproto``."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from xsproto import requests
from xsproto.adapters import discovery
from xsproto.clients.operations import Node
from xsproto.errors import (
    AccessDenied,
    CommitUnknown,
    ConnectionClosed,
    InvalidArgument,
    NotFound,
    error_from_code,
)
from xsproto.perms import Permission
from xsproto_sync import Client, EmbeddedXenStore
from xsproto_sync import _json_tree as json_tree
from xsproto_sync.cli.errors import message_of
from xsproto_sync.cli.main import commands
from xsproto_sync.cli.trees import _progress

from ..support.embedded_daemon import COMMAND, serving


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(commands, arguments, input=stdin, catch_exceptions=False)


# A first look


def test_the_demo_tells_its_story_to_the_end() -> None:
    result = run("demo")
    assert result.exit_code == 0
    for told in (
        "another client's   /local/domain/7/device/vif/0/state is now b'4'",
        "the attempts read [1024, 2048]; in the end the target is 2560",
        "domain 7 writes    AccessDenied: EACCES",
        "NotFound is a FileNotFoundError: ENOENT",
    ):
        assert told in result.output


# Serving


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_sockets(tmp_path: Path, number: signal.Signals) -> None:
    path, guest = tmp_path / "socket", tmp_path / "guest"
    with serving("--socket", str(path), "--guest", f"7:{guest}") as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Client(path) as dom0, Client(guest) as seven:
            dom0.write(b"/secret", b"")
            with pytest.raises(AccessDenied):
                seven.read(b"/secret")
            process.send_signal(number)
            assert process.wait(10) == 0
    assert not path.exists()
    assert not guest.exists()


#: `xsproto`, with a signal upon each socket that it makes.
INTERRUPTED = """
import os, signal
from xsproto.adapters.server import Service
from xsproto_sync.cli.main import main

def interrupted(service, sock, path, bind=Service._bind):
    bind(service, sock, path)
    os.kill(os.getpid(), signal.SIGTERM)

Service._bind = interrupted
main()
"""


def test_a_signal_while_it_makes_its_sockets_ends_it_and_them(tmp_path: Path) -> None:
    path, guest = tmp_path / "socket", tmp_path / "guest"
    # In a process of its own: here a thread of another test may be there to take the signal.
    command = [sys.executable, "-c", INTERRUPTED, "serve", "--socket", str(path)]
    assert subprocess.run([*command, "--guest", f"7:{guest}"], timeout=30).returncode == 0
    assert not path.exists()
    assert not guest.exists()


def test_it_refuses_the_socket_of_another_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving("--socket", str(path)):
        second = subprocess.run(
            [*COMMAND, "serve", "--socket", str(path)], capture_output=True, text=True, timeout=20
        )
        assert second.returncode == 1
        assert "a daemon listens there" in second.stderr
        with Client(path) as client:
            assert client.read(b"/tool") == b""


def test_it_is_the_daemon_that_the_profile_says(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving("--socket", str(path), "--profile", "c-4.17"), Client(path) as client:
        assert client.control(b"help")


@pytest.mark.parametrize("value", ["7", "7:", ":/tmp/x", "seven:/tmp/x"])
def test_a_guest_is_a_domid_and_a_path(value: str) -> None:
    result = run("serve", "--guest", value)
    assert result.exit_code == 2
    assert f"{value!r} is no DOMID:PATH" in result.output


@pytest.mark.parametrize("words", [("--socket",), ("--socket", "/tmp/unused", "--guest")])
@pytest.mark.parametrize("path", ["/nowhere/socket", "/tmp/" + "x" * 200])
def test_a_socket_that_cannot_be_made_is_named(
    tmp_path: Path, words: tuple[str, ...], path: str
) -> None:
    dom0 = str(tmp_path / "dom0")
    words = tuple(dom0 if word == "/tmp/unused" else word for word in words)
    result = run("serve", *words, f"7:{path}" if words[-1] == "--guest" else path)
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("xsproto: ")
    assert path in result.stderr


# Trees as JSON


def test_a_tree_comes_back_byte_for_byte(tmp_path: Path) -> None:
    every_byte = bytes(range(256))
    with EmbeddedXenStore() as one, one.client() as client:
        one.add_domain(7)
        client.write(b"/a/b", every_byte)
        client.set_perms(b"/a/b", [b"b7", b"r0"])
        dumped = run("dump", "--socket", one.socket_path(), "/a").output
        whole = json_tree.dump(client)
        assert {node["path"] for node in whole} == {"/", "/tool", "/tool/xenstored", "/a", "/a/b"}
    file = tmp_path / "tree.json"
    file.write_text(dumped)
    with EmbeddedXenStore() as two, two.client() as client:
        two.add_domain(7)
        assert run("load", "--socket", two.socket_path(), str(file)).exit_code == 0
        assert client.read(b"/a/b") == every_byte
        assert client.get_perms(b"/a/b") == [Permission(7, True, True), Permission(0, True)]
        assert run("load", "--socket", two.socket_path(), stdin=dumped).exit_code == 0
        assert run("dump", "--socket", two.socket_path(), "/a").output == dumped
    path = tmp_path / "socket"
    with serving("--socket", str(path), "--load", str(file)), Client(path) as client:
        assert client.read(b"/a/b") == every_byte
        assert client.get_perms(b"/a/b") == [Permission(7, True, True), Permission(0, True)]


def test_guests_may_what_a_loaded_tree_says(tmp_path: Path) -> None:
    file, path, guest = tmp_path / "tree.json", tmp_path / "socket", tmp_path / "guest"
    file.write_text('[{"path": "/a", "value": "1", "perms": ["n0", "r7"]}]')
    arguments = ("--socket", str(path), "--guest", f"7:{guest}", "--load", str(file))
    with serving(*arguments), Client(guest) as seven:
        assert seven.read(b"/a") == b"1"


def test_a_guest_has_what_libxl_makes_unless_the_loaded_tree_has_it(tmp_path: Path) -> None:
    file, path = tmp_path / "tree.json", tmp_path / "socket"
    file.write_text('[{"path": "/local/domain/7/name", "value": "loaded", "perms": ["n0", "r7"]}]')
    guests = {domid: str(tmp_path / f"guest-{domid}") for domid in (5, 7)}
    arguments = [f"--guest={domid}:{guest}" for domid, guest in guests.items()]
    arguments.append(f"--domain=8:{tmp_path}/bare")
    with (
        serving("--socket", str(path), *arguments, "--load", str(file)),
        Client(guests[5]) as five,
        Client(guests[7]) as seven,
        Client(tmp_path / "bare") as eight,
        Client(path) as dom0,
    ):
        with pytest.raises(AccessDenied):
            eight.read(b"name")
        assert not dom0.exists(b"/local/domain/8")
        assert five.read(b"name") == b"guest-5"
        five.write(b"data/updated", b"1")
        assert seven.read(b"name") == b"loaded"
        assert dom0.list(b"/local/domain/7") == [b"name"]
        assert dom0.list(b"/vm") == [five.read(b"vm").removeprefix(b"/vm/")]


def test_dom0_is_no_guest(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    result = run("serve", "--socket", str(path), "--guest", f"0:{tmp_path}/guest")
    assert (result.exit_code, result.output) == (2, "xsproto: dom0 is no guest\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "is no JSON"),
        (
            '[{"path": "/%s", "value": "", "perms": ["n0"]}]' % ("a" * 2500),
            "aaa: the daemon refuses the arguments (EINVAL)",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "tree.json"
    file.write_text(text)
    path = tmp_path / "socket"
    result = run("serve", "--socket", str(path), "--profile", "c-4.17", "--load", str(file))
    assert result.exit_code == 1
    assert says in result.output
    assert not path.exists()


def test_what_the_client_may_not_read_is_left_out() -> None:
    with EmbeddedXenStore({b"/a": b"1", b"/b": b"2"}) as store:
        dom0, guest = store.client(), store.client(domid=7)
        for path in (b"/", b"/a"):
            dom0.set_perms(path, [b"n0", b"r7"])
        assert [node["path"] for node in json_tree.dump(guest)] == ["/", "/a"]


def test_what_vanishes_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedXenStore({b"/a": b"1", b"/a/b": b"2", b"/a/c": b"3"}) as store:
        client, other = store.client(), store.client()
        walk = client.walk

        def disturbed(top: bytes) -> Iterator[Node]:
            for node in walk(top):
                if node.path == b"/a/b":
                    other.delete(node.path)
                yield node

        monkeypatch.setattr(client, "walk", disturbed)
        assert [node["path"] for node in json_tree.dump(client, b"/a")] == ["/a", "/a/c"]


@pytest.mark.parametrize(
    "node",
    [
        {},
        5,
        {"path": "/a", "value": 5, "perms": ["n0"]},
        {"path": "/a", "value": "\ud800", "perms": ["n0"]},
        {"path": "/a", "value": {"base64": "!"}, "perms": ["n0"]},
        {"path": "/a", "value": {"base64": 5}, "perms": ["n0"]},
        {"path": "/a", "value": {"base64": "", "text": ""}, "perms": ["n0"]},
        {"path": "/a", "value": {}, "perms": ["n0"]},
        {"path": "/a", "value": "x" * 4094, "perms": ["n0"]},
        {"path": "/a", "value": "", "perms": ["n0"] * 1400},
        {"path": "/" + 3072 * "a", "value": "", "perms": ["n0"]},
        {"path": "/\u00e4", "value": "", "perms": ["n0"]},
        {"path": "//", "value": "", "perms": ["n0"]},
        {"path": "/a", "value": "", "perms": []},
        {"path": "/a", "value": "", "perms": ["x0"]},
    ],
)
def test_of_what_is_no_tree_nothing_is_written(node: Any) -> None:
    good = {"path": "/good", "value": "", "perms": ["n0"]}
    with EmbeddedXenStore() as store, store.client() as client:
        with pytest.raises(InvalidArgument):
            json_tree.load(client, [good, node])
        assert not client.exists(b"/good")


def test_a_wrong_node_is_named_without_its_value() -> None:
    node = {"path": "/a", "value": "hunter2", "perms": 5}
    with pytest.raises(InvalidArgument, match=r"this is no node of a dumped tree: '/a'$"):
        json_tree.load(None, [node])  # type: ignore[arg-type]  # it is not used


def test_of_a_tree_that_the_daemon_refuses_nothing_is_written() -> None:
    with EmbeddedXenStore() as store, store.client() as client:
        store.add_domain(9)
        nodes = [
            {"path": "/s", "value": "", "perms": ["n0", "r9"]},
            {"path": "/s/key", "value": "secret", "perms": ["n77"]},
        ]
        with pytest.raises(NotFound, match="no such domain to own it"):
            json_tree.load(client, nodes)
        assert not client.exists("/s")


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "node", [nested(100_000), {"path": nested(100_000), "value": "", "perms": ["n0"]}]
)
def test_a_wrong_node_may_be_as_deep_as_it_likes(node: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"no node of a dumped tree: entry 1 of the list$"):
        json_tree.load(None, [node])  # type: ignore[arg-type]  # it is not used


@pytest.mark.parametrize("depth", [900, 990, 100_000])
def test_json_may_be_as_deep_as_it_likes(depth: int) -> None:
    with pytest.raises(InvalidArgument, match=r"is no (JSON|node)"):
        json_tree.load(None, json_tree.parse("[" * depth + "]" * depth))  # type: ignore[arg-type]


def test_a_store_takes_nothing_that_cannot_be_read_back(tmp_path: Path) -> None:
    node = {"path": "/a", "value": "x" * 5000, "perms": ["n0"]}
    file = tmp_path / "tree.json"
    file.write_text(json.dumps([node]))
    for contents in (str(file), {b"/a": b"x" * 5000}):
        with pytest.raises(InvalidArgument, match=r"WRITE of b'/a': its 5003 bytes do not fit"):
            EmbeddedXenStore(contents)


def test_a_secret_is_never_readable_on_its_way() -> None:
    nodes = [{"path": f"/s/{number}", "value": "", "perms": ["n0"]} for number in range(50)]
    nodes[25]["value"] = "secret"
    parent = {"path": "/s", "value": "", "perms": ["n0", "r9"]}
    with EmbeddedXenStore() as store, store.client() as client, store.client(9) as guest:
        with guest.monitor() as monitor:
            monitor.watch(b"/s")
            found: list[Any] = []

            def look(*_: Any) -> None:
                found.append(guest.read_many([b"/s/25"])[0])

            json_tree.load(client, [parent, *nodes], chunk=10, written=look)
            client.write(b"/s/end", b"")
            while monitor.get(timeout=20).path != b"/s/end":
                look()
        assert len(found) > 50
        assert all(isinstance(one, NotFound | AccessDenied) for one in found)


def test_where_the_daemon_limits_transactions_a_tree_is_written_in_chunks() -> None:
    nodes = [{"path": f"data/{number}", "value": "", "perms": ["n7"]} for number in range(25)]
    with EmbeddedXenStore() as store, store.client() as client:
        store.add_guest(7)
        client.set_quota(b"transaction-nodes", 12, 7)
        words = ["load", "--socket", store.socket_path(7)]
        result = run(*words, stdin=json.dumps(nodes))
        assert result.exit_code == 1
        assert "0 of 25 nodes have been written; if the daemon limits trans" in result.stderr
        assert client.list(b"/local/domain/7/data") == []
        result = run(*words, "--chunk", "8", stdin=json.dumps(nodes))
        assert (result.exit_code, result.stderr) == (0, "25 nodes\n")
        nodes[20]["perms"] = ["n0"]
        client.delete(b"/local/domain/7/data/3")
        result = run(*words, "--chunk", "8", stdin=json.dumps(nodes))
        assert result.exit_code == 1
        assert result.stderr.splitlines()[0] == "xsproto: 16 of 25 nodes have been written"
        assert client.exists(b"/local/domain/7/data/3")


def test_a_commit_without_an_answer_may_have_taken_place() -> None:
    error = CommitUnknown("the daemon has closed the connection")
    text = "16 of 25 nodes have been written, and perhaps those of one more transaction"
    assert _progress(16, 25, error) == text


@pytest.mark.parametrize(("text", "says"), [("{", "is no JSON"), ("{}", "is no list of nodes")])
def test_a_file_that_is_no_tree_is_told(text: str, says: str) -> None:
    result = run("load", stdin=text)
    assert result.exit_code == 1
    assert says in result.output


def test_an_error_is_told_in_a_line() -> None:
    environment = {**os.environ, "XENSTORED_PATH": "/nowhere/socket"}
    result = subprocess.run(
        [*COMMAND, "dump"], capture_output=True, text=True, env=environment, timeout=20
    )
    assert result.returncode == 1
    assert result.stderr.startswith("xsproto: cannot connect to XenStore at /nowhere/socket")
    assert json.dumps(result.stdout) == '""'


def test_it_does_without_standard_input() -> None:
    with EmbeddedXenStore() as store:
        environment = {**os.environ, "XENSTORED_PATH": store.socket_path()}
        result = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "load"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=20,
        )
    assert result.returncode == 1
    assert "is no JSON" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("redirection", "words", "status", "err"),
    [
        (">&-", ("ls", "/"), 1, "xsproto: input or output failed: Bad file descriptor\n"),
        (">&-", ("dump",), 1, "xsproto: input or output failed: Bad file descriptor\n"),
        (">&-", ("exists", "/a"), 0, ""),
        (">/dev/full", ("read", "/a"), 1, "xsproto: input or output failed: No space left on dev"),
        ("2>&-", ("read", "/b"), 3, ""),
        ("| true", ("ls", "/"), 0, ""),
    ],
)
def test_where_it_cannot_write_it_says_so(
    redirection: str, words: tuple[str, ...], status: int, err: str
) -> None:
    with EmbeddedXenStore({b"/a": b"1"}) as store:
        result = subprocess.run(
            ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "XENSTORED_PATH": store.socket_path()},
            timeout=20,
        )
    assert result.returncode == status
    assert result.stdout == ""
    assert result.stderr == err or (err and result.stderr.startswith(err))
    assert len(result.stderr.splitlines()) == bool(err)


def test_what_the_terminal_cannot_show_is_escaped() -> None:
    with EmbeddedXenStore({b"/a": "é \N{SNOWMAN}".encode()}) as store:
        environment = {
            **os.environ,
            "XENSTORED_PATH": store.socket_path(),
            "PYTHONIOENCODING": "latin-1",
        }
        result = subprocess.run(
            [*COMMAND, "read", "/a"], capture_output=True, env=environment, timeout=20
        )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"\xe9 \\u2603\n", b"")


def test_without_click_it_says_what_to_install() -> None:
    # As the installed script, in an interpreter that cannot import click.
    code = f"import sys; sys.modules['click'] = None; {COMMAND[-1]}"
    result = subprocess.run(
        [*COMMAND[:-1], code, "read", "/a"], capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "the command xsproto needs click: pip install 'xsproto[cli]'\n"


# Errors in an operator's words


def test_an_error_of_the_system_names_the_file_first() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/tree.json")
    assert message_of(error) == "/nowhere/tree.json: No such file or directory"
    assert message_of(ValueError("it is wrong")) == "it is wrong"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            error_from_code("ENOENT", request=requests.Read(b"/a\n"), path=b"/a\n"),
            r"/a\n: no such node",
        ),
        (
            error_from_code("ENOSPC", request=requests.TransactionStart()),
            "TRANSACTION_START: a quota of the daemon is reached (ENOSPC)",
        ),
        (error_from_code("EWHAT"), "EWHAT: xs_wire.h has no such error name"),
        (
            ConnectionClosed(
                "the daemon closed the connection; Write(path=b'/a', value=<1 byte>) was not sent",
                request=requests.Write(b"/a", b"1"),
            ),
            "the daemon closed the connection; WRITE /a was not sent",
        ),
        (
            InvalidArgument("cannot connect to XenStore at /tmp/b'é': it looks like bytes"),
            "cannot connect to XenStore at /tmp/b'é': it looks like bytes",
        ),
        (
            InvalidArgument("""the path b"/it's" is not b'/a\\\\'"""),
            "the path /it's is not /a\\",
        ),
    ],
)
def test_an_error_is_told_without_the_notation_of_python(error: Exception, says: str) -> None:
    assert message_of(error) == says


def test_where_there_is_no_xenstore_the_message_names_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("XENSTORED_PATH", "XENSTORED_RUNDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(discovery, "SOCKET_PATHS", ("/nowhere/socket",))
    monkeypatch.setattr(discovery, "DEVICE_PATHS", {})
    result = run("read", "/a")
    assert result.exit_code == 1
    assert result.stderr.startswith("xsproto: there is no XenStore here: no socket of a daemon")
    assert "`xsproto serve` needs no Xen" in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--socket", ""), "--socket is empty"),
        (("--xenbus", ""), "--xenbus is empty"),
        (("--socket", "/a", "--xenbus", "/b"), "--socket and --xenbus are both given"),
    ],
)
def test_a_wrong_place_of_xenstore_is_named_by_its_option(
    words: tuple[str, ...], says: str
) -> None:
    result = run("read", *words, "/a")
    assert result.exit_code == 2
    assert says in result.stderr
