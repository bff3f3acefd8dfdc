"""Carry the bytes of a trio stream over a socket, for what can use sockets only."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import trio

from xsproto.adapters.streams import BridgedSocket, Stream, check_socket
from xsproto.adapters.transport import READ_SIZE
from xsproto.errors import ConnectFailed, InvalidType

__all__ = ["adopt", "bridge"]


async def bridge(
    stream: trio.abc.Stream, sock: socket.socket, errors: list[Exception] | None = None
) -> Exception | None:
    """Copy between a stream and a socket, both ways, until the connection is over.

    When the peer at the other end of `stream` sends no more, this half-closes `sock`, and goes on
    with what comes from there: the answers to the peer's last requests. The end of `sock` is the
    end of both, since the adapters never half-close a connection themselves. What came before it is
    sent first. Both are closed at the end, and when this is cancelled.

    Arguments:
        stream: where the peer is.
        sock: an end of a socketpair, whose other end a client or a server of xsproto uses.
        errors: gets the errors of `stream`, each before `sock` is closed.

    Returns:
        the error of `stream` that ended the connection; None if there was none.
    """
    near = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    errors = [] if errors is None else errors

    async def receive() -> None:
        try:
            while data := await stream.receive_some(READ_SIZE):
                # Where the other end of `sock` is closed, what it has sent before still counts:
                # that `send` below comes to the end says that the connection is over.
                with suppress(trio.BrokenResourceError):
                    await near.send_all(data)
        except Exception as error:  # whatever a stream raises, it is the end of this one only
            errors.append(error)
            nursery.cancel_scope.cancel()
        else:
            with suppress(trio.BrokenResourceError):
                await near.send_eof()

    async def send() -> None:
        with suppress(trio.BrokenResourceError):  # the other end was closed with bytes unread
            while data := await near.receive_some(READ_SIZE):
                try:
                    await stream.send_all(data)
                except Exception as error:
                    errors.append(error)
                    break
        nursery.cancel_scope.cancel()

    try:
        async with near, trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
        if not errors:
            try:
                await stream.aclose()
            except Exception as error:
                errors.append(error)
    finally:
        with suppress(Exception):
            await trio.aclose_forcefully(stream)
    return errors[0] if errors else None


def adopt(stream: Any) -> Stream:
    """Make a socket of a stream, for a client: a system task carries the bytes.

    Arguments:
        stream: where the daemon is, a `trio.abc.Stream`. The task closes it, at the end of the
            connection.

    Raises:
        InvalidType: `stream` is none of trio.
        InvalidArgument: it is a `trio.SocketStream` that is closed.
        ConnectFailed: there can be no more descriptors.
    """
    if not isinstance(stream, trio.abc.Stream):
        raise InvalidType(f"transport must be a trio.abc.Stream, not {stream!r}")
    name = f"stream {type(stream).__qualname__}"
    if isinstance(stream, trio.SocketStream):
        check_socket(stream.socket)
        return Stream(stream.socket, name)
    try:
        near, far = socket.socketpair()
    except OSError as error:
        raise ConnectFailed(f"cannot use {name}: {error.strerror}") from error
    errors: list[Exception] = []
    trio.lowlevel.spawn_system_task(bridge, stream, far, errors, name="xsproto bridge")
    return Stream(BridgedSocket(near, errors, socket.MSG_NOSIGNAL), name)
