"""What takes more than one request, driven by hand over a tree in memory: no connection at all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsproto.clients.operations import (
    LIST_ATTEMPTS,
    MISSING,
    Node,
    Operation,
    Walk,
    exists,
    get_feature,
    get_quota,
    list_children,
    read_many,
    resume,
)
from xsproto.errors import (
    AccessDenied,
    ConnectionClosed,
    InvalidType,
    NotFound,
    NotSupported,
    RemoteProtocolError,
    TooBig,
)
from xsproto.requests import Directory, DirectoryPart, GetFeature, GetQuota, Part, Read, Request
from xsproto.wire import PAYLOAD_MAX

Answer = Callable[[Request[Any]], Any]


def perform(operation: Operation[Any], answer: Answer) -> Any:
    """Drive `operation` to its end; `answer` gives a value, or an error as an object."""
    result: Any = None
    while True:
        try:
            step = resume(operation, result)
        except StopIteration as stop:
            return stop.value
        result = answer(step) if isinstance(step, Request) else [answer(one) for one in step]


class Tree:
    """Nodes by their paths. Children are listed in the order of their making."""

    def __init__(self, nodes: dict[bytes, bytes]) -> None:
        self.nodes = nodes
        self.unreadable: set[bytes] = set()  # neither value nor children may be read
        self.valueless: set[bytes] = set()  # the value may not be read
        self.parts = True  # whether the daemon knows DIRECTORY_PART
        self.part_size = 16
        self.generation = 1
        self.asked: list[Request[Any]] = []

    def children(self, path: bytes) -> list[bytes]:
        top = path.rstrip(b"/") + b"/"
        return [
            other[len(top) :]
            for other in self.nodes
            if other != b"/" and other.startswith(top) and b"/" not in other[len(top) :]
        ]

    def answer(self, request: Request[Any]) -> Any:
        self.asked.append(request)
        path = request.path  # type: ignore[attr-defined]
        if path not in self.nodes:
            return NotFound("no such node", path=path)
        if path in self.unreadable or (path in self.valueless and isinstance(request, Read)):
            return AccessDenied("not for you", path=path)
        match request:
            case Read():
                return self.nodes[path]
            case Directory():
                return self._limited(request)
            case DirectoryPart():
                return self._part(request)
        raise AssertionError(request)

    def _limited(self, request: Directory) -> Any:
        names = self.children(request.path)
        fits = len(request.encode_reply(names)) <= PAYLOAD_MAX
        return names if fits else TooBig("too many", path=request.path)

    def _part(self, request: DirectoryPart) -> Any:
        if not self.parts:
            return NotSupported("never heard of it")
        # As C xenstored does: from that byte on, be it in the middle of a name or at its end.
        whole = Directory(request.path).encode_reply(self.children(request.path))
        names = whole[request.offset :].split(b"\0")[:-1]
        part = names[: self.part_size]
        reply = Part(self.generation, part, final=len(part) == len(names))
        return request.parse_reply(request.encode_reply(reply))


def tree_of(*paths: bytes) -> Tree:
    return Tree({path: b"value of " + path for path in paths})


def big_directory() -> Tree:
    """A directory whose 160 children do not fit a packet."""
    children = [b"/big/a-child-with-a-long-name-%d" % number for number in range(160)]
    return tree_of(b"/", b"/big", *children)


def walked(
    tree: Tree,
    top: bytes = b"/",
    *,
    topdown: bool = True,
    seen: Callable[[Node], object] = id,
    answer: Answer | None = None,
) -> list[Node]:
    """The nodes as they come; `seen` may change each before the walk goes on."""
    walk = Walk(top, topdown=topdown)
    nodes = []
    while (step := walk.advance()) is not None:
        if isinstance(step, Node):
            nodes.append(step._replace(children=list(step.children)))
            seen(step)
        else:
            perform(step, answer or tree.answer)
    assert walk.advance() is None
    return nodes


def plain_walk(tree: Tree, top: bytes, *, topdown: bool) -> list[Node]:
    """The same, as one would write it down."""
    children = [] if top in tree.unreadable else tree.children(top)
    hidden = top in tree.unreadable | tree.valueless
    node = Node(top, None if hidden else tree.nodes[top], children)
    below = [
        other
        for name in children
        for other in plain_walk(tree, top.rstrip(b"/") + b"/" + name, topdown=topdown)
    ]
    return [node, *below] if topdown else [*below, node]


# The driver's part: an operation is sent values, and has errors thrown in


def test_an_operation_is_sent_values_and_lists_and_has_errors_thrown_in() -> None:
    def operation() -> Operation[Any]:
        value = yield from Read(b"/a")
        try:
            yield from Read(b"/b")
        except NotFound as error:
            several = yield [Read(b"/c"), Read(b"/d")]
            return value, error, several

    steps = operation()
    missing = NotFound("/b")
    assert resume(steps, None) == Read(b"/a")
    assert resume(steps, b"value") == Read(b"/b")
    assert resume(steps, missing) == [Read(b"/c"), Read(b"/d")]
    with pytest.raises(StopIteration) as caught:
        resume(steps, [b"c", missing])
    assert caught.value.value == (b"value", missing, [b"c", missing])


# Listing children: in parts, where they do not fit a packet


def test_children_that_fit_are_listed_by_one_request() -> None:
    tree = tree_of(b"/", b"/a", b"/b")
    assert perform(list_children(b"/"), tree.answer) == [b"a", b"b"]
    assert tree.asked == [Directory(b"/")]


@given(st.integers(2, 180))
def test_children_that_do_not_fit_are_listed_part_by_part(part_size: int) -> None:
    tree = big_directory()
    tree.part_size = part_size
    assert perform(list_children(b"/big"), tree.answer) == tree.children(b"/big")
    assert len(tree.asked) == 1 + -(-160 // part_size)


@given(st.sets(st.integers(2, 60), max_size=20))
def test_a_list_that_changes_between_two_parts_is_begun_anew(changes: set[int]) -> None:
    tree = big_directory()
    tree.part_size = 10

    def answer(request: Request[Any]) -> Any:
        if len(tree.asked) in changes:
            tree.generation += 1
            del tree.nodes[b"/big/" + tree.children(b"/big")[0]]
            tree.nodes[b"/big/other-%d" % tree.generation] = b""
        return tree.answer(request)

    # The list is one that there was, not pieced together from several.
    assert perform(list_children(b"/big"), answer) == tree.children(b"/big")


def test_a_list_that_never_keeps_still_is_given_up() -> None:
    tree = big_directory()

    def answer(request: Request[Any]) -> Any:
        tree.generation += 1
        return tree.answer(request)

    with pytest.raises(TooBig, match=f"b'/big' changed {LIST_ATTEMPTS} times") as caught:
        perform(list_children(b"/big"), answer)
    assert (caught.value.path, caught.value.code) == (b"/big", "E2BIG")
    assert len(tree.asked) == 1 + 2 * LIST_ATTEMPTS


def test_a_list_that_keeps_still_at_the_last_attempt_is_not_given_up() -> None:
    tree = big_directory()

    def answer(request: Request[Any]) -> Any:
        tree.generation += len(tree.asked) < 2 * LIST_ATTEMPTS
        return tree.answer(request)

    assert perform(list_children(b"/big"), answer) == tree.children(b"/big")


def test_a_daemon_without_directory_part_says_that_it_is_too_big() -> None:
    tree = big_directory()
    tree.parts = False
    with pytest.raises(TooBig, match="too many"):
        perform(list_children(b"/big"), tree.answer)


def test_a_listing_that_fails_leaves_nothing_to_the_garbage_collector() -> None:
    def answer(request: Request[Any]) -> Any:
        return TooBig("too many") if isinstance(request, Directory) else NotSupported("no")

    gc.collect()
    gc.disable()
    try:
        with suppress(TooBig):
            perform(list_children(b"/big"), answer)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_what_else_goes_wrong_while_listing_is_told() -> None:
    with pytest.raises(NotFound):
        perform(list_children(b"/none"), tree_of(b"/").answer)

    tree = big_directory()

    def answer(request: Request[Any]) -> Any:
        if len(tree.asked) == 3:
            del tree.nodes[b"/big"]
        return tree.answer(request)

    with pytest.raises(NotFound):
        perform(list_children(b"/big"), answer)


# Reading


def test_a_node_exists_if_it_can_be_read_and_not_if_it_is_missing() -> None:
    tree = tree_of(b"/", b"/a", b"/secret")
    tree.unreadable.add(b"/secret")
    assert perform(exists(b"/a"), tree.answer) is True
    assert perform(exists(b"/b"), tree.answer) is False
    with pytest.raises(AccessDenied):
        perform(exists(b"/secret"), tree.answer)


def test_many_nodes_are_read_at_once_and_each_has_its_own_outcome() -> None:
    tree = tree_of(b"/a", b"/b", b"/secret")
    tree.unreadable.add(b"/secret")
    paths = [b"/a", b"/none", b"/secret", b"/b"]
    first, missing, secret, last = perform(read_many(iter(paths), MISSING), tree.answer)
    assert (first, last) == (b"value of /a", b"value of /b")
    assert isinstance(missing, NotFound)
    assert isinstance(secret, AccessDenied)
    assert resume(read_many(paths, MISSING), None) == [Read(path) for path in paths]


def test_a_default_stands_for_missing_nodes_only() -> None:
    tree = tree_of(b"/a", b"/secret")
    tree.unreadable.add(b"/secret")
    value, missing, secret = perform(read_many([b"/a", b"/none", b"/secret"], None), tree.answer)
    assert (value, missing) == (b"value of /a", None)
    assert isinstance(secret, AccessDenied)


def test_the_end_of_the_connection_is_no_value() -> None:
    closed = ConnectionClosed("gone")
    with pytest.raises(ConnectionClosed) as caught:
        perform(read_many([b"/a", b"/b"], None), lambda one: b"" if one == Read(b"/a") else closed)
    assert caught.value is closed


@pytest.mark.parametrize("paths", [b"/a", "/a"])
def test_a_single_path_is_not_many(paths: Any) -> None:
    with pytest.raises(InvalidType, match=f"not one: {paths!r}"):
        perform(read_many(paths, MISSING), tree_of().answer)


# Walking


def trees() -> st.SearchStrategy[Tree]:
    names = st.sampled_from([b"a", b"b", b"c", b"a-b"])
    paths = st.lists(st.lists(names, min_size=1, max_size=4), max_size=30)
    return paths.map(lambda found: grown(found))


def grown(found: Iterable[list[bytes]]) -> Tree:
    """A tree with these nodes and all their parents."""
    nodes = {b"/": b"root"}
    for parts in found:
        for depth in range(1, len(parts) + 1):
            path = b"/" + b"/".join(parts[:depth])
            nodes.setdefault(path, b"value of " + path)
    return Tree(nodes)


@given(trees(), st.booleans(), st.data())
def test_a_walk_gives_what_a_plain_recursion_would(
    tree: Tree, topdown: bool, data: st.DataObject
) -> None:
    nodes = st.sets(st.sampled_from(sorted(tree.nodes)), max_size=4)
    top = data.draw(st.sampled_from(sorted(tree.nodes)), label="top")
    tree.unreadable = data.draw(nodes, label="unreadable") - {top}
    tree.valueless = data.draw(nodes, label="valueless")
    expected = plain_walk(tree, top, topdown=topdown)
    assert walked(tree, top, topdown=topdown) == expected


@pytest.mark.parametrize("topdown", [True, False])
def test_a_walk_asks_for_many_nodes_at_once_and_for_none_twice(topdown: bool) -> None:
    tree = grown([[b"%d" % number] for number in range(70)])
    walk = Walk(b"/", topdown=topdown)
    batches = []
    while (step := walk.advance()) is not None:
        if not isinstance(step, Node):
            before = len(tree.asked)
            perform(step, tree.answer)
            batches.append(len(tree.asked) - before)
    assert batches == [2 * count for count in (1, Walk.BATCH, Walk.BATCH, 70 - 2 * Walk.BATCH)]
    assert len({(type(request), repr(request)) for request in tree.asked}) == len(tree.asked)


def test_from_the_top_down_the_user_decides_what_is_walked_next() -> None:
    tree = grown([[b"a", b"b"], [b"c", b"d"], [b"e", b"f"]])

    def prune(node: Node) -> None:
        if node.path == b"/":
            node.children.remove(b"c")
            node.children.reverse()

    paths = [node.path for node in walked(tree, seen=prune)]
    assert paths == [b"/", b"/e", b"/e/f", b"/a", b"/a/b"]
    # No request went out for what was pruned: it may be much.
    assert not [request for request in tree.asked if b"c" in request.path]  # type: ignore[attr-defined]


def test_nothing_is_asked_below_a_node_before_the_user_has_seen_it() -> None:
    tree = grown([[b"a", b"b"]])
    walk = Walk(b"/a")
    while not isinstance(step := walk.advance(), Node):
        assert step is not None
        perform(step, tree.answer)
    assert {request.path for request in tree.asked} == {b"/a"}  # type: ignore[attr-defined]


def test_from_the_bottom_up_children_come_before_their_parent_so_that_it_can_be_removed() -> None:
    tree = grown([[b"a", b"b"], [b"a", b"c"], [b"d"]])

    def remove(node: Node) -> None:
        assert not tree.children(node.path)
        del tree.nodes[node.path]

    paths = [node.path for node in walked(tree, topdown=False, seen=remove)]
    assert paths == [b"/a/b", b"/a/c", b"/a", b"/d", b"/"]


@given(trees(), st.booleans(), st.integers(1, 12), st.data())
def test_a_node_that_vanishes_is_left_out_with_all_below_it(
    tree: Tree, topdown: bool, when: int, data: st.DataObject
) -> None:
    whole = {node.path for node in plain_walk(tree, b"/", topdown=topdown)}
    victim = data.draw(st.sampled_from(sorted(whole)))
    if victim == b"/":
        return
    requests = 0

    def answer(request: Request[Any]) -> Any:
        nonlocal requests
        requests += 1
        if requests == when + 2:  # not yet while the top is asked for
            for path in list(tree.nodes):
                if path == victim or path.startswith(victim + b"/"):
                    del tree.nodes[path]
        return tree.answer(request)

    paths = [node.path for node in walked(tree, topdown=topdown, answer=answer)]
    assert len(paths) == len(set(paths))
    assert set(tree.nodes) <= set(paths) <= whole


@pytest.mark.parametrize("topdown", [True, False])
def test_a_child_that_is_gone_before_it_is_asked_for_is_left_out(topdown: bool) -> None:
    tree = grown([[b"a"], [b"b"], [b"c"]])
    walk = Walk(b"/", topdown=topdown)
    perform(walk.advance(), tree.answer)  # type: ignore[arg-type]
    del tree.nodes[b"/b"]
    paths = []
    while (step := walk.advance()) is not None:
        if isinstance(step, Node):
            paths.append(step.path)
        else:
            perform(step, tree.answer)
    assert sorted(paths) == [b"/", b"/a", b"/c"]


@pytest.mark.parametrize("topdown", [True, False])
def test_a_missing_top_is_an_error(topdown: bool) -> None:
    with pytest.raises(NotFound):
        walked(tree_of(b"/"), b"/none", topdown=topdown)


def test_an_unreadable_node_has_no_value_and_no_children() -> None:
    tree = grown([[b"a", b"b"], [b"c"]])
    tree.unreadable.add(b"/a")
    assert Node(b"/a", None, []) in walked(tree)
    assert b"/a/b" not in {node.path for node in walked(tree)}


def test_a_top_that_may_not_be_read_at_all_is_an_error() -> None:
    tree = grown([[b"a"]])
    tree.unreadable.add(b"/")
    with pytest.raises(AccessDenied):
        walked(tree)


def test_a_top_whose_value_alone_is_secret_is_walked() -> None:
    tree = grown([[b"a"]])
    tree.valueless.add(b"/")
    assert walked(tree)[0] == Node(b"/", None, [b"a"])


@pytest.mark.parametrize("name", [b"", b"a/b", b"a b", b"/", b"\xff", b"a\n", b"\x1b[2J" * 99])
@pytest.mark.parametrize("top", [b"/", "/"])
def test_a_child_that_no_node_can_be_is_the_daemons_mistake(name: bytes, top: Any) -> None:
    def answer(request: Request[Any]) -> Any:
        return [b"@good-1", name] if isinstance(request, Directory) else b""

    walk: Any = Walk(top)
    step = walk.advance()
    with pytest.raises(RemoteProtocolError, match="no node can have") as caught:
        perform(step, answer)
    assert len(str(caught.value)) < 200
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("path", [b"/", b"/a"])
def test_every_other_error_ends_the_walk(path: bytes, index: int) -> None:
    tree = grown([[b"a"], [b"b"]])
    gone = ConnectionClosed("gone")

    def answer(request: Request[Any]) -> Any:
        hit = request == (Read(path), Directory(path))[index]
        return gone if hit else tree.answer(request)

    walk = Walk(b"/")
    with pytest.raises(ConnectionClosed):  # noqa: PT012 - which step it is, is the walk's own
        while (step := walk.advance()) is not None:
            if not isinstance(step, Node):
                perform(step, answer)


@pytest.mark.parametrize("topdown", [True, False])
def test_a_walk_lists_big_directories_in_parts(topdown: bool) -> None:
    tree = big_directory()
    nodes = walked(tree, topdown=topdown)
    assert nodes == plain_walk(tree, b"/", topdown=topdown)
    assert len(nodes) == 162


def test_a_walk_through_a_big_directory_that_cannot_be_listed_is_an_error() -> None:
    tree = big_directory()
    tree.parts = False
    with pytest.raises(TooBig):
        walked(tree)


def test_a_big_directory_that_vanishes_while_it_is_listed_is_left_out() -> None:
    tree = big_directory()

    def answer(request: Request[Any]) -> Any:
        if isinstance(request, DirectoryPart) and request.offset:
            return NotFound("gone")
        return tree.answer(request)

    assert [node.path for node in walked(tree, answer=answer)] == [b"/"]


# Requests whose payload must be empty: oxenstored does not look at one until more bytes come


@pytest.mark.parametrize(
    ("operation", "request_"),
    [(lambda: get_feature(None), GetFeature()), (lambda: get_quota(None, None), GetQuota())],
)
def test_a_request_without_a_payload_has_a_harmless_one_behind_it(
    operation: Callable[[], Operation[Any]], request_: Request[Any]
) -> None:
    steps = operation()
    several = resume(steps, None)
    assert isinstance(several, list)
    assert several[0] == request_
    assert all(isinstance(other, Read) for other in several[1:])
    assert len(several) > 1
    with pytest.raises(StopIteration) as caught:
        resume(steps, [7, AccessDenied("what the other says does not matter")])
    assert caught.value.value == 7


def test_a_refused_request_without_a_payload_is_an_error() -> None:
    with pytest.raises(NotSupported):
        perform(get_feature(None), lambda _: NotSupported("no"))


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        (get_feature(5), GetFeature(5)),
        (get_quota(b"nodes", None), GetQuota(b"nodes")),
        (get_quota(b"nodes", 5), GetQuota(b"nodes", 5)),
        (get_quota(None, 5), GetQuota(None, 5)),
    ],
)
def test_a_request_with_a_payload_goes_alone(
    operation: Operation[Any], request_: Request[Any]
) -> None:
    assert resume(operation, None) == request_
    with pytest.raises(StopIteration) as caught:
        resume(operation, 7)
    assert caught.value.value == 7
