"""The commands of ``xsproto`` for nodes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from xsproto.perms import Permission
from xsproto_sync import Client, EmbeddedXenStore
from xsproto_sync.cli.errors import EXIT_STATUSES
from xsproto_sync.cli.main import commands

from ..support import ROOT, daemons
from ..support import fake_device as xenbus
from ..support.embedded_daemon import COMMAND

Run = Callable[..., Result]


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore(
        {b"/a": b"1", b"/a/b": b"two", b"/a/odd": b"\0\n\xff\xc3\xa9\\"}
    ) as store:
        yield store


@pytest.fixture
def client(store: EmbeddedXenStore) -> Client:
    return store.client()


@pytest.fixture
def run(store: EmbeddedXenStore) -> Run:
    def run(command: str, *arguments: str, status: int = 0, color: bool = False) -> Result:
        words = [command, "--socket", store.socket_path(), *arguments]
        result = CliRunner().invoke(commands, words, color=color, catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result

    return run


# Reading


def test_read(run: Run) -> None:
    assert run("read", "/a").output == "1\n"
    assert run("read", "/a", "/a/b").output == "1\ntwo\n"
    assert run("read", "/a/odd").output == "\\x00\\n\\xffé\\\n"
    assert run("read", "--raw", "/a/odd", "/a").stdout_bytes == b"\0\n\xff\xc3\xa9\\1"
    expected = {"/a": "1", "/a/odd": {"base64": "AAr/w6lc"}}
    assert json.loads(run("read", "--json", "/a", "/a/odd").output) == expected
    assert json.loads(run("read", "--json", "/a").output) == {"/a": "1"}
    assert "both given" in run("read", "--raw", "--json", "/a", status=2).output


def test_of_several_nodes_those_are_printed_that_can_be_read(run: Run) -> None:
    result = run("read", "/a", "/nope", "/a/b", status=1)
    assert (result.stdout, result.stderr) == ("1\ntwo\n", "xsproto: /nope: no such node\n")
    result = run("read", "--json", "/nope", "/a", status=1)
    assert json.loads(result.stdout) == {"/a": "1"}
    assert run("read", "--raw", "/a", "/nope", "/a", status=1).stdout == "11"


def test_text_is_text_in_json(run: Run, client: Client) -> None:
    client.write(b"/j/city", "Köln".encode())
    client.write(b"/j/raw", b"\xff\0x")
    client.write(b"/j/nul", b"a\0")
    wanted = {"/j/city": "Köln", "/j/raw": {"base64": "/wB4"}, "/j/nul": "a\0"}
    assert json.loads(run("read", "--json", *wanted).output) == wanted
    nodes = json.loads(run("ls", "--json", "/j").output)
    assert {node["path"]: node["value"] for node in nodes[1:]} == wanted
    line = json.loads(run("watch", "--json", "--values", "-n", "1", "/j/raw").output)
    assert line["value"] == wanted["/j/raw"]


def test_list_and_exists(run: Run) -> None:
    assert run("list", "/a").output == "b\nodd\n"
    assert run("list").output == "tool\na\n"
    assert json.loads(run("list", "--json", "/a").output) == ["b", "odd"]
    assert run("exists", "/a", "/a/b").output == ""
    assert run("exists", "/a", "/c", status=3).output == ""


def test_ls_is_a_tree_in_colour_where_there_is_some(run: Run) -> None:
    plain = '/a = "1"\n  b = "two"\n  odd = "\\x00\\n\\xffé\\"\n'
    assert run("ls", "/a").output == plain
    assert run("ls").output.splitlines()[:2] == ["/", "  tool"]
    coloured = run("ls", "/a", color=True).output
    assert coloured != plain
    assert '\x1b[32m"two"\x1b[0m' in coloured
    assert run("ls", "-p", "/a/b").output == '/a/b = "two"  (n0)\n'
    nodes = json.loads(run("ls", "--json", "/a").output)
    assert nodes == json.loads(run("dump", "/a").output)
    assert nodes[1] == {"path": "/a/b", "value": "two", "perms": ["n0"]}


def test_ls_shows_what_a_guest_may_not_read(store: EmbeddedXenStore, client: Client) -> None:
    words = ["ls", "-p", "--socket", store.socket_path(domid=7), "/a"]
    client.set_perms(b"/a", [b"n0", b"r7"])
    output = CliRunner().invoke(commands, words, catch_exceptions=False).output
    assert output.splitlines()[:2] == ['/a = "1"  (n0,r7)', "  b (not readable)  (?)"]


# Writing


def test_write_one_or_all(run: Run, client: Client) -> None:
    run("write", "/c/d", "é x")
    run("write", "/e", "", "/f", "-1")
    assert client.read_many([b"/c/d", b"/e", b"/f"]) == ["é x".encode(), b"", b"-1"]
    assert "bad" in run("write", "/g", "1", "/bad path", "2", status=2).output
    assert not client.exists(b"/g")
    assert "'/c' has no value" in run("write", "/b", "1", "/c", status=2).output


def test_a_dash_is_what_standard_input_has(store: EmbeddedXenStore, client: Client) -> None:
    def write(*words: str) -> Result:
        words = ("write", "--socket", store.socket_path(), *words)
        return CliRunner().invoke(commands, words, input=b"\xff\0x\n", catch_exceptions=False)

    assert write("/b", "1", "/c", "-").exit_code == 0
    assert client.read_many([b"/b", b"/c"]) == [b"1", b"\xff\0x\n"]
    assert "one node only" in write("/b", "-", "/c", "-").stderr


def test_rm_all_or_none(run: Run, client: Client) -> None:
    run("rm", "/missing/node", status=3)
    run("rm", "/a/b", "/missing/node", status=3)
    assert client.exists(b"/a/b")
    run("rm", "/a/b", "/missing")
    run("rm", "/a")
    assert not client.exists(b"/a")


def test_chmod(run: Run, client: Client) -> None:
    run("chmod", "/a", "n0", "r5", "b6")
    assert client.get_perms(b"/a") == [
        Permission(0),
        Permission(5, read=True),
        Permission(6, read=True, write=True),
    ]
    run("chmod", "-r", "/a", "r0")
    for path in (b"/a", b"/a/b", b"/a/odd"):
        assert client.get_perms(path) == [Permission(0, read=True)]
    assert "invalid permission" in run("chmod", "/a", "x5", status=2).output
    run("chmod", "/missing", "n0", status=3)


# Watching


def test_watch_tells_of_changes_with_their_values(run: Run) -> None:
    assert run("watch", "-n", "2", "/a", "/a/b").output == "/a\n/a/b\n"
    output = run("watch", "--values", "-n", "3", "/a/b", "/no", "@releaseDomain").output
    assert output == '/a/b = "two"\n/no (gone)\n@releaseDomain (gone)\n'
    output = run("watch", "--values", "--json", "-n", "2", "/a/b", "/no").output
    assert [json.loads(line) for line in output.splitlines()] == [
        {"path": "/a/b", "overflow": False, "value": "two"},
        {"path": "/no", "overflow": False, "value": None},
    ]
    assert run("watch", "--depth", "0", "-n", "1", "/a").output == "/a\n"
    result = run("watch", "--timeout", "0", "/a", status=4)
    assert result.stdout == "/a\n"


def test_watch_goes_on_where_a_value_may_not_be_read(store: EmbeddedXenStore) -> None:
    store.client().set_perms(b"/a", [b"n0"])
    words = ["watch", "--socket", store.socket_path(domid=7), "--values", "-n", "1", "/a"]
    result = CliRunner().invoke(commands, words, catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "/a (not readable)\n")


def test_wait_for_what_may_not_be_read_yet(store: EmbeddedXenStore, client: Client) -> None:
    for path in (b"/backend", b"/backend/7"):
        client.write(path, b"")
        client.set_perms(path, [b"n0"])
    words = ["wait", "--socket", store.socket_path(domid=7), "/backend/7/state", "4"]
    with subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "/backend/7/state is not readable; waiting" in process.stderr.readline()
        client.write(b"/backend/7/state", b"4")
        client.set_perms(b"/backend/7/state", [b"n0", b"r7"])
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_wait_for_a_value(run: Run, client: Client) -> None:
    run("wait", "/a", "1")
    run("wait", "/a/b")
    run("wait", "/a", "2", "--timeout", "0", status=4)
    run("wait", "/c", "--timeout", "0", status=4)
    assert "no value" in run("wait", "@releaseDomain", status=2).output

    with ThreadPoolExecutor(2) as pool:
        value = pool.submit(run, "wait", "/c", "ready", "--timeout", "20")
        node = pool.submit(run, "wait", "/d/e", "--timeout", "20")
        client.write(b"/c/below", b"ready")
        client.write(b"/c", b"not yet")
        client.write(b"/c", b"ready")
        client.mkdir(b"/d/e")
        value.result(20)
        node.result(20)


def test_wait_for_several_nodes_and_values(run: Run, client: Client) -> None:
    run("wait", "/a", "2", "1", "/a/b", "two")
    run("wait", "/a/b=one", "/a/b=two", "/a", "1")
    run("wait", "--any", "/a", "2", "/a/b", "two")
    run("wait", "/a", "1", "/a/b", "three", "--timeout", "0.05", status=4)
    client.write(b"/link", b"/a/b")
    client.write(b"/empty", b"")
    client.write(b"/equation", b"x=y")
    run("wait", "/link=/a/b", "/empty=", "/equation", "x=y", "/equation=x=y")
    result = run("wait", "/link=", "/empty", "--timeout", "0.05", status=4)
    assert "/link" in result.output
    # A node of which there is only something below.
    client.write(b"/x/y", b"")
    run("wait", "/x", "/x/y")

    with ThreadPoolExecutor(2) as pool:
        both = pool.submit(run, "wait", "/one", "4", "/two", "4", "6", "--timeout", "20")
        either = pool.submit(run, "wait", "--any", "/three", "/four/five", "--timeout", "20")
        for path in (b"/one=4", b"/two=5", b"/two=6", b"/four/five="):
            name, _, value = path.partition(b"=")
            client.write(name, value)
        both.result(20)
        either.result(20)


def test_wait_until_nodes_are_gone(run: Run, client: Client) -> None:
    run("wait", "--gone", "/none", "/none/at/all")
    run("wait", "--gone", "/a", "--timeout", "0.05", status=4)
    run("wait", "--gone", "--any", "/a", "/none")
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(run, "wait", "--gone", "/a", "/a/b", "--timeout", "20")
        client.delete(b"/a")
        gone.result(20)
    assert "no values" in run("wait", "--gone", "/a", "1", status=2).output


def test_ctrl_c_ends_a_watch(store: EmbeddedXenStore) -> None:
    with subprocess.Popen(
        [*COMMAND, "watch", "--socket", store.socket_path(), "/a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "/a\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == ("", "")
            assert process.returncode == 130
        finally:
            process.kill()  # or the process and its pipes would be left to another test's collector


# Errors, and help


def test_what_may_not_be_read_is_told(store: EmbeddedXenStore, client: Client) -> None:
    for path, perms in ((b"/", b"r0"), (b"/a", b"r0"), (b"/a/b", b"n0"), (b"/a/odd", b"n0")):
        client.set_perms(path, [perms])
    for words in (["dump"], ["ls", "--json"]):
        words += ["/a", "--socket", store.socket_path(domid=7)]
        result = CliRunner().invoke(commands, words, catch_exceptions=False)
        assert [node["path"] for node in json.loads(result.stdout)] == ["/a"]
        assert result.stderr == "".join(
            f"xsproto: {path}: not readable, and left out\n" for path in ("/a/b", "/a/odd")
        )
        assert result.exit_code == 1


def test_options_may_stand_before_the_command(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere")
    path = store.socket_path()

    def ended(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(commands, words, catch_exceptions=False)
        return result.exit_code, result.output

    assert ended("--socket", path, "read", "/a") == (0, "1\n")
    assert ended("--socket", "/nowhere", "read", "--socket", path, "/a") == (0, "1\n")
    assert ended("--xenbus", "/nowhere", "read", "--socket", path, "/a") == (0, "1\n")
    for words, says in (
        (("--socket", "", "read", "/a"), "--socket is empty"),
        (("--socket", path, "--xenbus", "/b", "read", "/a"), "are both given"),
        (("--socket", path, "serve"), "'serve' uses no XenStore"),
        (("--socket", path, "demo"), "'demo' uses no XenStore"),
    ):
        status, output = ended(*words)
        assert status == 2
        assert says in output
    assert ended("-h")[0] == ended("read", "-h")[0] == 0
    completions = ShellComplete(commands, {}, "xsproto", "_XSPROTO_COMPLETE").get_completions(
        ["--socket", path, "read"], "/a/b"
    )
    assert [item.value for item in completions] == ["/a/b"]


@pytest.mark.parametrize(("value", "coloured"), [("1", False), ("", True)])
def test_colour_may_be_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, value: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    assert ("\x1b" in run("ls", "/a", color=True).output) == coloured


@pytest.mark.parametrize("command", ["read", "list", "ls", "dump"])
def test_a_node_that_is_not_there_is_a_status_of_its_own(run: Run, command: str) -> None:
    result = run(command, "/missing", status=3)
    assert result.stderr == "xsproto: /missing: no such node\n"
    assert result.stdout == ""


def test_what_is_refused_is_told_by_the_status(store: EmbeddedXenStore, run: Run) -> None:
    assert "invalid path" in run("read", "//", status=2).output
    assert "invalid path" in run("dump", "/\udcff", status=2).output
    words = ["read", "--socket", store.socket_path(domid=7), "/a"]
    store.client().set_perms(b"/a", [b"n0"])
    assert CliRunner().invoke(commands, words, catch_exceptions=False).exit_code == 1
    words = ["read", "--socket", "/nowhere", "/a"]
    assert CliRunner().invoke(commands, words, catch_exceptions=False).exit_code == 1
    words = ["read", "--socket", "/nowhere", "--xenbus", "/nowhere", "/a"]
    assert CliRunner().invoke(commands, words, catch_exceptions=False).exit_code == 2


def test_the_help_and_the_manual_list_every_exit_status() -> None:
    output = CliRunner().invoke(commands, ["--help"]).output
    for status, meaning in EXIT_STATUSES.items():
        assert f"  {status}  {meaning[:30]}" in output
    page = (ROOT / "docs/reference/command-line.md").read_text()
    for status, meaning in EXIT_STATUSES.items():
        assert f"| {status} | {meaning} |" in page
    for name in commands.commands:
        result = CliRunner().invoke(commands, [name, "--help"])
        assert result.exit_code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(shell: str) -> None:
    result = CliRunner().invoke(commands, ["completion", shell], catch_exceptions=False)
    assert "_XSPROTO_COMPLETE" in result.output


def test_paths_are_completed_from_the_store(
    store: EmbeddedXenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = ShellComplete(commands, {}, "xsproto", "_XSPROTO_COMPLETE")

    def completed(*words: str) -> list[str]:
        return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]

    path = store.socket_path()
    monkeypatch.setenv("XENSTORED_PATH", path)
    assert completed("read", "/a/") == ["/a/b", "/a/odd"]
    assert completed("read", "/a/o") == ["/a/odd"]
    assert completed("dump", "/a/o") == ["/a/odd"]
    assert completed("write", "/a/o") == ["/a/odd"]
    assert completed("ls", "/") == ["/tool", "/a"]
    for nothing in ("/missing/", "//", "relative"):
        assert completed("read", nothing) == []
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere")
    assert completed("read", "/a") == []
    assert completed("read", "--socket", path, "/a/b") == ["/a/b"]
    assert completed("wa") == ["wait", "watch"]


def test_a_guest_has_them_over_its_device() -> None:
    daemons.require("c")
    with daemons.Daemon("c") as daemon, xenbus.Preload() as preload:
        device = xenbus.device_of(daemon.socket_path)
        for words, printed in (
            (("write", "/a", "1", "/b", "2"), ""),
            (("read", "/a", "/b"), "1\n2\n"),
            (("watch", "-n", "1", "--values", "/a"), '/a = "1"\n'),
        ):
            result = preload.run([*COMMAND, words[0], "--xenbus", device, *words[1:]])
            assert (result.returncode, result.stdout, result.stderr) == (0, printed, "")
