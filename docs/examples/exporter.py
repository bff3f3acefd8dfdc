"""An exporter of chosen nodes, in the text format of Prometheus, over HTTP, with asyncio.

It reads all nodes for each HTTP request, so it keeps no copy that could be out of date. Here the
program makes one request to itself. On a host, set TOP to `/local/domain`, and end `main` with
`await server.serve_forever()`.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from xsproto import NotFound
from xsproto_asyncio import Client, open_client

#: The nodes to export from each directory below TOP, by the names of their metrics.
TOP = b"/tool/example"
METRICS = {
    "xenstore_memory_target_kib": b"memory/target",
    "xenstore_vif_state": b"device/vif/0/state",
}


async def metrics(client: Client) -> AsyncIterator[str]:
    try:
        directories = await client.list(TOP)
    except NotFound:
        directories = []  # as where no domain was ever created
    for metric, node in METRICS.items():
        paths = [TOP + b"/" + directory + b"/" + node for directory in directories]
        yield f"# TYPE {metric} gauge"
        for directory, value in zip(directories, await client.read_many(paths), strict=True):
            # For a missing node, the list has an error instead of a value.
            if isinstance(value, bytes) and value.isdigit():
                yield f'{metric}{{domain="{directory.decode()}"}} {int(value)}'


async def answer(
    client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        async with asyncio.timeout(10):
            await reader.readuntil(b"\r\n\r\n")
            lines = [line async for line in metrics(client)]
            head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n"
            writer.write((head + "\n".join(lines) + "\n").encode())
            await writer.drain()
    finally:
        writer.close()


async def main() -> None:
    async with open_client() as client:
        await client.write(TOP + b"/1/memory/target", b"524288")
        await client.write(TOP + b"/1/device/vif/0/state", b"4")
        await client.write(TOP + b"/2/memory/target", b"1048576")
        server = await asyncio.start_server(partial(answer, client), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            print((await reader.read()).decode().replace("\r\n", "\n"), end="")
            writer.close()
            await writer.wait_closed()
        await client.delete(TOP)


if __name__ == "__main__":
    asyncio.run(main())
