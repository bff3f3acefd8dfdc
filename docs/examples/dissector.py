"""A dissector of XenStore's protocol: bytes of both directions in, lines out.

It does no I/O, so the bytes may come from anywhere: a proxy, a capture, a ring. Here an engine and
a daemon without sockets talk to each other.
"""

from collections.abc import Iterator
from typing import Any

from xsproto import ClientConnection, Daemon, PacketReader, Request, XenStoreError
from xsproto.requests import Directory, Read, Watch, Write, parse_request
from xsproto.wire import op_name


class Dissector:
    """Turns messages into lines: request id, transaction id, and the message itself."""

    def __init__(self) -> None:
        self.requests, self.replies = PacketReader(), PacketReader()
        self.asked: dict[int, Request[Any]] = {}

    def client_sends(self, data: bytes) -> Iterator[str]:
        for packet in self.requests.receive_data(data):
            try:
                said: object = (request := parse_request(packet.op, packet.payload))
                self.asked[packet.rq_id] = request
            except XenStoreError as error:  # the request is malformed
                said = error
            yield f"-> {packet.rq_id} {packet.tx_id} {said}"

    def daemon_sends(self, data: bytes) -> Iterator[str]:
        for packet in self.replies.receive_data(data):
            said: object = f"{op_name(packet.op)} {packet.payload!r}"
            asked = self.asked.pop(packet.rq_id, None)
            if asked is not None and packet.op == asked.op:
                try:
                    said = asked.parse_reply(packet.payload)
                except XenStoreError as error:
                    said = error
            yield f"<- {packet.rq_id} {packet.tx_id} {said}"


def main() -> None:
    client, daemon, dissector = ClientConnection(max_outstanding=1), Daemon(), Dissector()
    connection = daemon.connect()
    client.send(Write(b"/vm/name", b"web"))
    client.send(Watch(b"/vm", b"token"))
    client.send(Directory(b"/vm"))
    client.send(Read(b"/vm/size"))
    while message := client.data_to_send():
        print(*dissector.client_sends(message), sep="\n")
        daemon.receive_data(connection, message)
        for _, data in daemon.data_to_send():
            print(*dissector.daemon_sends(data), sep="\n")
            client.receive_data(data)


if __name__ == "__main__":
    main()
