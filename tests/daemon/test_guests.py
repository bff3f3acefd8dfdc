"""Guests as a toolstack leaves them: `xsproto.daemon.guests`, `EmbeddedXenStore.add_guest`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from xsproto import AccessDenied, ConnectionClosed, InvalidArgument, InvalidPath, TimedOut
from xsproto.daemon import Daemon
from xsproto.daemon.guests import add_guest, remove_guest
from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT, Profile
from xsproto.daemon.store.nodes import shown_permissions
from xsproto.errors import InvalidRequest, InvalidType, NotFound
from xsproto_sync import Client, EmbeddedXenStore, Guest

UUID = "95946ab0-ed2f-11f1-8b74-0ddd12ae0f31"

#: ``xenstore-ls -f -p`` after ``xl create`` of a PV guest, in dom0 of Xen 4.17 with Debian's C
#: xenstored; and what there is beside the guest's nodes, or is the name of a file.
MEASURED = Path(__file__).with_name("guest_of_xen_4_17.txt").read_text().splitlines()
BESIDE = (
    *("/local/pool", "/local/domain/0/control"),
    *(f"/vm/{UUID}/image/{name} " for name in ("kernel", "ramdisk", "cmdline")),
)


def listing(daemon: Daemon) -> list[str]:
    """All nodes as ``xenstore-ls -f -p`` prints them."""
    lines = []
    stack = [b"/"]
    while stack:
        path = stack.pop()
        node = daemon.store.nodes[path]
        base = b"" if path == b"/" else path
        stack += [base + b"/" + name for name in reversed(node.names)]
        if base:
            perms = ",".join(map(str, shown_permissions(node.perms)))
            lines.append(f'{path.decode()} = "{node.value.decode()}"   ({perms})')
    return lines


@pytest.mark.parametrize("profile", [PROFILE_CURRENT, PROFILE_4_17], ids=lambda each: each.name)
def test_a_guests_nodes_are_those_of_a_real_host(profile: Profile) -> None:
    daemon = Daemon(profile)
    add_guest(
        daemon, 1, name=b"domu", uuid=UUID, memory=393216, start_time=1796092406.41, kind="pv"
    )
    expected = [line for line in MEASURED if not line.startswith(BESIDE)]
    expected = [line.replace("/dev/pts/0", "") for line in expected]
    assert listing(daemon) == expected


def test_a_removed_guest_leaves_what_it_leaves_on_a_real_host() -> None:
    daemon = Daemon()
    add_guest(daemon, 1, name=b"a", uuid=UUID)
    before = listing(daemon)
    add_guest(daemon, 2, name=b"b", uuid="other")
    store = daemon.store
    dom0 = store.caller(0, lambda path, token: None)
    # A disk, as libxl adds it; and what is no backend of this guest, which stays.
    backend = b"/local/domain/0/backend/vbd/2/51712"
    for path, value in {
        backend + b"/state": b"4",
        b"/libxl/2/device/vbd/51712/backend": backend,
        b"/libxl/2/device/vbd/1/backend": b"/local/domain/0/backend/console/1/0",
        b"/libxl/2/device/vbd/2/backend": b"/tool",
    }.items():
        store.write(dom0, None, path, value)
    remove_guest(daemon, 2)
    assert listing(daemon) == before
    assert 2 not in store.domains.existing
    remove_guest(daemon, 1)
    assert [line.partition(" ")[0] for line in listing(daemon)] == [
        *("/tool", "/tool/xenstored", "/local", "/local/domain", "/local/domain/0"),
        *("/local/domain/0/domid", "/local/domain/0/name", "/vm", "/libxl"),
    ]
    remove_guest(daemon, 1)  # it is gone


def test_what_is_left_of_a_guest_goes_with_the_empty_nodes_above() -> None:
    daemon = Daemon()
    dom0 = daemon.store.caller(0, lambda path, token: None)
    daemon.store.write(dom0, None, b"/libxl/5/device/vbd/1/state", b"1")
    remove_guest(daemon, 5)
    assert daemon.store.nodes[b"/"].names == [b"tool"]


def test_what_a_guest_says_of_its_vm_is_not_believed() -> None:
    daemon = Daemon()
    dom0 = daemon.store.caller(0, lambda path, token: None)
    daemon.store.write(dom0, None, b"/local/domain/5/vm", b"/tool")
    remove_guest(daemon, 5)
    assert b"/tool" in daemon.store.nodes


@pytest.mark.parametrize("kind", ["pvh", "hvm"])
def test_the_other_kinds_have_what_libxl_adds(kind: Any) -> None:
    with EmbeddedXenStore() as store, store.client() as dom0:
        guest = store.add_guest(5, kind=kind, vcpus=2)
        assert dom0.list(b"/local/domain/5/cpu") == [b"0", b"1"]
        assert dom0.read(b"/libxl/5/type") == kind.encode()
        control = dom0.list(guest.home + b"/control")
        assert (b"feature-s3" in control) == (kind == "hvm")
        assert dom0.exists(guest.home + b"/platform/acpi") == (kind == "hvm")
        assert dom0.exists(b"/vm/" + guest.uuid.encode() + b"/rtc") == (kind == "hvm")
        assert dom0.exists(b"/vm/" + guest.uuid.encode() + b"/image") == (kind == "hvm")


def test_watchers_see_the_name_when_a_guest_comes(store: EmbeddedXenStore) -> None:
    dom0 = store.client()
    with dom0.watch(b"@introduceDomain") as watch:
        watch.get(timeout=5)
        store.add_guest(5, name="web")
        watch.get(timeout=5)
        assert dom0.read(b"/local/domain/5/name") == b"web"
        assert dom0.is_domain_introduced(5)


def test_a_guest_can_do_what_it_can_on_a_host(store: EmbeddedXenStore) -> None:
    guest = store.add_guest(5, nodes={b"vm-data/key": b"value"})
    assert (guest.domid, guest.name, guest.home) == (5, b"guest-5", b"/local/domain/5")
    assert repr(guest) == "<Guest 5: b'guest-5'>"
    assert guest.socket_path == store.socket_path(5)
    with guest.client() as client:
        assert client.read(b"vm-data/key") == b"value"
        assert client.read(client.read(b"vm") + b"/uuid") == guest.uuid.encode()
        for path in (b"data/updated", b"attr/eth0/ip", b"control/feature-poweroff", b"error/x"):
            client.write(path, b"1")
        for path in (b"name", b"control/feature-balloon", b"memory/target", b"/vm/x"):
            with pytest.raises(AccessDenied):
                client.write(path, b"1")


def test_a_domain_with_clients_becomes_a_guest(store: EmbeddedXenStore) -> None:
    client = store.client(domid=5)
    with pytest.raises(AccessDenied):
        client.read(b"name")
    store.add_guest(5)
    assert client.read(b"name") == b"guest-5"


@pytest.mark.parametrize(
    ("error", "match", "domid", "options"),
    [
        (InvalidArgument, "dom0 is no guest", 0, {}),
        (InvalidArgument, "invalid domain id 40000", 40000, {}),
        (InvalidArgument, "5 is a guest already", 5, {}),
        (InvalidArgument, "domain 5 has the name b'web' already", 6, {"name": "web"}),
        (InvalidArgument, "a guest with the uuid", 6, {"uuid": UUID}),
        (InvalidArgument, "kind must be one of", 6, {"kind": "xen"}),
        (InvalidArgument, "needs memory", 6, {"vcpus": 0}),
        (InvalidArgument, "needs memory", 6, {"memory": 0}),
        (InvalidPath, "//", 6, {"nodes": {b"/": b""}}),
        (InvalidPath, "not allowed in a path", 6, {"uuid": "é"}),
        (InvalidType, "must be bytes", 6, {"name": 6}),
        (InvalidType, "must be bytes", 6, {"nodes": {b"a": ""}}),
    ],
)
def test_a_guest_that_cannot_be_is_refused(
    store: EmbeddedXenStore, error: type[Exception], match: str, domid: int, options: Any
) -> None:
    store.add_guest(5, name="web", uuid=UUID)
    before = store.tree()
    with pytest.raises(error, match=match):
        store.add_guest(domid, **options)
    assert store.tree() == before
    assert not store.has_domain(6)


def test_nodes_that_the_daemon_refuses_are_an_error_and_nothing_is_made() -> None:
    with EmbeddedXenStore(profile=PROFILE_4_17) as store, store.client() as dom0:
        with pytest.raises(InvalidRequest, match="EINVAL: Write"):
            store.add_guest(5, nodes={b"a" * 2500: b""})
        assert not dom0.exists(b"/local/domain/5")
        assert not dom0.is_domain_introduced(5)


@pytest.mark.parametrize(
    ("nodes", "error"),
    [({"/absolute": b""}, InvalidPath), ({"a//b": b""}, InvalidPath), ({5: b""}, InvalidType)],
)
def test_the_path_of_a_node_is_checked(
    store: EmbeddedXenStore, nodes: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        store.add_guest(5, nodes=nodes)
    assert not store.has_domain(5)


def test_paths_may_be_text(store: EmbeddedXenStore) -> None:
    store.add_guest(5, nodes={"vm-data/key": b"value", "vm-data/key/b": b""})
    assert store.tree("/local/domain/5/vm-data") == {"key": {"": b"value", "b": b""}}
    assert store.tree("/local/domain/5/name") == b"guest-5"
    with pytest.raises(NotFound, match="no node '/nowhere'"):
        store.tree("/nowhere")
    wrong: list[tuple[Any, type[Exception]]]
    wrong = [("relative", NotFound), ("/a//b", InvalidPath), (5, InvalidType)]
    for path, error in wrong:
        with pytest.raises(error):
            store.tree(path)


# Requests of the toolstack


@pytest.fixture
def store() -> Iterator[EmbeddedXenStore]:
    with EmbeddedXenStore() as store:
        yield store


@pytest.fixture
def guest(store: EmbeddedXenStore) -> Guest:
    return store.add_guest(5)


class Agent(threading.Thread):
    """A guest's program that acknowledges requests; with ``b""`` unless told otherwise."""

    def __init__(self, client: Client, answer: bytes | None = b"") -> None:
        super().__init__()
        self.client = client
        self.answer = answer
        self.requests: list[bytes] = []
        self.start()

    def run(self) -> None:
        with self.client.watch(b"control/shutdown") as watch:
            for _ in watch:
                request = self.client.read(b"control/shutdown")
                if request:
                    self.requests.append(request)
                    break
        if self.answer is None:
            self.client.delete(b"control/shutdown")
        else:
            self.client.write(b"control/shutdown", self.answer)


def test_a_guest_that_shuts_down_acknowledges_it(store: EmbeddedXenStore, guest: Guest) -> None:
    agent = Agent(guest.client())
    dom0 = store.client()
    with dom0.watch(b"@releaseDomain") as watch:
        watch.get(timeout=5)
        guest.shutdown(timeout=10)
        watch.get(timeout=5)
        agent.join(10)
        assert agent.requests == [b"poweroff"]
        assert dom0.read(guest.home + b"/control/shutdown") == b""
        assert agent.client.read(b"name") == b"guest-5"  # its nodes stay, as its clients do
        guest.remove()
        watch.get(timeout=5)
    assert not dom0.exists(guest.home)
    with pytest.raises(ConnectionClosed):
        agent.client.read(b"name")


def test_a_guest_that_reboots_is_the_next_domain(store: EmbeddedXenStore) -> None:
    guest = store.add_guest(5, name="web", nodes={b"vm-data/key": b"value"}, vcpus=3)
    store.add_domain(6)
    agent = Agent(guest.client(), None)
    again = guest.reboot(timeout=10)
    agent.join(10)
    assert agent.requests == [b"reboot"]
    assert (again.domid, again.name, again.uuid) == (7, b"web", guest.uuid)
    assert again.client().list(b"cpu") == [b"0", b"1", b"2"]
    assert again.client().read(b"vm-data/key") == b"value"
    assert not store.has_domain(5)


def test_a_guest_that_is_suspended_goes_on(store: EmbeddedXenStore, guest: Guest) -> None:
    agent = Agent(guest.client(), b"suspending")  # any other value will do
    dom0 = store.client()
    with dom0.watch(b"@releaseDomain") as watch:
        watch.get(timeout=5)
        guest.suspend(timeout=10)
        watch.get(timeout=5)
        agent.join(10)
        store.shutdown_domain(5)  # it is announced only once, until it goes on
        with pytest.raises(TimedOut):
            watch.get(timeout=0.05)
        guest.resume()
        store.shutdown_domain(5)
        watch.get(timeout=5)
    assert agent.requests == [b"suspend"]


@pytest.mark.parametrize(
    ("method", "left"),
    [(Guest.shutdown, b"poweroff"), (Guest.reboot, b"reboot"), (Guest.suspend, b"")],
)
def test_a_guest_that_does_not_listen_is_an_error(
    store: EmbeddedXenStore, guest: Guest, method: Any, left: bytes
) -> None:
    with pytest.raises(TimedOut, match=r"guest 5 has not acknowledged b'.*' within 0.05 s"):
        method(guest, timeout=0.05)
    assert store.client().read(guest.home + b"/control/shutdown") == left


def test_an_acknowledgement_at_the_last_moment_counts(
    store: EmbeddedXenStore, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Client.transact

    def late(client: Client, function: Any) -> Any:
        guest.client().write(b"control/shutdown", b"")
        return transact(client, function)

    monkeypatch.setattr(Client, "transact", late)
    guest.suspend(timeout=0.05)


def test_guests_may_be_asked_at_once(store: EmbeddedXenStore) -> None:
    guests = [store.add_guest(domid) for domid in range(1, 9)]
    agents = [Agent(guest.client()) for guest in guests]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda guest: guest.shutdown(timeout=20), guests))
    for agent in agents:
        agent.join(10)
