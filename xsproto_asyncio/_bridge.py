"""Carry the bytes of an asyncio stream over a socket, for what can use sockets only."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any, TypeAlias

from xsproto.adapters import streams
from xsproto.adapters.streams import BridgedSocket
from xsproto.adapters.transport import READ_SIZE
from xsproto.errors import ConnectFailed, InvalidArgument, InvalidType

__all__ = ["Stream", "adopt", "bridge", "check_stream", "was_reset"]

# The loop itself keeps no task alive.
_tasks: set[asyncio.Task[Any]] = set()

#: What `asyncio.open_connection` returns, and `asyncio.start_server` calls its callback with.
Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def bridge(
    stream: Stream, sock: socket.socket, errors: list[Exception] | None = None
) -> Exception | None:
    """Copy between a stream and a socket, both ways, until the connection is over.

    When the peer at the other end of `stream` sends no more, this half-closes `sock`, and goes on
    with what comes from there: the answers to the peer's last requests. The end of `sock` is the
    end of both, since the adapters never half-close a connection themselves. What came before it is
    sent first. Both are closed at the end, and when this is cancelled. (A task that is cancelled
    before it has begun to run never comes here: then both are the caller's to close.)

    Arguments:
        stream: where the peer is: a reader and a writer of the running loop.
        sock: an end of a socketpair, whose other end a client or a server of xsproto uses.
        errors: gets the errors of `stream`, each before `sock` is closed.

    Returns:
        the error of `stream` that ended the connection; None if there was none.
    """
    reader, writer = stream
    loop = asyncio.get_running_loop()
    errors = [] if errors is None else errors
    over = asyncio.Event()

    async def receive() -> None:
        try:
            while data := await reader.read(READ_SIZE):
                # Where the other end of `sock` is closed, what it has sent before still counts:
                # that `send` below comes to the end says that the connection is over.
                with suppress(OSError):
                    await loop.sock_sendall(sock, data)
        except Exception as error:  # whatever a stream raises, it is the end of this one only
            errors.append(error)
            over.set()
        else:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    async def send() -> None:
        with suppress(OSError):  # the other end was closed with bytes unread
            while data := await loop.sock_recv(sock, READ_SIZE):
                try:
                    writer.write(data)
                    await writer.drain()
                except Exception as error:
                    errors.append(error)
                    break
        over.set()

    try:
        sock.setblocking(False)
        # It does not end before its tasks: the loop must forget the socket before that is closed.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(receive()), group.create_task(send())]
            await over.wait()
            for task in tasks:
                task.cancel()
        if not errors:
            try:
                writer.close()
                await writer.wait_closed()
            except Exception as error:
                errors.append(error)
    finally:
        sock.close()
        writer.transport.abort()
    return errors[0] if errors else None


def check_stream(stream: Any) -> asyncio.StreamWriter:
    """Check that a stream can carry the protocol; return its writer.

    Raises:
        InvalidType: it is no pair of a reader and a writer.
        InvalidArgument: it is closed, or another loop's.
    """
    match stream:
        case (asyncio.StreamReader() as reader, asyncio.StreamWriter() as writer):
            if writer.is_closing():
                raise InvalidArgument(f"the stream is closed: {writer!r}")
            # There is no public way to ask.
            loop = asyncio.get_running_loop()
            if getattr(reader, "_loop", loop) is not loop:
                raise InvalidArgument(
                    f"the stream belongs to another event loop: open it in this one: {writer!r}"
                )
            return writer
        case _:
            raise InvalidType(f"a stream must be (StreamReader, StreamWriter), not {stream!r}")


def was_reset(stream: Any) -> bool:
    """Whether a stream has ended since its peer has reset the connection."""
    match stream:
        case (asyncio.StreamReader() as reader, asyncio.StreamWriter()):
            return isinstance(reader.exception(), ConnectionError)
        case _:
            return False


def adopt(stream: Any) -> streams.Stream:
    """Make a socket of a stream, for a client: a task of the loop carries the bytes.

    Arguments:
        stream: where the daemon is, as a reader and a writer. The task closes it, at the end of the
            connection.

    Raises:
        InvalidType, InvalidArgument: see `check_stream`.
        ConnectFailed: there can be no more descriptors.
    """
    writer = check_stream(stream)
    name = f"stream to {writer.get_extra_info('peername') or 'a peer without a name'}"
    try:
        near, far = socket.socketpair()
    except OSError as error:
        raise ConnectFailed(f"cannot use {name}: {error.strerror}") from error
    errors: list[Exception] = []
    task = asyncio.get_running_loop().create_task(bridge(stream, far, errors))

    def ended(_: object) -> None:
        _tasks.discard(task)
        far.close()  # a task that was cancelled before it ran has closed neither
        writer.transport.abort()

    _tasks.add(task)
    task.add_done_callback(ended)
    return streams.Stream(BridgedSocket(near, errors, socket.MSG_NOSIGNAL), name)
