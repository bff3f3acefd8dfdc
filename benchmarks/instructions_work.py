"""What `benchmarks.instructions` counts: one operation, repeated, in a process of its own.

    python -m benchmarks.instructions_work NAME PATH COUNT

The collector of garbage is off, since when it runs depends on all that ran before.
"""

from __future__ import annotations

import gc
import socket
import struct
import sys
from collections.abc import Callable

__all__ = ["WORK"]

REQUEST = b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0/a\0"
HEADER = struct.Struct("=4I")
TASKS = 100


def bare_loop(path: str, count: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        for number in range(1, count + 1):
            payload = b"/a" + b"\0"
            sock.sendall(HEADER.pack(2, number, 0, len(payload)) + payload)
            data = sock.recv(65536)
            op, rq_id, _, size = HEADER.unpack_from(data)
            if (op, rq_id, data[16 : 16 + size]) != (2, number, b"value"):
                raise ValueError(f"this is no answer to request {number}: {data!r}")


def read(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client:
        for _ in range(count):
            client.read(b"/a")


def read_timeout(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client:
        for _ in range(count):
            client.read(b"/a", timeout=5)


def read_many(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client:
        for _ in range(count // 500):
            client.read_many([b"/a"] * 500)


def write(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client:
        for _ in range(count):
            client.write(b"/b", b"value")


def list_children(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client:
        for number in range(10):
            client.write(b"/list/%d" % number, b"")
        for _ in range(count):
            client.list(b"/list")


def transaction(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client:
        for _ in range(count):
            with client.transaction():
                pass


def event(path: str, count: int) -> None:
    from xsproto_sync import Client

    with Client(path) as client, client.watch(b"/event") as watch:
        watch.get()
        for _ in range(count):
            client.write(b"/event", b"value")
            watch.get()


def lowlevel_read(path: str, count: int) -> None:
    import os

    from xsproto_sync.compat import lowlevel

    os.environ["XENSTORED_PATH"] = path
    handle = lowlevel.xs()
    for _ in range(count):
        handle.read("", "/a")
    handle.close()


def asyncio_bare(path: str, count: int) -> None:
    import asyncio

    class Protocol(asyncio.Protocol):
        waiter: asyncio.Future[bytes]

        def data_received(self, data: bytes) -> None:
            self.waiter.set_result(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_unix_connection(Protocol, path)
        for _ in range(count):
            protocol.waiter = loop.create_future()
            transport.write(REQUEST)
            await protocol.waiter
        transport.close()

    asyncio.run(main())


def asyncio_read(path: str, count: int, tasks: int = 1) -> None:
    import asyncio

    import xsproto_asyncio

    async def main() -> None:
        async with xsproto_asyncio.open_client(path) as client:

            async def work() -> None:
                for _ in range(count // tasks):
                    await client.read(b"/a")

            await asyncio.gather(*[work() for _ in range(tasks)])

    asyncio.run(main())


def asyncio_read_100(path: str, count: int) -> None:
    asyncio_read(path, count, TASKS)


def gevent_bare(path: str, count: int) -> None:
    import gevent.socket

    with gevent.socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        for _ in range(count):
            sock.sendall(REQUEST)
            sock.recv(65536)


def gevent_read(path: str, count: int) -> None:
    import xsproto_gevent

    with xsproto_gevent.Client(path) as client:
        for _ in range(count):
            client.read(b"/a")


def trio_bare(path: str, count: int) -> None:
    import trio

    async def main() -> None:
        stream = await trio.open_unix_socket(path)
        for _ in range(count):
            await stream.send_all(REQUEST)
            await stream.receive_some()
        await stream.aclose()

    trio.run(main)


def trio_read(path: str, count: int) -> None:
    import trio

    import xsproto_trio

    async def main() -> None:
        async with xsproto_trio.open_client(path) as client:
            for _ in range(count):
                await client.read(b"/a")

    trio.run(main)


def pyxs_read(path: str, count: int) -> None:
    from xsproto_sync.compat import pyxs

    with pyxs.Client(unix_socket_path=path) as client:
        for _ in range(count):
            client[b"/a"]


def pyxs_itself(path: str, count: int) -> None:
    import pyxs

    with pyxs.Client(unix_socket_path=path) as client:
        for _ in range(count):
            client[b"/a"]


def daemon(path: str, count: int) -> None:
    """Serve a store with a node ``/a`` at `path`, until SIGTERM comes."""
    import signal

    from xsproto.daemon import Daemon
    from xsproto_sync import Server

    store = Daemon()
    store.store.write(store.store.caller(0, lambda *_: None), None, b"/a", b"value")
    server = Server(store)
    signal.signal(signal.SIGTERM, lambda *_: server.close())
    server.listen(path)
    print("listening", flush=True)
    server.serve()


#: By name.
WORK: dict[str, Callable[[str, int], None]] = {
    work.__name__: work
    for work in (
        *(bare_loop, read, read_timeout, read_many, write, list_children, transaction, event),
        *(asyncio_bare, asyncio_read, asyncio_read_100, gevent_bare, gevent_read),
        *(trio_bare, trio_read, pyxs_read, pyxs_itself, lowlevel_read, daemon),
    )
}


if __name__ == "__main__":
    gc.disable()
    WORK[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
