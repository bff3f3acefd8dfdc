"""The drop-in for pyxs where gevent or eventlet have patched Python: ``gevent|eventlet SOCKET``.

It is given nothing but what a program has that was written for pyxs; prints "ok" in the end.
"""

import sys
import warnings

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eventlet says that it is deprecated
        import eventlet  # type: ignore[import-untyped,unused-ignore]  # has none, or is not here

        eventlet.monkey_patch()

import socket
import threading
from typing import Any

import xsproto_sync.compat.pyxs as pyxs
from xsproto_sync.compat.pyxs.connection import UnixSocketConnection, XenBusConnection

PATIENCE = 30


def start(function: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def main() -> None:
    assert sys.argv[1] in socket.socket.__module__
    ident = threading.get_native_id()
    is_device = sys.argv[2].endswith(".xenbus")
    connection = (XenBusConnection if is_device else UnixSocketConnection)(sys.argv[2])
    turns: list[int] = []
    found: list[Any] = []
    with pyxs.Client(router=pyxs.Router(connection)) as client:

        def count(number: int) -> None:
            turns.append(threading.get_native_id())
            for turn in range(20):
                path = b"/green/%d" % number
                client.write(path, b"%d" % turn)
                assert client.read(path) == b"%d" % turn

        with client.monitor() as monitor:
            monitor.watch(b"/event", b"token")
            assert next(monitor.wait()) == (b"/event", b"token")
            waiting = start(lambda: found.append(next(monitor.wait())))
            threads = [start(count, number) for number in range(20)]
            for thread in threads:
                thread.join(PATIENCE)
            assert turns == [ident] * 20, "these are greenlets, that take turns"
            assert not found
            assert len(client.list(b"/green")) == 20
            client.transaction()
            client.write(b"/event", b"")
            assert client.commit()
            waiting.join(PATIENCE)
            assert found == [(b"/event", b"token")]

        def fail() -> None:
            try:
                next(client.monitor().wait())
            except pyxs.ConnectionError as error:
                found.append(error)

        waiting = start(fail)
        client.read(b"/")  # it waits by now
    waiting.join(PATIENCE)
    assert isinstance(found[-1], pyxs.ConnectionError)
    with client:
        assert client.exists(b"/green")
    print("ok")


main()
