"""Conversations as bytes, and the strategies that make them: they reach what matters."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from xsproto import ClientConnection, Daemon, Event, Exchange, WatchFired
from xsproto.daemon import Connection
from xsproto.errors import LocalProtocolError, NotFound, TransactionEnded, XenStoreError
from xsproto.requests import TransactionEnd, parse_request
from xsproto.testing.conversations import CLIENTS, Act, Step, decode, domain_of, encode
from xsproto.testing.fuzz import fuzz_client, fuzz_daemon, fuzz_server, fuzz_session
from xsproto.testing.strategies import conversations_with_client, conversations_with_daemon
from xsproto.wire import Op, Packet, PacketReader

#: What was seen of a conversation, as words.
Seen = set[str]


@given(
    st.lists(
        st.builds(Step, st.sampled_from(Act), st.integers(0, CLIENTS - 1), st.binary(max_size=9))
    )
)
def test_a_conversation_comes_back(steps: list[Step]) -> None:
    assert decode(encode(steps)) == steps


@given(st.binary())
def test_any_bytes_are_a_conversation(data: bytes) -> None:
    steps = decode(data)
    assert decode(encode(steps)) == steps


def test_what_is_too_long_for_a_step_is_several() -> None:
    data = bytes(100_000)
    first, second = decode(encode([Step(Act.SEND, 3, data)]))
    assert first.data + second.data == data
    assert (second.act, second.client) == (Act.SEND, 3)


def test_data_that_ends_too_early_ends_there() -> None:
    assert decode(encode([Step(Act.RECEIVE, 1, b"abc")])[:-1]) == [Step(Act.RECEIVE, 1, b"ab")]
    assert decode(b"\0\0") == []


def test_two_clients_are_of_a_domain() -> None:
    assert [domain_of(client) for client in range(5)] == [0, 0, 1, 1, 2]


def seen_of(
    strategy: st.SearchStrategy[list[Step]], look: Callable[[list[Step]], Seen], wanted: Seen
) -> Seen:
    """What is seen of examples: of fifty, and of more if those do not show all that is wanted.

    Which these are depends on the modules that were imported: hypothesis takes constants from them.
    """
    seen: Seen = set()

    @settings(max_examples=50, database=None)
    @given(strategy)
    def examples(steps: list[Step]) -> None:
        nonlocal seen
        seen |= look(steps)

    for number in range(10):
        seed(number)(examples)()
        if seen >= wanted:
            break
    return seen


# What clients send to a daemon


def seen_by_daemon(steps: list[Step]) -> Seen:
    daemon = Daemon()
    connections: dict[int, Connection] = {}
    readers: dict[int, PacketReader] = {}
    open_ones: dict[int, set[int]] = {}
    seen: Seen = set()
    for step in steps:
        if step.act is not Act.SEND:
            seen.add(step.act.name)
            continue
        if step.client not in connections:
            connections[step.client] = daemon.connect(domain_of(step.client))
            readers[step.client] = PacketReader()
            open_ones[step.client] = set()
        if step.data:
            daemon.receive_data(connections[step.client], step.data)
        for connection, data in daemon.data_to_send():
            (client,) = [each for each, of in connections.items() if of is connection]
            for packet in readers[client].receive_data(data):
                seen |= seen_in(client, packet, open_ones[client])
    return seen


def seen_in(client: int, packet: Packet, open_ones: set[int]) -> Seen:
    if packet.op == Op.TRANSACTION_START:
        open_ones.add(int(packet.payload[:-1]))
    elif packet.op == Op.TRANSACTION_END:
        open_ones.discard(packet.tx_id)
    elif packet.op == Op.WATCH_EVENT and open_ones:
        return {"an event while a transaction is open"}
    elif packet.op == Op.ERROR:
        return {packet.payload[:-1].decode()}
    within = "in a transaction" if packet.tx_id else "alone"
    name = Op(packet.op).name
    return {f"{name} {within}", f"{name} of domain {domain_of(client)}"}


def test_what_clients_send_reaches_what_matters() -> None:
    wanted = {
        "EAGAIN",  # of a commit that conflicts
        "TRANSACTION_END in a transaction",
        "an event while a transaction is open",
        *("ENOENT", "EACCES", "EINVAL", "ENOSYS"),
        "WRITE in a transaction",
        *("WRITE of domain 1", "WRITE of domain 2", "WATCH_EVENT of domain 1"),
        *(act.name for act in Act if act not in (Act.SEND, Act.RECEIVE, Act.GIVE_UP)),
    }
    assert not wanted - seen_of(conversations_with_daemon(), seen_by_daemon, wanted)


def test_the_clients_are_those_that_were_wanted() -> None:
    def clients(steps: list[Step]) -> Seen:
        return {str(step.client) for step in steps}

    # Dom0 gives a home to domain 3.
    wanted = {"0", "6", "7"}
    assert seen_of(conversations_with_daemon((6, 7)), clients, wanted) == wanted


# What a client gets


def seen_by_client(steps: list[Step]) -> Seen:
    client = ClientConnection()
    seen: Seen = set()
    for step in steps:
        if step.act is Act.SEND:
            (packet,) = PacketReader().receive_data(step.data)
            try:
                client.send(parse_request(packet.op, packet.payload), packet.tx_id)
            except (LocalProtocolError, TransactionEnded, XenStoreError):
                seen.add("a request that cannot be sent")
                continue
            client.data_to_send()
        elif step.act is Act.RECEIVE:
            client.receive_data(step.data)
            for event in client.events_received():
                seen |= kinds(event, client)
        else:
            waiting = [*client.outstanding.values()]
            if waiting:
                client.abandon(waiting[step.data[0] % len(waiting)])
                seen.add("given up")
    return seen


def kinds(event: Event, client: ClientConnection) -> Seen:
    if isinstance(event, WatchFired):
        found = {"an event"}
        found |= {"an event while a transaction is open"} if client.transactions else set()
        setting = "setting" in client.watches.values()
        return found | ({"an event before its watch is acknowledged"} if setting else set())
    if not isinstance(event, Exchange):
        return {type(event).__name__}
    if event.error is not None:
        found = {"an error", str(event.error.code)}
        return found | ({"NotFound"} if isinstance(event.error, NotFound) else set())
    return {"a commit" if event.request == TransactionEnd(True) else "a value"}


def test_what_a_client_gets_reaches_what_matters() -> None:
    wanted = {
        *("a value", "an error", "NotFound", "EAGAIN", "a commit", "an event", "Ignored"),
        "an event while a transaction is open",
        "an event before its watch is acknowledged",
        "given up",
    }
    assert not wanted - seen_of(conversations_with_client(), seen_by_client, wanted)


# All of them keep the rules


@settings(max_examples=settings().max_examples // 2)  # they take their time
@given(conversations_with_daemon(max_size=10))
def test_the_daemon_keeps_its_rules(steps: list[Step]) -> None:
    fuzz_daemon(encode(steps))
    fuzz_server(encode(steps))


@settings(max_examples=settings().max_examples // 2)
@given(conversations_with_client())
def test_the_client_keeps_its_rules(steps: list[Step]) -> None:
    fuzz_client(encode(steps))
    fuzz_session(encode(steps))
