"""The store against a plain model, and what PROTOCOL rows say of single requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from xsproto.store import C_4_17, C, Caller, Profile, Refused, Store

paths = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(
    lambda parts: b"/" + b"/".join(parts)
)


def nobody(path: bytes, token: bytes) -> None:
    """Hear no event."""


def guest(store: Store, domid: int = 7) -> Caller:
    store.existing.add(domid)
    store.introduce(domid)
    return store.caller(domid, nobody)


class AgainstADict(RuleBasedStateMachine):
    """dom0 and one transaction at a time; the model is a dict, a transaction a copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.root = self.store.caller(0, nobody)
        self.model = {b"/": b"", b"/tool": b"", b"/tool/xenstored": b""}
        self.tx: Any = None
        self.view = self.model

    @rule(path=paths, value=st.binary(max_size=3))
    def write(self, path: bytes, value: bytes) -> None:
        self.store.write(self.root, self.tx, path, value)
        for end in range(1, len(path)):
            if path[end : end + 1] == b"/":
                self.view.setdefault(path[:end], b"")
        self.view[path] = value

    @rule(path=paths)
    def rm(self, path: bytes) -> None:
        parent = path[: path.rindex(b"/")] or b"/"
        if path not in self.view and parent not in self.view:
            with pytest.raises(Refused, match="ENOENT"):
                self.store.rm(self.root, self.tx, path)
            return
        self.store.rm(self.root, self.tx, path)
        for other in list(self.view):
            if other == path or other.startswith(path + b"/"):
                del self.view[other]

    @rule()
    def start(self) -> None:
        if self.tx is None:
            self.tx = self.root.transactions[self.store.start(self.root)]
            self.view = dict(self.model)

    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        if self.tx is not None:
            self.store.end(self.root, self.tx, commit=commit)
            if commit:
                self.model = self.view
            self.view, self.tx = self.model, None

    @invariant()
    def outside_nothing_shows_before_the_commit(self) -> None:
        found = {}
        stack = [b"/"]
        while stack:
            path = stack.pop()
            node = self.store.node(self.root, None, path)
            found[path] = node.value
            names = list(node.children or ())
            assert node.names_size == sum(len(name) + 1 for name in names)
            stack += [path.rstrip(b"/") + b"/" + name for name in names]
        assert found == self.model


TestAgainstADict = AgainstADict.TestCase


@pytest.mark.parametrize("profile", [C, C_4_17], ids=lambda profile: profile.name)
def test_limits_admit_what_the_profile_says(profile: Profile) -> None:
    store = Store(profile)
    caller, root = guest(store), store.caller(0, nobody)
    store.write(root, None, b"/home", b"")
    store.set_perms(root, None, b"/home", [b"n7"])
    for _ in range(profile.limits[b"transactions"]):
        store.start(caller)
    with pytest.raises(Refused, match="ENOSPC"):
        store.start(caller)
    for number in range(profile.limits[b"watches"]):
        store.watch(caller, b"/home", b"%d" % number)
    with pytest.raises(Refused, match=profile.watch_quota_code):
        store.watch(caller, b"/home", b"more")
    with pytest.raises(Refused, match="ENOSPC"):
        store.write(caller, None, b"/home/x", b"v" * 2048)
    store.write(caller, None, b"/home/x", b"v" * 2015)
    store.reset(caller)
    assert caller.domain.watches == caller.domain.transactions == 0


def test_a_domain_owns_at_most_its_quota_of_nodes_and_takes_them_with_it() -> None:
    store = Store(C_4_17)
    caller, root = guest(store), store.caller(0, nobody)
    store.set_perms(root, None, b"/", [b"b0"])
    for number in range(1000):
        store.write(caller, None, b"/dir%d/%d" % (number // 500, number), b"")
        if caller.domain.nodes == 1000:
            break
    with pytest.raises(Refused, match="ENOSPC"):
        store.mkdir(caller, None, b"/more")
    store.release(7)
    assert list(store.node(root, None, b"/").children or ()) == [b"tool"]


@pytest.mark.parametrize(
    ("inside", "outside", "code"),
    [
        ("read /a", "write /a", "EAGAIN"),
        ("read /missing", "write /missing", "EAGAIN"),
        ("write /a", "write /a", "EAGAIN"),
        ("write /a/x", "write /a/y", "EAGAIN"),
        ("read /a", "write /b", None),
    ],
)
def test_conflicts_are_those_of_single_nodes(inside: str, outside: str, code: str | None) -> None:
    store = Store()
    root = store.caller(0, nobody)
    store.write(root, None, b"/a", b"")
    store.write(root, None, b"/b", b"")
    tx = root.transactions[store.start(root)]

    def act(what: str, within: Any) -> None:
        verb, path = what.encode().split()
        if verb == b"write":
            store.write(root, within, path, b"v")
        else:
            try:
                store.node(root, within, path)
            except Refused as refused:
                assert refused.code == "ENOENT"

    act(inside, tx)
    act(outside, None)
    if code is None:
        store.end(root, tx, commit=True)
    else:
        with pytest.raises(Refused, match=code):
            store.end(root, tx, commit=True)


def test_the_root_outlives_the_domain_that_owns_it() -> None:
    store = Store()
    caller, root = guest(store), store.caller(0, nobody)
    store.write(root, None, b"/keep", b"")
    store.set_perms(root, None, b"/", [b"b7", b"r0"])
    store.write(caller, None, b"/own/x", b"")
    store.release(7)
    assert list(store.node(root, None, b"/").children or ()) == [b"tool", b"keep"]
    assert store.perms(root, None, b"/") == ((0, 3), (0, 1))


# What a transaction may not do, and when it is told


def with_guest(profile: Profile = C) -> tuple[Store, Caller, Caller]:
    """A store in which domain 7 may do everything below /g."""
    store = Store(profile)
    domain_7 = guest(store)
    dom0 = store.caller(0, nobody)
    store.write(dom0, None, b"/g", b"")
    store.set_perms(dom0, None, b"/g", [b"b7"])
    return store, dom0, domain_7


def test_a_transaction_that_touches_too_much_fails_at_its_end() -> None:
    store, _, seven = with_guest()
    store.set_quota(b"transaction-nodes", 3, 7)
    tx = seven.transactions[store.start(seven)]
    for number in range(2):
        store.write(seven, tx, b"/g/%d" % number, b"")
    with pytest.raises(Refused, match="ENOSPC"):
        store.write(seven, tx, b"/g/9", b"")
    with pytest.raises(Refused, match="ENOMEM"):
        store.end(seven, tx, commit=True)


@pytest.mark.parametrize(("profile", "room"), [(C, 3), (C_4_17, 2)], ids=["c", "c-4.17"])
def test_a_commit_that_makes_nodes_has_the_room_that_the_profile_says(
    profile: Profile, room: int
) -> None:
    store, _, seven = with_guest(profile)
    store.limits[b"nodes"] = seven.domain.limits[b"nodes"] = 4  # one of them is /g
    for commits, count in ((False, room + 1), (True, room)):
        tx = seven.transactions[store.start(seven)]
        for number in range(count):
            store.write(seven, tx, b"/g/%d" % number, b"")
        if commits:
            store.end(seven, tx, commit=True)
        else:
            with pytest.raises(Refused, match="ENOSPC"):
                store.end(seven, tx, commit=True)
    assert seven.domain.nodes == 1 + room
    while seven.domain.nodes < 4:  # outside of a transaction there is room for more
        store.write(seven, None, b"/g/%d" % seven.domain.nodes, b"")


def test_a_transaction_makes_no_more_nodes_than_its_domain_may_have() -> None:
    store, _, seven = with_guest()
    store.set_quota(b"nodes", 4, 7)
    tx = seven.transactions[store.start(seven)]
    for number in range(3):
        store.write(seven, tx, b"/g/%d" % number, b"")
    with pytest.raises(Refused, match="ENOSPC"):
        store.end(seven, tx, commit=True)
    for number in range(2):
        store.write(seven, None, b"/g/%d" % number, b"")
    tx = seven.transactions[store.start(seven)]
    with pytest.raises(Refused, match="ENOSPC"):
        store.write(seven, tx, b"/g/9", b"")
    with pytest.raises(Refused, match="ENOMEM"):
        store.end(seven, tx, commit=True)


def test_a_domain_that_goes_while_a_transaction_makes_nodes_for_it_fails_the_commit() -> None:
    store, dom0, seven = with_guest()
    tx = dom0.transactions[store.start(dom0)]
    store.write(dom0, tx, b"/g/a", b"")
    store.reset(seven)
    store.existing.discard(7)
    store.release(7)
    with pytest.raises(Refused, match="ENOMEM"):
        store.end(dom0, tx, commit=True)


def test_a_watch_that_is_set_within_the_life_of_a_transaction_tells_of_its_commit() -> None:
    store = Store()
    heard: list[bytes] = []
    dom0 = store.caller(0, lambda path, token: heard.append(path))
    tx = dom0.transactions[store.start(dom0)]
    store.write(dom0, tx, b"/a/b", b"")  # when nobody watches anything
    store.watch(dom0, b"/a", b"token")
    store.end(dom0, tx, commit=True)
    assert heard == [b"/a/b"]


def test_transaction_ids_wrap_and_skip_those_in_use() -> None:
    store, dom0, _ = with_guest()
    first = store.start(dom0)
    dom0.next_id = 0xFFFFFFFF
    assert [store.start(dom0) for _ in range(2)] == [0xFFFFFFFF, first + 1]


@pytest.mark.parametrize("removed", [b"/p", b"/p/c"])
def test_a_lazy_view_that_contradicts_itself_ends_rm_half_way(removed: bytes) -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/p/c", b"")
    tx = dom0.transactions[store.start(dom0)]
    store.node(dom0, tx, removed)
    store.rm(dom0, None, b"/p/c")
    # /p was seen with a child that is seen as missing; or the child, and then /p without it.
    with pytest.raises(Refused, match="EIO"):
        store.rm(dom0, tx, removed)
    with pytest.raises(Refused, match="EAGAIN"):
        store.end(dom0, tx, commit=True)


def test_rm_of_a_child_whose_parent_is_gone_meanwhile_is_refused() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/p/c", b"")
    tx = dom0.transactions[store.start(dom0)]
    store.node(dom0, tx, b"/p/c")
    store.rm(dom0, None, b"/p")
    with pytest.raises(Refused, match="EINVAL"):
        store.rm(dom0, tx, b"/p/c")
    with pytest.raises(Refused, match="EAGAIN"):
        store.end(dom0, tx, commit=True)


def test_a_child_that_is_made_where_it_is_listed_already_is_listed_once() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/p/c", b"")
    tx = dom0.transactions[store.start(dom0)]
    store.node(dom0, tx, b"/p")
    store.rm(dom0, None, b"/p/c")
    store.write(dom0, tx, b"/p/c", b"")
    assert list(store.node(dom0, tx, b"/p").children or ()) == [b"c"]


def test_what_nobody_owns_counts_for_nobody() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n32757"])
    store.rm(dom0, None, b"/a")


def test_what_a_permission_says_of_a_domain_that_came_later_does_not_count() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n0", b"r8"])
    store.existing.add(8)
    store.write(dom0, None, b"/b", b"")  # the store moves on
    store.introduce(8)
    late = store.caller(8, nobody)
    with pytest.raises(Refused, match="EACCES"):
        store.node(late, None, b"/a")


def test_nor_does_what_it_says_of_one_that_is_gone_and_came_again() -> None:
    store, dom0, _ = with_guest()
    first = guest(store, 8)
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n0", b"r8"])
    assert store.node(first, None, b"/a").value == b""
    store.existing.discard(8)
    store.release(8)
    store.write(dom0, None, b"/b", b"")  # the store moves on
    with pytest.raises(Refused, match="EACCES"):
        store.node(guest(store, 8), None, b"/a")


def test_domid_any_means_everyone_where_the_profile_has_that() -> None:
    for profile, allowed in ((C, True), (C_4_17, False)):
        store, dom0, seven = with_guest(profile)
        store.write(dom0, None, b"/a", b"value")
        store.set_perms(dom0, None, b"/a", [b"n0", b"r32757"])
        if allowed:
            assert store.node(seven, None, b"/a").value == b"value"
        else:
            with pytest.raises(Refused, match="EACCES"):
                store.node(seven, None, b"/a")
