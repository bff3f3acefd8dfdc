"""The engine alone, on a plain socket. See docs/howto/writing-an-adapter.md."""

import os
import socket
from typing import Any

from xsproto import ClientConnection, Closed, Exchange, Request, WatchFired
from xsproto.requests import Read, Watch, Write

node = b"/tool/example"
requests: list[Request[Any]] = [Watch(node, b"mine"), Write(node, b"hello"), Read(node)]
engine = ClientConnection()
exchanges = [engine.send(request) for request in (*requests, Read(b"/none"))]

with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.environ.get("XENSTORED_PATH", "/run/xenstored/socket"))
    while not all(exchange.done for exchange in exchanges):
        sock.sendall(engine.data_to_send())
        if data := sock.recv(65536):
            engine.receive_data(data)
        else:
            engine.receive_eof()
        for event in engine.events_received():
            match event:
                case Exchange(error=None):
                    print("reply:", event.request, "->", event.result())
                case Exchange():
                    print("error:", event.error)
                case WatchFired(path=path, token=token):
                    print("event:", path, token)
                case Closed(reason=reason):
                    raise reason
