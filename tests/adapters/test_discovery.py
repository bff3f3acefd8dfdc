"""Where XenStore is found, asked of an operating system that is made up."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from xsproto.adapters import discovery
from xsproto.adapters.discovery import (
    DEVICE_PATHS,
    PID_FILES,
    SOCKET_PATHS,
    Location,
    is_dom0,
    locate,
    named_by_environment,
    stub_domain,
)
from xsproto.errors import ConnectFailed, InvalidArgument, InvalidType

SOCKET, DEVICE = stat.S_IFSOCK | 0o600, stat.S_IFCHR | 0o600
CAPABILITIES = "/proc/xen/capabilities"


class Uname(NamedTuple):
    sysname: str


class System:
    """What of the module `os` is used, with `files`: modes, or contents."""

    O_RDONLY = os.O_RDONLY

    def __init__(
        self,
        files: Mapping[str, int | bytes] = {},
        environ: Mapping[str, str] = {},
        sysname: str = "Linux",
    ) -> None:
        self.files, self.environ = files, environ
        self.path = self
        self._sysname = sysname
        self.opened = 0

    def exists(self, path: str) -> bool:
        return path in self.files

    def stat(self, path: str) -> Any:
        if path not in self.files:
            raise FileNotFoundError(path)
        mode = self.files[path]
        assert isinstance(mode, int)
        return os.stat_result((mode, *[0] * 9))

    def open(self, path: str, flags: int) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        self.opened += 1
        return path

    def read(self, file: str, size: int) -> bytes:
        content = self.files[file]
        assert isinstance(content, bytes)
        return content[:size]

    def close(self, file: str) -> None:
        self.opened -= 1

    def uname(self) -> Uname:
        return Uname(self._sysname)


def device(sysname: str = "Linux") -> dict[str, int]:
    return {DEVICE_PATHS[sysname][0]: DEVICE}


def test_what_is_given_is_taken() -> None:
    system = System({SOCKET_PATHS[0]: SOCKET}, {"XENSTORED_PATH": "/environment"})
    assert locate("/given", None, system) == Location("socket", "/given")
    assert locate(Path("/given"), None, system) == Location("socket", "/given")
    assert locate(None, "/given", system) == Location("device", "/given")


def test_both_given_is_a_contradiction() -> None:
    with pytest.raises(InvalidArgument, match="'/one', '/other'"):
        locate("/one", "/other", System())


@pytest.mark.parametrize("path", [b"/socket", 5, object()])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InvalidType, match="unix_socket_path must be a path"):
        locate(path, None, System())
    with pytest.raises(InvalidType, match="xen_bus_path must be a path"):
        locate(None, path, System())


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/socket"


@pytest.mark.parametrize("path", ["", "/a\0b", BytesPath()])
def test_nor_is_a_path_that_cannot_be(path: Any) -> None:
    with pytest.raises(InvalidArgument, match="unix_socket_path is no path"):
        locate(path, None, System())


def test_the_environment_names_a_socket_or_a_device() -> None:
    environ = {"XENSTORED_PATH": "/named", "XENSTORED_RUNDIR": "/run/of"}
    assert locate(None, None, System({"/named": SOCKET}, environ)).kind == "socket"
    assert locate(None, None, System({"/named": DEVICE}, environ)) == Location("device", "/named")
    # One that is not there yet is a socket: there it is said best what is wrong.
    assert locate(None, None, System(device(), environ)) == Location("socket", "/named")
    del environ["XENSTORED_PATH"]
    assert locate(None, None, System(device(), environ)) == Location("socket", "/run/of/socket")


def test_a_path_in_the_environment_is_looked_at_as_well() -> None:
    with pytest.raises(InvalidArgument, match="XENSTORED_PATH"):
        locate(None, None, System(environ={"XENSTORED_PATH": "\0"}))


def test_the_environment_may_name_nothing() -> None:
    system = System({SOCKET_PATHS[0]: SOCKET}, {"XENSTORED_PATH": "", "XENSTORED_RUNDIR": ""})
    assert named_by_environment(system) is None
    system = System(environ={"XENSTORED_RUNDIR": "/run/of"})
    assert named_by_environment(system) == Location("socket", "/run/of/socket")


@pytest.mark.parametrize("path", SOCKET_PATHS)
def test_a_socket_that_exists_is_preferred(path: str) -> None:
    assert locate(None, None, System({path: SOCKET, **device()})) == Location("socket", path)


@pytest.mark.parametrize("sysname", DEVICE_PATHS)
def test_a_guest_has_its_device(sysname: str) -> None:
    system = System({**device(sysname), CAPABILITIES: b""}, sysname=sysname)
    assert locate(None, None, system) == Location("device", DEVICE_PATHS[sysname][0])
    assert system.opened == 0
    assert locate(None, None, System(device(sysname), sysname=sysname)).kind == "device"


def test_the_older_name_of_the_device_is_the_second_choice() -> None:
    new, old = DEVICE_PATHS["Linux"]
    assert locate(None, None, System({old: DEVICE})).path == old
    assert locate(None, None, System({old: DEVICE, new: DEVICE})).path == new


def test_dom0_without_a_socket_has_its_device() -> None:
    """libxenstore takes it as well. (oxenstored need not have a socket.)"""
    files: dict[str, int | bytes] = {**device(), CAPABILITIES: b"control_d\n"}
    for pid_file in ({}, {PID_FILES[0]: b"4711\n"}):
        system = System({**files, **pid_file})
        found = locate(None, None, system)
        assert found == Location("device", DEVICE_PATHS["Linux"][0])
        assert found.how == "the device of dom0, where no daemon has a socket"
        assert system.opened == 0


def test_dom0_without_a_device_must_have_a_daemon() -> None:
    system = System({CAPABILITIES: b"control_d\n"})
    found = locate(None, None, system)
    assert found == Location("socket", SOCKET_PATHS[0])
    assert found.how == "where dom0's daemon should be, but is not"
    assert system.opened == 0


@pytest.mark.parametrize("capabilities", [{CAPABILITIES: b"control_d\n"}, {}])
@pytest.mark.parametrize("pid_file", PID_FILES)
def test_a_stub_domain_is_reached_through_the_device(
    pid_file: str, capabilities: dict[str, bytes]
) -> None:
    """Also where xenfs is not mounted, so that nothing says whether this is dom0."""
    system = System({**device(), **capabilities, pid_file: b"domid:3\n"})
    found = locate(None, None, system)
    assert found == Location("device", DEVICE_PATHS["Linux"][0])
    assert found.how == (
        f"the device of dom0, whose XenStore is the stub domain 3, as {pid_file} says"
    )
    assert system.opened == 0


def test_without_a_device_a_stub_domain_cannot_be_reached() -> None:
    system = System({PID_FILES[0]: b"domid:3\n", CAPABILITIES: b"control_d\n"})
    with pytest.raises(ConnectFailed) as caught:
        locate(None, None, system)
    for part in (f"the stub domain 3, as {PID_FILES[0]} says", *DEVICE_PATHS["Linux"]):
        assert part in str(caught.value)


def test_a_socket_is_preferred_to_a_stub_domain() -> None:
    """libxenstore tries it first as well."""
    system = System({SOCKET_PATHS[1]: SOCKET, PID_FILES[0]: b"domid:3\n", **device()})
    assert locate(None, None, system) == Location("socket", SOCKET_PATHS[1])


@pytest.mark.parametrize(
    ("content", "domid"),
    [
        (b"domid:3\n", "3"),
        (b"domid:12", "12"),
        *[(content, None) for content in (b"", b"4711\n", b"domid:", b"domid:-1", b"domid:x\n")],
    ],
)
def test_the_pid_file_names_a_process_or_a_stub_domain(content: bytes, domid: str | None) -> None:
    expected = domid and f"the stub domain {domid}, as {PID_FILES[1]} says"
    system = System({PID_FILES[1]: content})
    assert stub_domain(system) == expected
    assert system.opened == 0
    assert stub_domain(System()) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [({CAPABILITIES: b"control_d\n"}, True), ({CAPABILITIES: b""}, False), ({}, False)],
)
def test_dom0_is_known_by_its_capabilities(files: dict[str, bytes], expected: bool) -> None:
    system = System(files)
    assert is_dom0(system) is expected
    assert system.opened == 0


@pytest.mark.parametrize("sysname", ["Linux", "SunOS"])
def test_where_there_is_nothing_it_says_what_was_looked_for(sysname: str) -> None:
    with pytest.raises(ConnectFailed) as caught:
        locate(None, None, System(sysname=sysname))
    for path in (*SOCKET_PATHS, *DEVICE_PATHS.get(sysname, ("none is known",))):
        assert path in str(caught.value)
    assert "EmbeddedXenStore" in str(caught.value)


def test_the_real_module_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path))
    assert locate(None, None, os) == Location("device", str(tmp_path))  # as it is no socket


def test_the_real_module_reads_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XENSTORED_PATH", "XENSTORED_RUNDIR"):
        monkeypatch.delenv(name, raising=False)
    nothing, found, pid_file = tmp_path / "nothing", tmp_path / "device", tmp_path / "pid"
    found.touch()
    monkeypatch.setattr(discovery, "SOCKET_PATHS", (str(nothing),))
    monkeypatch.setattr(discovery, "DEVICE_PATHS", {os.uname().sysname: (str(found),)})
    monkeypatch.setattr(discovery, "PID_FILES", (str(tmp_path), str(pid_file)))
    for content, how in (
        (
            "domid:5\n",
            f"the device of dom0, whose XenStore is the stub domain 5, as {pid_file} says",
        ),
        ("4711\n", "the device of a guest"),
    ):
        pid_file.write_text(content)
        monkeypatch.setattr(discovery, "_CAPABILITIES", str(nothing))
        location = locate(None, None, os)
        assert (location, location.how) == (Location("device", str(found)), how)
    monkeypatch.setattr(discovery, "_CAPABILITIES", str(pid_file))
    pid_file.write_text("control_d\n")
    assert locate(None, None, os).how == "the device of dom0, where no daemon has a socket"
