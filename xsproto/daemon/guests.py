"""The nodes that a toolstack makes for a guest, in a `Daemon` of this process.

A program in a guest expects more than a domain: its home, a place where it may write, and nodes
where it finds requests. libxl, the library below ``xl``, makes them. `add_guest` makes the same
nodes in the same order, with the same permissions, and introduces the domain between the same two
steps. `remove_guest` removes what libxl removes, and then the domain. The nodes of a PV guest were
compared with those that ``xl create`` of Xen 4.17 makes on a real Xen. The first guest brings the
id and the name of dom0 with it, which ``xen-init-dom0`` writes on a host.

Three kinds of permissions occur. Most nodes are dom0's and may be read by the guest (``n0 rN``).
Nodes that the guest writes are the guest's own (``nN``): ``control/shutdown`` and the features
below ``control``, ``data``, ``drivers``, ``feature``, ``attr``, ``error``. Nodes below ``/libxl``
are for dom0 alone (``n0``).

There is no hypervisor here, so the numbers of event channels, frames and grants are made up. What
the toolstack writes for the firmware of an HVM guest (hvmloader), and for a device model, is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias, get_args

from ..errors import InvalidArgument, InvalidType, error_from_code
from ..paths import encode
from ..requests import Write
from .daemon import Daemon
from .store import Caller, Store, StoreError, Transaction

__all__ = ["GuestKind", "add_guest", "guest_home", "remove_guest"]

#: How a guest is virtualized, in the words of ``/libxl/N/type``.
GuestKind: TypeAlias = Literal["pv", "pvh", "hvm"]

# As libxl passes them on: the guest's ends of two rings.
_STORE_PORT: Final = b"1"
_STORE_FRAME: Final = b"111617"
_CONSOLE_PORT: Final = b"2"
_CONSOLE_FRAME: Final = b"111618"
_CONSOLE_LIMIT: Final = b"1048576"

# A backend of some guest's device, as libxl takes one from ``/libxl``.
_BACKEND: Final = re.compile(rb"/local/domain/\d+/backend/[^/]+/(\d+)/[^/]+")


def guest_home(domid: int) -> bytes:
    """Return the path of a domain's home, ``/local/domain/<domid>``."""
    return b"/local/domain/%d" % domid


class _Toolstack:
    """dom0's tools, which change the nodes of one guest in a transaction."""

    def __init__(self, store: Store, domid: int) -> None:
        self.store = store
        self.dom0: Caller = store.caller(0, lambda path, token: None)
        self.nobody = [b"n0"]
        self.readable = [b"n0", b"r%d" % domid]
        self.writable = [b"n%d" % domid]
        self._tx: Transaction | None = None

    def __enter__(self) -> None:
        self._tx = self.dom0.transactions[self.store.start(self.dom0)]

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        assert self._tx is not None
        tx, self._tx = self._tx, None
        self.store.end(self.dom0, tx, commit=error is None)

    def write(self, path: bytes, value: bytes, perms: list[bytes] | None = None) -> None:
        """Write a node, and set its permissions. Without any, it has those of its parent."""
        try:
            self.store.write(self.dom0, self._tx, path, value)
            if perms is not None:
                self.store.set_perms(self.dom0, self._tx, path, perms)
        except StoreError as refused:
            raise error_from_code(refused.code, request=Write(path, value), path=path) from None

    def make(self, home: bytes, names: Iterable[bytes], perms: list[bytes]) -> None:
        """Make empty nodes."""
        for name in names:
            self.write(home + b"/" + name, b"", perms)

    def remove(self, path: bytes) -> None:
        """Remove a node, if it is there."""
        if path in self.store.nodes:
            self.store.rm(self.dom0, self._tx, path)

    def remove_with_empty_parents(self, path: bytes) -> None:
        """Remove a node, then each node above that has neither a value nor children left."""
        self.remove(path)
        while (path := path[: path.rindex(b"/")]) and (node := self.store.nodes.get(path)):
            if node.value or node.children:
                break
            self.remove(path)


def add_guest(
    daemon: Daemon,
    domid: int,
    *,
    name: bytes,
    uuid: str,
    kind: GuestKind = "pv",
    memory: int = 131072,
    vcpus: int = 1,
    start_time: float = 0.0,
    nodes: Mapping[bytes, bytes] | Mapping[str, bytes] | None = None,
) -> None:
    """Create a domain, make its nodes as libxl does, and introduce it.

    The domain may exist already, and may have connections. Its home is made anew.

    Arguments:
        daemon: the daemon. Look at its `Daemon.data_to_send` afterwards.
        domid: the domain.
        name: its name. No other domain may have it.
        uuid: the name of its node below ``/vm``. No other domain may have it.
        kind: how it is virtualized.
        memory: in KiB.
        vcpus: the number of its virtual processors. All are online.
        start_time: when it was created, in seconds since 1970.
        nodes: more nodes, by their path below the home. The guest may read them.

    Raises:
        InvalidArgument: `domid` is dom0's, that of a guest, or no domain id; `name` or `uuid` is
            another domain's; or another argument cannot be.
        InvalidPath, InvalidType: so is a path of `nodes`.
        XenStoreError: the daemon refuses a node of `nodes`.
    """
    if domid == 0:
        raise InvalidArgument("dom0 is no guest")
    if kind not in get_args(GuestKind):
        raise InvalidArgument(f"kind must be one of {get_args(GuestKind)}, not {kind!r}")
    if vcpus < 1 or memory < 1:
        raise InvalidArgument(f"a guest needs memory and a processor: {memory=}, {vcpus=}")
    store = daemon.store
    home, vm = guest_home(domid), b"/vm/" + uuid.encode()
    Write(vm + b"/name", name).payload()  # raises for what the protocol cannot carry
    if home + b"/vm" in store.nodes:
        raise InvalidArgument(f"domain {domid} is a guest already")
    if vm in store.nodes:
        raise InvalidArgument(f"there is a guest with the uuid {uuid} already")
    for other in store.domains.existing:
        if other != domid and name == _value(store, guest_home(other) + b"/name"):
            raise InvalidArgument(f"domain {other} has the name {name!r} already")
    extra = {}
    for path, value in (nodes or {}).items():
        if not isinstance(path, bytes | str):
            raise InvalidType(f"a path must be bytes or str, not {type(path).__name__}: {path!r}")
        extra[home + b"/" + encode(path)] = value
    for path, value in extra.items():
        Write(path, value).payload()
    daemon.add_domain(domid)  # before the first node: what is older gives this domain no rights
    toolstack = _Toolstack(store, domid)
    if guest_home(0) + b"/name" not in store.nodes:
        toolstack.write(guest_home(0) + b"/domid", b"0")
        toolstack.write(guest_home(0) + b"/name", b"Domain-0")
    with toolstack:
        _create(toolstack, domid, home, vm, name, uuid, kind, extra)
    with toolstack:
        _build(toolstack, domid, home, vm, kind, memory, vcpus, start_time)
    store.introduce(domid)
    with toolstack:
        _add_console(toolstack, domid, home)
    toolstack.write(b"/libxl/%d/dm-version" % domid, b"qemu_xen")


def _create(
    toolstack: _Toolstack,
    domid: int,
    home: bytes,
    vm: bytes,
    name: bytes,
    uuid: str,
    kind: GuestKind,
    extra: Mapping[bytes, bytes],
) -> None:
    """Make what there is before the guest's memory is built (libxl__domain_make)."""
    readable, writable = toolstack.readable, toolstack.writable
    libxl, hvm = b"/libxl/%d" % domid, kind == "hvm"
    for path, perms in ((home, readable), (vm, readable), (libxl, toolstack.nobody)):
        toolstack.remove(path)
        toolstack.write(path, b"", perms)
    toolstack.make(libxl, [b"device"], toolstack.nobody)
    toolstack.write(home + b"/vm", vm)
    toolstack.write(home + b"/name", name)
    toolstack.write(vm + b"/name", name)
    toolstack.make(home, [b"cpu", b"memory", b"device"], readable)
    toolstack.make(home, [b"device/suspend/event-channel"], writable)
    toolstack.make(home, [b"control", *([b"hvmloader"] if hvm else [])], readable)
    control = [b"shutdown", b"feature-poweroff", b"feature-reboot", b"feature-suspend"]
    control += [b"feature-s3", b"feature-s4"] if hvm else []
    toolstack.make(home + b"/control", [*control, b"sysrq"], writable)
    toolstack.make(home, [b"data", b"drivers", b"feature", b"attr", b"error"], writable)
    toolstack.write(vm + b"/uuid", uuid.encode())
    for path, value in extra.items():
        toolstack.write(path, value)
    for feature in (b"multiprocessor-suspend", b"xs_reset_watches"):
        toolstack.write(home + b"/control/platform-feature-" + feature, b"1")
    toolstack.write(libxl + b"/type", kind.encode("ascii"))


def _build(
    toolstack: _Toolstack,
    domid: int,
    home: bytes,
    vm: bytes,
    kind: GuestKind,
    memory: int,
    vcpus: int,
    start_time: float,
) -> None:
    """Make what there is once the guest's memory is built (libxl__build_post)."""
    entries = {
        b"memory/static-max": b"%d" % memory,
        b"memory/target": b"%d" % memory,
        b"memory/videoram": b"0",
        b"domid": b"%d" % domid,
        b"store/port": _STORE_PORT,
        b"store/ring-ref": _STORE_FRAME,
        **{b"cpu/%d/availability" % number: b"online" for number in range(vcpus)},
    }
    if kind == "hvm":
        for feature in (b"acpi", b"acpi_s3", b"acpi_s4"):
            entries[b"platform/" + feature] = b"1"
        entries |= {b"platform/acpi_laptop_slate": b"0", b"platform/device-model": b"qemu_xen"}
    image = {"pv": {b"image/ostype": b"linux"}, "hvm": {b"image/ostype": b"hvm"}}.get(kind, {})
    if kind == "hvm":
        image = {b"rtc/timeoffset": b"", **image}
    image[b"start_time"] = b"%.2f" % start_time
    for top, values in ((home, entries), (vm, image)):
        for path, value in values.items():
            toolstack.write(top + b"/" + path, value)


def _add_console(toolstack: _Toolstack, domid: int, home: bytes) -> None:
    """Make the two ends of the console (libxl__device_console_add), which xenconsoled serves."""
    frontend, backend = home + b"/console", guest_home(0) + b"/backend/console/%d/0" % domid
    libxl = b"/libxl/%d/device/console/0" % domid
    back = {
        b"frontend-id": b"%d" % domid,
        b"online": b"1",
        b"state": b"1",
        b"protocol": b"vt100",
    }
    front = {
        b"limit": _CONSOLE_LIMIT,
        b"type": b"xenconsoled",
        b"output": b"pty",
        b"tty": b"",
        b"port": _CONSOLE_PORT,
        b"ring-ref": _CONSOLE_FRAME,
    }
    toolstack.write(libxl + b"/frontend", frontend)
    toolstack.write(libxl + b"/backend", backend)
    toolstack.write(frontend, b"", toolstack.readable)
    toolstack.write(frontend + b"/backend", backend)
    toolstack.write(frontend + b"/backend-id", b"0", [*toolstack.writable, b"r0"])
    for name, value in front.items():
        toolstack.write(frontend + b"/" + name, value)
    toolstack.remove(backend)
    toolstack.write(backend, b"", toolstack.readable)
    toolstack.write(backend + b"/frontend", frontend)
    for top in (backend, libxl):
        for name, value in back.items():
            toolstack.write(top + b"/" + name, value)


def remove_guest(daemon: Daemon, domid: int) -> None:
    """Remove a guest's nodes as libxl does, and then the domain (`Daemon.remove_domain`).

    The backends go that ``/libxl/<domid>/device`` names, and the nodes above them that are then
    empty; then the guest's nodes below ``/vm`` and ``/libxl``, and its home. Nothing is an error if
    it is missing.
    """
    store = daemon.store
    toolstack = _Toolstack(store, domid)
    home, libxl = guest_home(domid), b"/libxl/%d" % domid
    for device in _devices(store, libxl + b"/device"):
        backend = _value(store, device + b"/backend")
        toolstack.remove_with_empty_parents(device)
        if (found := _BACKEND.fullmatch(backend)) is not None and int(found[1]) == domid:
            toolstack.remove_with_empty_parents(backend)
    vm = _value(store, home + b"/vm")
    for path in (*([vm] if vm.startswith(b"/vm/") else []), home, libxl):
        toolstack.remove(path)
    daemon.remove_domain(domid)


def _value(store: Store, path: bytes) -> bytes:
    """Return the value of a node; nothing if it is missing."""
    node = store.nodes.get(path)
    return b"" if node is None else node.value


def _devices(store: Store, top: bytes) -> list[bytes]:
    """Return the paths two levels below `top`."""
    found = [top]
    for _ in range(2):
        found = [
            path + b"/" + name
            for path in found
            if path in store.nodes
            for name in store.nodes[path].names
        ]
    return found
