"""The store: against a plain model, and what C xenstored does with single requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from xsproto.daemon.store import PROFILE_4_17, PROFILE_CURRENT, Caller, Profile, Store, StoreError
from xsproto.daemon.store.nodes import IGNORE, READ, WRITE, shown_permissions
from xsproto.requests import GetPerms

paths = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(
    lambda parts: b"/" + b"/".join(parts)
)


def nobody(path: bytes, token: bytes) -> None:
    """Take an event and do nothing."""


def guest(store: Store, domid: int = 7) -> Caller:
    store.domains.existing.add(domid)
    store.introduce(domid)
    return store.caller(domid, nobody)


class AgainstADict(RuleBasedStateMachine):
    """Dom0 with one transaction at a time. The model is a dict, and a transaction is its copy."""

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
            with pytest.raises(StoreError, match="ENOENT"):
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


@pytest.mark.parametrize(
    "profile", [PROFILE_CURRENT, PROFILE_4_17], ids=lambda profile: profile.name
)
def test_limits_admit_what_the_profile_says(profile: Profile) -> None:
    store = Store(profile)
    caller, root = guest(store), store.caller(0, nobody)
    store.write(root, None, b"/home", b"")
    store.set_perms(root, None, b"/home", [b"n7"])
    for _ in range(profile.limits[b"transactions"]):
        store.start(caller)
    with pytest.raises(StoreError, match="ENOSPC"):
        store.start(caller)
    for number in range(profile.limits[b"watches"]):
        store.watches.add(caller, b"/home", b"%d" % number)
    with pytest.raises(StoreError, match=profile.watch_quota_code):
        store.watches.add(caller, b"/home", b"more")
    with pytest.raises(StoreError, match="ENOSPC"):
        store.write(caller, None, b"/home/x", b"v" * 2048)
    store.write(caller, None, b"/home/x", b"v" * 2015)
    store.reset(caller)
    assert caller.domain.watches == caller.domain.transactions == 0


def test_a_domain_owns_at_most_its_quota_of_nodes_and_loses_them_at_its_release() -> None:
    store = Store(PROFILE_4_17)
    caller, root = guest(store), store.caller(0, nobody)
    store.set_perms(root, None, b"/", [b"b0"])
    for number in range(1000):
        store.write(caller, None, b"/dir%d/%d" % (number // 500, number), b"")
        if caller.domain.nodes == 1000:
            break
    with pytest.raises(StoreError, match="ENOSPC"):
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
            except StoreError as refused:
                assert refused.code == "ENOENT"

    act(inside, tx)
    act(outside, None)
    if code is None:
        store.end(root, tx, commit=True)
    else:
        with pytest.raises(StoreError, match=code):
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


# Transactions, quotas and permissions


def with_guest(profile: Profile = PROFILE_CURRENT) -> tuple[Store, Caller, Caller]:
    """Return a store, dom0, and domain 7, which owns /g."""
    store = Store(profile)
    domain_7 = guest(store)
    dom0 = store.caller(0, nobody)
    store.write(dom0, None, b"/g", b"")
    store.set_perms(dom0, None, b"/g", [b"b7"])
    return store, dom0, domain_7


def hears(store: Store, domid: int) -> tuple[Caller, list[bytes]]:
    """Return a caller, and the paths of the events that it has got."""
    heard: list[bytes] = []
    return store.caller(domid, lambda path, token: heard.append(path)), heard


def test_a_transaction_that_accesses_too_many_nodes_fails_at_its_commit() -> None:
    store, _, seven = with_guest(PROFILE_4_17)
    store.domains.set_quota(b"transaction-nodes", 3, 7)
    tx = seven.transactions[store.start(seven)]
    for number in range(2):
        store.write(seven, tx, b"/g/%d" % number, b"")
    with pytest.raises(StoreError, match="ENOSPC"):
        store.write(seven, tx, b"/g/9", b"")
    with pytest.raises(StoreError, match="ENOMEM"):
        store.end(seven, tx, commit=True)


@pytest.mark.parametrize(
    ("profile", "room"), [(PROFILE_CURRENT, 3), (PROFILE_4_17, 2)], ids=["c", "c-4.17"]
)
def test_a_commit_that_creates_nodes_has_the_room_of_the_profile(
    profile: Profile, room: int
) -> None:
    store, _, seven = with_guest(profile)
    store.domains.limits[b"nodes"] = seven.domain.limits[b"nodes"] = 4  # one of them is /g
    for commits, count in ((False, room + 1), (True, room)):
        tx = seven.transactions[store.start(seven)]
        for number in range(count):
            store.write(seven, tx, b"/g/%d" % number, b"")
        if commits:
            store.end(seven, tx, commit=True)
        else:
            with pytest.raises(StoreError, match="ENOSPC"):
                store.end(seven, tx, commit=True)
    assert seven.domain.nodes == 1 + room
    while seven.domain.nodes < 4:  # outside of a transaction there is room for more
        store.write(seven, None, b"/g/%d" % seven.domain.nodes, b"")


def test_a_transaction_goes_on_after_a_node_too_many() -> None:
    store, _, seven = with_guest(PROFILE_4_17)
    store.domains.set_quota(b"nodes", 1, 7)
    tx = seven.transactions[store.start(seven)]
    with pytest.raises(StoreError, match="ENOSPC"):
        store.write(seven, tx, b"/g/9", b"")
    store.write(seven, tx, b"/g", b"value")
    store.end(seven, tx, commit=True)
    assert store.node(seven, None, b"/g").value == b"value"


def test_permissions_that_keep_the_owner_count_no_node_in_the_newest_daemon() -> None:
    for profile in (PROFILE_CURRENT, PROFILE_4_17):
        store, _, seven = with_guest(profile)
        store.write(seven, None, b"/g/1/2/3", b"")
        store.domains.set_quota(b"nodes", 2, 7)
        tx = seven.transactions[store.start(seven)]
        with pytest.raises(StoreError, match="ENOSPC"):
            store.write(seven, tx, b"/g/9", b"")
        store.set_perms(seven, tx, b"/g/1", [b"n7"])
        if profile is PROFILE_CURRENT:
            store.end(seven, tx, commit=True)
        else:
            with pytest.raises(StoreError, match="ENOSPC"):
                store.end(seven, tx, commit=True)


def test_a_commit_that_leaves_fewer_nodes_is_never_refused_by_the_newest_daemon() -> None:
    for profile in (PROFILE_CURRENT, PROFILE_4_17):
        store, _, seven = with_guest(profile)
        store.write(seven, None, b"/g/1/2/3", b"")
        store.domains.set_quota(b"nodes", 2, 7)
        tx = seven.transactions[store.start(seven)]
        with pytest.raises(StoreError, match="ENOSPC"):
            store.write(seven, tx, b"/g/9", b"")
        store.rm(seven, tx, b"/g/1/2/3")
        if profile is PROFILE_CURRENT:
            store.end(seven, tx, commit=True)
        else:
            with pytest.raises(StoreError, match="ENOSPC"):
                store.end(seven, tx, commit=True)


@pytest.mark.parametrize("size", [3000, 0], ids=["too large", "too many"])
def test_a_write_refused_for_a_quota_advances_the_generation(size: int) -> None:
    store, dom0, seven = with_guest(PROFILE_4_17)
    guest(store, 8)
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n0", b"r8"])
    store.release(8)
    store.domains.set_quota(b"nodes", 2, 7)
    with pytest.raises(StoreError, match="ENOSPC"):
        store.write(seven, None, b"/g/1/2/3" if size == 0 else b"/g", bytes(size))
    store.introduce(8)
    with pytest.raises(StoreError, match="EACCES"):
        store.node(store.caller(8, nobody), None, b"/a")


def test_a_request_that_creates_several_nodes_needs_room_for_all_in_4_17_only() -> None:
    for profile in (PROFILE_CURRENT, PROFILE_4_17):
        store, _, seven = with_guest(profile)
        store.domains.set_quota(b"nodes", 3 + profile.quota_offsets.get(b"nodes", 0), 7)
        if profile is PROFILE_CURRENT:
            store.write(seven, None, b"/g/1/2/3/4", b"")
            assert seven.domain.nodes == 5
        else:
            with pytest.raises(StoreError, match="ENOSPC"):
                store.write(seven, None, b"/g/1/2/3", b"")
            store.write(seven, None, b"/g/1/2", b"")


def test_a_commit_of_nodes_for_a_domain_that_was_destroyed_fails() -> None:
    for profile, code in ((PROFILE_4_17, "ENOMEM"), (PROFILE_CURRENT, "EAGAIN")):
        store, dom0, _ = with_guest(profile)
        tx = dom0.transactions[store.start(dom0)]
        store.write(dom0, tx, b"/g/a", b"")
        store.destroy(7)
        with pytest.raises(StoreError, match=code):
            store.end(dom0, tx, commit=True)


def test_rm_in_a_transaction_that_accesses_too_many_nodes_stops_half_way() -> None:
    store, dom0, seven = with_guest(PROFILE_4_17)
    store.write(dom0, None, b"/g/a/b/c/d", b"")
    store.domains.set_quota(b"transaction-nodes", 4, 7)
    tx = seven.transactions[store.start(seven)]
    with pytest.raises(StoreError, match="EIO"):
        store.rm(seven, tx, b"/g")
    with pytest.raises(StoreError, match="ENOMEM"):
        store.end(seven, tx, commit=True)


def test_a_watch_set_during_a_transaction_gets_the_events_of_its_commit() -> None:
    store = Store()
    heard: list[bytes] = []
    dom0 = store.caller(0, lambda path, token: heard.append(path))
    tx = dom0.transactions[store.start(dom0)]
    store.write(dom0, tx, b"/a/b", b"")  # there is no watch yet
    store.watches.add(dom0, b"/a", b"token")
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
    # The view has /p with a child that is missing in it; or it has the child, and /p without it.
    with pytest.raises(StoreError, match="EIO"):
        store.rm(dom0, tx, removed)
    with pytest.raises(StoreError, match="EAGAIN"):
        store.end(dom0, tx, commit=True)


def test_rm_of_a_child_whose_parent_was_removed_meanwhile_is_refused() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/p/c", b"")
    tx = dom0.transactions[store.start(dom0)]
    store.node(dom0, tx, b"/p/c")
    store.rm(dom0, None, b"/p")
    with pytest.raises(StoreError, match="EINVAL"):
        store.rm(dom0, tx, b"/p/c")
    with pytest.raises(StoreError, match="EAGAIN"):
        store.end(dom0, tx, commit=True)


def test_a_child_created_where_it_is_listed_already_is_reported_twice() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/p/c", b"")
    store.write(dom0, None, b"/p/d", b"")
    tx = dom0.transactions[store.start(dom0)]
    store.node(dom0, tx, b"/p")
    store.rm(dom0, None, b"/p/c")
    store.write(dom0, tx, b"/p/c", b"")
    store.write(dom0, tx, b"/p/e", b"")
    node = store.node(dom0, tx, b"/p")
    assert node.names == [b"c", b"d", b"c", b"e"]
    assert node.names_size == 8
    store.rm(dom0, tx, b"/p/c")
    store.rm(dom0, tx, b"/p/e")
    assert store.node(dom0, tx, b"/p").names == [b"d", b"c"]
    with pytest.raises(StoreError, match="EIO"):  # the second one does not exist
        store.rm(dom0, tx, b"/p")
    with pytest.raises(StoreError, match="EAGAIN"):
        store.end(dom0, tx, commit=True)


def test_domid_any_owns_nothing() -> None:
    for profile, code in ((PROFILE_CURRENT, "ENOMEM"), (PROFILE_4_17, "ENOENT")):
        store, dom0, _ = with_guest(profile)
        store.write(dom0, None, b"/a", b"")
        with pytest.raises(StoreError, match=code):
            store.set_perms(dom0, None, b"/a", [b"n32757"])
        store.set_perms(dom0, None, b"/a", [b"n0", b"n32757"])


def test_a_commit_that_gives_a_node_to_a_destroyed_domain_counts_it_for_no_domain() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/a", b"")
    tx = dom0.transactions[store.start(dom0)]
    store.set_perms(dom0, tx, b"/a", [b"n7"])
    store.destroy(7)
    store.end(dom0, tx, commit=True)
    store.rm(dom0, None, b"/a")


def test_an_entry_for_a_domain_that_was_introduced_later_does_not_count() -> None:
    store, dom0, _ = with_guest()
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n0", b"r8"])
    store.domains.existing.add(8)
    store.write(dom0, None, b"/b", b"")  # advances the generation
    store.introduce(8)
    late = store.caller(8, nobody)
    with pytest.raises(StoreError, match="EACCES"):
        store.node(late, None, b"/a")


def test_of_nodes_that_are_created_the_one_above_is_the_newest() -> None:
    store = Store()
    root = store.caller(0, nobody)
    store.add_domain(7)
    store.set_perms(root, None, b"/", [b"r0", b"n7"])
    store.write(root, None, b"/a/b/c", b"")
    generations = [store.nodes[path].generation for path in (b"/a/b/c", b"/a/b", b"/a", b"/")]
    assert generations == sorted(set(generations))
    # So an entry of the node above still counts for a domain that is known right afterwards.
    store.domains.by_id.clear()
    store.domains.require_existing(7)
    with pytest.raises(StoreError, match="EACCES"):
        store.node(guest(store), None, b"/")


def test_permissions_of_special_paths_do_not_advance_the_generation_in_4_17() -> None:
    for profile in (PROFILE_CURRENT, PROFILE_4_17):
        store, dom0, _ = with_guest(profile)
        guest(store, 8)
        store.destroy(8)
        store.domains.existing.add(8)
        store.write(dom0, None, b"/a", b"")
        store.set_perms(dom0, None, b"/a", [b"n0", b"r8"])
        store.destroy(8)
        store.set_perms(dom0, None, b"@releaseDomain", [b"n0"])
        late = guest(store, 8)  # of the same generation as /a, if nothing has changed since
        if profile is PROFILE_4_17:
            assert store.node(late, None, b"/a").value == b""
        else:
            with pytest.raises(StoreError, match="EACCES"):
                store.node(late, None, b"/a")


def test_an_entry_for_an_earlier_domain_with_the_same_id_does_not_count() -> None:
    store, dom0, _ = with_guest()
    first = guest(store, 8)
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n0", b"r8"])
    assert store.node(first, None, b"/a").value == b""
    store.destroy(8)
    store.write(dom0, None, b"/b", b"")  # advances the generation
    with pytest.raises(StoreError, match="EACCES"):
        store.node(guest(store, 8), None, b"/a")


def test_domid_any_means_every_domain_if_the_profile_has_that() -> None:
    for profile, allowed in ((PROFILE_CURRENT, True), (PROFILE_4_17, False)):
        store, dom0, seven = with_guest(profile)
        store.write(dom0, None, b"/a", b"value")
        store.set_perms(dom0, None, b"/a", [b"n0", b"r32757"])
        if allowed:
            assert store.node(seven, None, b"/a").value == b"value"
        else:
            with pytest.raises(StoreError, match="EACCES"):
                store.node(seven, None, b"/a")


def test_the_first_entry_for_a_domain_decides() -> None:
    store, dom0, seven = with_guest()
    guest(store, 8)
    store.write(dom0, None, b"/a", b"")
    for texts, allowed in (
        ([b"n0", b"n8", b"r7", b"n7"], True),
        ([b"n0", b"n7", b"r7"], False),
        ([b"n0", b"n32757", b"r7"], False),
    ):
        store.set_perms(dom0, None, b"/a", texts)
        if allowed:
            store.node(seven, None, b"/a")
        else:
            with pytest.raises(StoreError, match="EACCES"):
                store.node(seven, None, b"/a")


@pytest.mark.parametrize(
    "profile", [PROFILE_CURRENT, PROFILE_4_17], ids=lambda profile: profile.name
)
def test_entries_for_an_earlier_domain_with_the_same_id_give_no_events(profile: Profile) -> None:
    store, dom0, _ = with_guest(profile)
    guest(store, 8)
    for path in (b"/a", b"/b"):
        store.write(dom0, None, path, b"")
        store.set_perms(dom0, None, path, [b"n0", b"r8"])
    store.release(8)
    store.write(dom0, None, b"/c", b"")  # advances the generation
    store.introduce(8)
    late, heard = hears(store, 8)
    store.watches.add(late, b"/a", b"token")
    store.watches.add(late, b"/b", b"token")
    tx = dom0.transactions[store.start(dom0)]
    store.write(dom0, tx, b"/a", b"")
    store.end(dom0, tx, commit=True)
    store.set_perms(dom0, None, b"/b", [b"n0"])
    assert heard == []


def test_permissions_are_formatted_with_at_most_ten_characters_of_a_domain_id() -> None:
    shown = shown_permissions(((0, READ), (-(1 << 31), 0)))
    assert GetPerms(b"/").encode_reply(shown) == b"r0\0n-214748364\0"


# Domains


def test_a_destroyed_domain_loses_its_nodes_whether_introduced_or_not() -> None:
    store, dom0, _ = with_guest()
    listener, heard = hears(store, 0)
    store.watches.add(listener, b"@releaseDomain", b"token")
    store.domains.existing.add(8)
    store.write(dom0, None, b"/a/b", b"")
    store.set_perms(dom0, None, b"/a", [b"n8"])
    store.destroy(8)
    assert list(store.node(dom0, None, b"/").children or ()) == [b"tool", b"g"]
    assert heard == []
    store.destroy(7)
    assert list(store.node(dom0, None, b"/").children or ()) == [b"tool"]
    assert heard == [b"@releaseDomain"]


def test_the_root_and_special_paths_of_a_destroyed_domain_become_dom0s() -> None:
    for profile in (PROFILE_CURRENT, PROFILE_4_17):
        store, dom0, _ = with_guest(profile)
        store.set_perms(dom0, None, b"/", [b"r7", b"w7"])
        store.set_perms(dom0, None, b"@releaseDomain", [b"w7"])
        store.destroy(7)
        perms = store.node(dom0, None, b"/").perms
        assert perms == (((0, READ),) if profile is PROFILE_CURRENT else ((0, READ), (7, WRITE)))
        assert store.node(dom0, None, b"@releaseDomain").perms == ((0, WRITE),)


def test_the_newest_daemon_removes_the_entries_of_a_destroyed_domain() -> None:
    for profile, expected in (
        (PROFILE_CURRENT, ((0, 0), (8, READ))),
        (PROFILE_4_17, ((0, 0), (7, READ), (8, READ))),
    ):
        store, dom0, _ = with_guest(profile)
        guest(store, 8)
        store.write(dom0, None, b"/a", b"")
        store.set_perms(dom0, None, b"/a", [b"n0", b"r7", b"r8"])
        tx = dom0.transactions[store.start(dom0)]
        before = store.node(dom0, tx, b"/a").perms
        store.destroy(7)
        assert store.node(dom0, None, b"/a").perms == expected
        assert store.node(dom0, tx, b"/a").perms == before
        store.end(dom0, tx, commit=True)  # to remove entries is no conflict


def test_a_refused_introduction_removes_the_entries_of_the_domain() -> None:
    for profile, kept in ((PROFILE_CURRENT, ()), (PROFILE_4_17, ((9, READ | IGNORE),))):
        store, dom0, _ = with_guest(profile)
        store.write(dom0, None, b"/a", b"")
        for path in (b"/a", b"@releaseDomain"):
            store.set_perms(dom0, None, path, [b"n0", b"r9"])
        with pytest.raises(StoreError, match="EINVAL"):
            store.introduce(9)
        assert store.node(dom0, None, b"/a").perms == ((0, 0), *kept)
        assert store.node(dom0, None, b"@releaseDomain").perms == ((0, 0),)


def test_an_introduction_without_an_event_channel_leaves_a_known_domain_known() -> None:
    store, dom0, _ = with_guest()
    store.domains.existing.add(8)
    store.write(dom0, None, b"/a", b"")
    store.set_perms(dom0, None, b"/a", [b"n8"])
    with pytest.raises(StoreError, match="EINVAL"):
        store.introduce(8, reachable=False)
    assert store.node(dom0, None, b"/a").perms == ((8, 0),)
    assert not store.domains.is_introduced(8)


def test_a_target_is_kept_as_long_as_the_domain_that_has_its_rights() -> None:
    store, dom0, _ = with_guest()
    listener, heard = hears(store, 0)
    store.watches.add(listener, b"@releaseDomain", b"token")
    for domid in (8, 9):
        guest(store, domid)
        store.domains.set_target(domid, 7)
    store.write(dom0, None, b"/g/a", b"value")
    store.destroy(7)
    store.destroy(8)
    assert heard == [b"@releaseDomain"]
    assert store.domains.is_introduced(7)
    assert store.node(store.caller(9, nobody), None, b"/g/a").value == b"value"
    for refused in (store.introduce, store.release):
        with pytest.raises(StoreError, match="EINVAL"):
            refused(7)
    store.destroy(9)
    assert heard == [b"@releaseDomain"] * 3
    assert not store.domains.is_introduced(7)
    with pytest.raises(StoreError, match="ENOENT"):
        store.node(dom0, None, b"/g")


def test_special_watches_with_a_depth_get_the_domain_id() -> None:
    store, _, _ = with_guest()
    listener, heard = hears(store, 0)
    for path, depth in (
        *((b"@releaseDomain", 0), (b"@releaseDomain", 1), (b"@releaseDomain", None)),
        *((b"@releaseDomain/7", None), (b"@releaseDomain/8", 0), (b"@introduceDomain", 2)),
    ):
        store.watches.add(listener, path, b"%r" % depth, depth)
    curious, nothing = hears(store, 7)
    store.watches.add(curious, b"@introduceDomain", b"token", 1)
    guest(store, 8)
    assert heard == [b"@introduceDomain/8"]
    assert nothing == []
    heard.clear()
    store.shutdown(8)
    assert heard == [b"@releaseDomain/8", b"@releaseDomain/8", b"@releaseDomain"]
    heard.clear()
    store.destroy(8)
    assert heard == [b"@releaseDomain", b"@releaseDomain/8", b"@releaseDomain/8"]


def test_special_paths_are_nodes_of_the_newest_daemon() -> None:
    store, dom0, seven = with_guest()
    listener, heard = hears(store, 7)
    store.watches.add(listener, b"@introduceDomain", b"token")
    store.set_perms(dom0, None, b"@introduceDomain", [b"n0", b"r7"])
    assert heard == [b"@introduceDomain"]
    tx = dom0.transactions[store.start(dom0)]
    store.node(dom0, tx, b"@introduceDomain")
    store.set_perms(dom0, None, b"@introduceDomain", [b"n0"])
    with pytest.raises(StoreError, match="EAGAIN"):
        store.end(dom0, tx, commit=True)
    with pytest.raises(StoreError, match="EACCES"):
        store.node(seven, None, b"@introduceDomain")
    # A caller that may read the root gets the events, whatever the special path's permissions are.
    heard.clear()
    store.set_perms(dom0, None, b"/", [b"r0"])
    guest(store, 8)
    assert heard == [b"@introduceDomain"]


def test_a_shorter_path_max_holds_for_existing_nodes_as_well() -> None:
    for profile in (PROFILE_CURRENT, PROFILE_4_17):
        store, dom0, seven = with_guest(profile)
        store.write(seven, None, b"/g/long", b"")
        store.watches.add(seven, b"/g/long", b"token")
        store.domains.set_quota(b"path-max", 4, 7)
        store.domains.set_quota(b"path-max", 4, 0)
        with pytest.raises(StoreError, match="EINVAL"):
            store.node(seven, None, b"/g/long")
        if profile is PROFILE_CURRENT:  # it checks the path of an UNWATCH as well
            with pytest.raises(StoreError, match="EINVAL"):
                store.watches.remove(seven, b"/g/long", b"token")
        else:
            store.watches.remove(seven, b"/g/long", b"token")
        if profile is PROFILE_4_17:
            with pytest.raises(StoreError, match="EINVAL"):
                store.node(dom0, None, b"/g/long")
        else:
            store.node(dom0, None, b"/g/long")
