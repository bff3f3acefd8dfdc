"""A fuzz target: it checks that the engine keeps its rules, whatever bytes a peer sends.

`fuzz` takes bytes, and raises if the engine breaks one of its rules on them. Here `main` gives it
mutations of a real conversation. With atheris: `atheris.Setup(sys.argv, fuzz); atheris.Fuzz()`.
"""

import random
from collections import Counter

from xsproto import ClientConnection, Closed, Daemon, Event, Exchange
from xsproto.requests import Directory, Read, TransactionStart, Watch, Write

REQUESTS = (
    Write(b"/vm/name", b"web"),
    Read(b"/vm/name"),
    Read(b"/vm/size"),
    Directory(b"/vm"),
    Watch(b"/vm", b"token"),
    TransactionStart(),
)


def asking() -> tuple[ClientConnection, bytes]:
    """Return a client that waits for answers, and the bytes of its requests."""
    client = ClientConnection()
    for request in REQUESTS:
        client.send(request)
    return client, client.data_to_send()


def answers(requests: bytes) -> bytes:
    """Return the bytes with which a daemon answers."""
    daemon = Daemon()
    connection = daemon.connect()
    daemon.receive_data(connection, requests)
    return b"".join(data for _, data in daemon.data_to_send())


def events(replies: bytes, size: int) -> list[Event]:
    """Return the events of a client that receives bytes in portions of `size`, then the end."""
    client, _ = asking()
    for at in range(0, len(replies), size):
        client.receive_data(replies[at : at + size])
    client.receive_eof()
    return client.events_received()


def told(event: Event) -> str:
    """Return all that an event says. The representation of an `Exchange` lacks its outcome."""
    outcome = event.outcome() if isinstance(event, Exchange) else None
    return f"{event!r} {outcome!r}"


def kind(event: Event) -> str:
    if isinstance(event, Exchange):
        return "Exchange with a value" if event.error is None else "Exchange with an error"
    return type(event).__name__


def fuzz(data: bytes) -> list[Event]:
    happened = events(data, len(data) + 1)
    # However the bytes are split, the events are the same. `Closed` comes last, and once.
    assert [*map(told, happened)] == [*map(told, events(data, 7))]
    assert [type(event) is Closed for event in happened].index(True) == len(happened) - 1
    answers(data)  # a daemon must not fail on these bytes, either
    return happened


def main() -> None:
    chance = random.Random(4)
    _, requests = asking()
    seen: Counter[str] = Counter()
    for _ in range(1000):
        data = bytearray(answers(requests) if chance.random() < 0.9 else requests)
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 40)]
                case 2:
                    data[at:at] = data[: chance.randrange(len(data))]
        seen.update(map(kind, fuzz(bytes(data))))
    for name, count in sorted(seen.items()):
        print(f"{count:>6} {name}")


if __name__ == "__main__":
    main()
