"""TLS before a daemon's Unix socket, with a certificate made on the spot.

with TlsProxy() as proxy:
    Client(sock=proxy.connect(daemon.socket_path))
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from .certificates import tls_contexts

__all__ = ["TlsProxy"]


class TlsProxy:
    """Accepts TLS on 127.0.0.1, and copies each connection to a Unix socket and back.

    It has a thread of its own, with a loop of asyncio.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # The connections to daemons, by the port that the client of each comes from.
        self._accepted: dict[int, socket.socket] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def connect(self, path: str) -> ssl.SSLSocket:
        """Connect to a Unix socket through TLS.

        Raises:
            OSError: nobody listens there.
        """
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(path)
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            self._accepted[sock.getsockname()[1]] = far
        except BaseException:
            far.close()
            raise
        try:
            sock.connect(("127.0.0.1", self._port))
            return tls_contexts()[1].wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise

    async def _listen(self) -> int:
        server_context, _ = tls_contexts()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=server_context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, near: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        sock = self._accepted.pop(to_client.get_extra_info("peername")[1])
        try:
            far, to_daemon = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            copies = [
                asyncio.create_task(_copy(near, to_daemon)),
                asyncio.create_task(_copy(far, to_client)),
            ]
            # No side of XenStore ends one direction only.
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            if copies[0].done():
                to_client.transport.abort()  # to wait for the client's close_notify would be vain
            for copy in copies:
                copy.cancel()
            await asyncio.wait(copies)
        finally:
            to_daemon.close()
            to_client.close()
            with suppress(OSError):
                await to_client.wait_closed()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._accepted:  # those of clients that have gone before they were served
            self._accepted.popitem()[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
