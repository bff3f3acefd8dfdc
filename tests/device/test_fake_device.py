"""The device's rules, asked of the fake device or, with --xenbus, of a real device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from ..support import ROOT, daemons
from ..support.daemons import Daemon, Op
from ..support.fake_device import LIBRARY, Preload, device_of, is_preloaded
from .probes import PROBES, Probe
from .probes.device import OK, READ, File
from .runs import run_probes

GUEST: Final = 5

#: What the fake device is over: a kind of daemon, as dom0 or as a guest.
TARGETS: Final = [(kind, domid) for kind in daemons.KINDS for domid in (0, GUEST)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "domid" in metafunc.fixturenames:
        real = metafunc.config.getoption("--xenbus", default=None)
        targets = [(None, 0)] if real else TARGETS
        ids = ["device"] if real else [f"{kind}{'_guest' * bool(domid)}" for kind, domid in TARGETS]
        metafunc.parametrize(("kind", "domid"), targets, ids=ids)


@pytest.fixture(scope="module")
def preload() -> Iterator[Preload]:
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    with Preload() as preload:
        yield preload


def probe_command(device: str, name: str) -> list[str]:
    return [sys.executable, "-m", "tests.device.probes", device, name]


def why_not(probe: Probe, domid: int, real: bool) -> str | None:
    if real and probe.fake_device:
        return "a real device has no modes"
    if real and probe.danger:
        return f"it would take {probe.danger} with it"
    if probe.needs == "guest" and not domid:
        return "dom0 has no quota"
    return None


def domid_of(device: str) -> int:
    with File(device) as file:
        answer = file.request(READ, b"domid\0")
    return int(answer.body) if answer.op == READ else 0


@pytest.mark.background(run_probes, "kind", "domid")
@pytest.mark.parametrize("name", PROBES)
def test_probe(
    name: str,
    kind: str | None,
    domid: int,
    request: pytest.FixtureRequest,
    background: Callable[[], Mapping[str, tuple[int, str]]],
) -> None:
    probe = PROBES[name]
    if kind is None:
        device = request.config.getoption("--xenbus")
        if reason := why_not(probe, domid_of(device), True):
            pytest.skip(reason)
        ended = subprocess.run(
            probe_command(device, name), capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return

    daemons.require(kind)
    if reason := LIBRARY.missing():
        daemons.skip(reason)
    if reason := why_not(probe, domid, False):
        pytest.skip(reason)
    status, told = background()[name]
    if probe.aborts:
        assert status == -signal.SIGABRT, told
        assert f"fake XenBus device: rule {probe.rule}: " in told
    else:
        assert status == 0, told


# Programs that know nothing of it


@pytest.fixture
def device(daemon: Daemon) -> str:
    assert daemon.request(Op.WRITE, b"/a/b\0value") == (Op.WRITE, OK)
    return device_of(daemon.socket_path)


@pytest.mark.parametrize("modes", ["", "freebsd"])
def test_xenstore_read_runs_on_it(device: str, preload: Preload, modes: str) -> None:
    command = ["xenstore-read", "/a/b"]
    assert shutil.which(command[0]), "install Debian's xenstore-utils"
    ended = preload.run(command, modes=modes, variables={"XENSTORED_PATH": device})
    assert (ended.returncode, ended.stdout) == (0, "value\n"), ended.stderr


def test_xenstore_watch_runs_on_freebsds(device: str, preload: Preload) -> None:
    """libxenstore does not mind what FreeBSD's acknowledgements look like."""
    command = ["xenstore-watch", "-n", "1", "/a"]
    ended = preload.run(command, modes="freebsd", variables={"XENSTORED_PATH": device})
    assert (ended.returncode, ended.stdout) == (0, "/a\n"), ended.stderr


def test_freebsds_kernel_ends_with_a_transaction_that_is_none(
    device: str, preload: Preload
) -> None:
    program = """
        import sys
        from tests.device.probes.device import END, File
        with File(sys.argv[1]) as file:
            file.send(END, b"F\\0")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), device]
    ended = preload.run(command, modes="freebsd")
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert "fake XenBus device: rule 15: TRANSACTION_END without a transaction" in ended.stderr


def test_pyxs_runs_on_it(device: str, preload: Preload) -> None:
    program = """
        import sys, pyxs
        connection = pyxs.connection.XenBusConnection(sys.argv[1])
        with pyxs.Client(router=pyxs.client.Router(connection)) as client:
            print(client.read(b"/a/b"), client.list(b"/a"))
    """
    ended = preload.run([sys.executable, "-c", textwrap.dedent(program), device])
    assert (ended.returncode, ended.stdout) == (0, "b'value' [b'b']\n"), ended.stderr


def test_the_device_of_a_program_is_named_by_the_environment(
    daemon: Daemon, preload: Preload
) -> None:
    variables = {"XENBUS_SOCKET": daemon.socket_path}
    for device in "/dev/xen/xenbus", "/nowhere/device":
        ended = preload.run(
            probe_command(device, "it_is_opened_unbuffered"),
            variables=variables | {"XENBUS_DEVICE": device},
        )
        assert ended.returncode == 0, ended.stderr
    ended = preload.run(probe_command("/dev/xen/xenbus", "it_is_opened_unbuffered"))
    assert "FileNotFoundError" in ended.stderr


def test_other_files_are_as_ever(preload: Preload, tmp_path: Path) -> None:
    program = """
        import os, sys
        path = os.path.join(sys.argv[1], "file")
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        assert os.write(file, b"some") == 4 and os.writev(file, [b"th", b"ing"]) == 5
        copy = os.dup(file)
        os.dup2(copy, file)
        os.lseek(copy, 0, 0)
        buffer = bytearray(9)
        assert os.readv(file, [buffer]) == 9 and buffer == b"something"
        assert os.read(copy, 1) == b"" and os.stat(path).st_mode & 0o777 == 0o640
        os.close(file)
        os.close(copy)
        try:
            os.open(path + ".xenbus", os.O_RDWR)
        except FileNotFoundError as error:
            print(error.filename)
    """
    ended = preload.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)])
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path}/file.xenbus\n"), ended.stderr


def test_descriptors_run_out_as_usual(device: str, preload: Preload) -> None:
    program = """
        import errno, os, resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        for limit in 4, 64:  # with too few for the first, and for more
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 64))
            opened = []
            try:
                while True:
                    opened.append(os.open(sys.argv[1], os.O_RDWR))
            except OSError as error:
                assert error.errno == errno.EMFILE, error
            for file in opened:
                os.close(file)
            print(len(opened) > 5)
    """
    ended = preload.run([sys.executable, "-c", textwrap.dedent(program), device])
    assert (ended.returncode, ended.stdout) == (0, "False\nTrue\n"), ended.stderr


def test_a_wrong_mode_is_told(preload: Preload) -> None:
    ended = preload.run(["true"], modes="slow,fast")
    assert ended.returncode == 1
    assert "XENBUS_MODES" in ended.stderr


# Tests on it


@pytest.mark.parametrize("daemon", ["c"], indirect=True)  # one is enough for what it shows
def test_tests_run_on_it(device: str, preload: Preload, tmp_path: Path) -> None:
    """One that violates a rule ends its process, and neither the others nor the run."""
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(f"""
            import os, pytest
            from tests.device.probes.device import READ, WATCH, File
            from tests.support.fake_device import device_of, is_preloaded, set_modes, suspend

            DEVICE = {device!r}

            def test_passes(tmp_path):
                assert is_preloaded() and os.path.exists(device_of(tmp_path / "socket"))
                with File(DEVICE) as file:
                    assert file.request(READ, b"/a/b\\0").body == b"value"
                    suspend(DEVICE)
                    set_modes("wrong-ids")
                    assert file.request(READ, b"/a/b\\0", 7).request == 6

            def test_fails():
                assert False, "as it should"

            @pytest.mark.parametrize("number", range(2))
            def test_violates_a_rule(number):
                with File(DEVICE) as file:
                    file.send(READ, b"/a/b\\0")
                    file.send(WATCH, b"/a/b\\0t\\0")

            def test_is_skipped():
                pytest.skip("as it should")

            def test_of_controls():
                with pytest.raises(ValueError):
                    set_modes("fast")
                with pytest.raises(ValueError):
                    suspend("/nowhere")
        """)
    )
    outcomes = preload.run_tests(["test_it.py"], directory=tmp_path)
    assert {test.partition("::")[2]: outcome.outcome for test, outcome in outcomes.items()} == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_violates_a_rule[0]": "aborted",
        "test_violates_a_rule[1]": "aborted",
        "test_is_skipped": "skipped",
        "test_of_controls": "passed",
    }
    details = {test.partition("::")[2]: outcome.details for test, outcome in outcomes.items()}
    assert "as it should" in details["test_fails"]
    assert "rule 10: " in details["test_violates_a_rule[1]"]
    with pytest.raises(RuntimeError, match="did not run"):
        preload.run_tests(["test_none.py"], directory=tmp_path)


def test_this_process_has_no_fake_device() -> None:
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("something is preloaded here")
    assert not is_preloaded()


def test_a_command_by_hand(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "tests.support.fake_device", "--modes", "wrong-ids", "--"]
    program = """
        import os
        from tests.device.probes.device import UNWATCH, File
        with File("/dev/xen/xenbus") as file:
            print(file.request(UNWATCH, b"/\\0t\\0", 7).request)
    """
    ended = subprocess.run(
        [*command, sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "XENSTORED_PATH": daemon.socket_path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "6\n"), ended.stderr
