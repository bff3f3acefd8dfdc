"""Clients that break a rule of the device, each in one way, and a plugin of pytest for them.

Where this is a plugin, pytest runs, for each of them, the tests that are to notice it, in a child
that has become that client. It writes to the file $XSPROTO_MUTANTS, as JSON, what came of each.
`test_mutants.py` looks at that.
"""

# What is patched here are insides, which are typed for those who do not.
# mypy: disable-error-code="method-assign,assignment,misc,arg-type"

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pytest

import xsproto.adapters.device
from xsproto.adapters import device_transport as _xenbus
from xsproto.adapters.blocking import BlockingClientBase
from xsproto.adapters.device import DeviceEngine
from xsproto.client import ClientConnection, Exchange
from xsproto.clients.session import Session
from xsproto.events import Ignored, WatchFired
from xsproto_sync._io.device_transport import RequestTransport, WatchTransport

xenbus: Any = _xenbus


class Mutant(NamedTuple):
    make: Callable[[], None]
    #: The rule that it breaks; see `tests.support.fake_device`.
    rule: int
    #: Tests of `on_device/test_client.py` of which at least one must notice.
    noticed_by: str
    #: Whether that test can only hang.
    hangs: bool


#: Seconds after which a test that can only hang has shown it, and after which another one hangs.
_HANGS_AFTER: Final = 8.0
_LIMIT: Final = 120.0

# How a child exits.
_NOTICED: Final = 70
_NOT_NOTICED: Final = 71

MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(
    rule: int, noticed_by: str, *, hangs: bool = False
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def decorate(make: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[make.__name__] = Mutant(make, rule, noticed_by, hangs)
        return make

    return decorate


Verdict = Literal["noticed", "not noticed", "hangs"]


def pytest_runtestloop(session: pytest.Session) -> bool:
    verdicts = {name: _judge(session, mutant) for name, mutant in MUTANTS.items()}
    Path(os.environ["XSPROTO_MUTANTS"]).write_text(json.dumps(verdicts))
    return True


def _judge(session: pytest.Session, mutant: Mutant) -> Verdict:
    """Run the tests of a mutant in a child, up to the first that notices it."""
    child = os.fork()
    if not child:
        status = 1  # something else is wrong
        try:
            mutant.make()
            session.config.option.keyword = mutant.noticed_by
            hook = session.config.hook
            hook.pytest_collection_modifyitems(
                session=session, config=session.config, items=session.items
            )
            assert session.items, "there is no such test"
            while session.items and not session.testsfailed:
                hook.pytest_runtest_protocol(item=session.items.pop(), nextitem=None)
            status = _NOTICED if session.testsfailed else _NOT_NOTICED
        finally:
            os._exit(status)
    pidfd = os.pidfd_open(child)
    try:
        ended = select.select([pidfd], [], [], _HANGS_AFTER if mutant.hangs else _LIMIT)[0]
    finally:
        os.close(pidfd)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not ended:
        return "hangs"
    # Violations of a rule end the process so.
    verdicts: dict[int, Verdict] = {
        _NOTICED: "noticed",
        -signal.SIGABRT: "noticed",
        _NOT_NOTICED: "not noticed",
    }
    return verdicts[status]


@mutant(9, "test_nobody_gets_what_is_anothers and (strict or slow)")
def several_requests_are_outstanding() -> None:
    def choose(self: RequestTransport, tx_id: int) -> Any:
        return next(iter(self._descriptors.values()))

    RequestTransport._choose = choose


@mutant(9, "test_a_transaction_stays_on_its_descriptor")
def a_transaction_goes_to_any_descriptor() -> None:
    RequestTransport._note_transaction = lambda self, descriptor, asked, answer: None


@mutant(10, "test_watches_come_and_go_while_others_read")
def watches_share_the_descriptor_of_requests() -> None:
    opened: list[FileIO] = []

    right = RequestTransport._open

    def open_one(self: RequestTransport) -> Any:
        if not opened:
            opened.append(right(self))
            return opened[0]
        return FileIO(os.dup(opened[0].fileno()), "r+")

    RequestTransport._open = WatchTransport._open = open_one


@mutant(11, "test_watches_come_and_go_while_others_read")
def nothing_is_read() -> None:
    right = RequestTransport.read_now

    def read_now(self: RequestTransport) -> bytes:
        os.read(self._file.fileno(), 0)  # as to see whether something is there
        return right(self)

    RequestTransport.read_now = read_now


@mutant(12, "test_many_reads_of_one_caller_are_sent_at_once")
def several_messages_are_written_at_once() -> None:
    right = DeviceEngine.hand_out

    def hand_out(self: DeviceEngine, exchange: Exchange) -> bytes:
        return b"".join([right(self, one) for one in [exchange, *self.waiting()[1:]]])

    DeviceEngine.hand_out = hand_out


@mutant(12, "test_a_value_fits_or_is_refused_here")
def payloads_are_as_long_as_on_a_socket() -> None:
    DeviceEngine.__init__ = lambda self: ClientConnection.__init__(self)


@mutant(13, "test_watches_are_set_whichever_comes_first and ack")
def it_waits_until_it_may_write() -> None:
    right = RequestTransport._choose

    def choose(self: RequestTransport, tx_id: int) -> Any:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        return right(self, tx_id) if poll.poll(0) else None

    RequestTransport._choose = choose


@mutant(13, "test_closing_wakes_who_waits")
def nothing_wakes_who_waits() -> None:
    RequestTransport.shutdown = lambda self: None


@mutant(14, "test_a_refused_watch_is_an_answer")
def a_refused_watch_is_waited_for() -> None:
    def write_orders(orders: Any, file: FileIO, wakeup_sender: Any, backend: Any) -> None:
        while message := orders.recv(8192):
            try:
                os.write(file.fileno(), message)
            except OSError:
                pass

    xenbus._write_orders = write_orders


@mutant(14, "test_watches_are_set_whichever_comes_first and event")
def events_before_the_answer_are_dropped() -> None:
    right = ClientConnection._parse_watch_event

    def fired(self: ClientConnection, packet: Any) -> Any:
        event = right(self, packet)
        if isinstance(event, WatchFired) and "setting" in self.watches.values():
            return Ignored(packet, "too early")
        return event

    ClientConnection._parse_watch_event = fired


@mutant(14, "test_a_watch_is_set_once")
def the_same_watch_is_set_twice() -> None:
    ClientConnection._check_state = lambda self, request, tx_id: None
    Session.listen = lambda self, queue, path, token: queue.watches.add((path, token))


@mutant(14, "test_a_watch_is_set_once")
def a_depth_is_let_through() -> None:
    DeviceEngine.send = ClientConnection.send


@mutant(14, "(anothers or first) and (wrong or old)")
def answers_must_bear_the_right_id() -> None:
    right = xenbus._Descriptor.receive_data

    def receive_data(self: Any, data: bytes) -> list[bytes]:
        right(self, data)
        return [data]

    xenbus._Descriptor.receive_data = receive_data


@mutant(15, "test_what_would_harm_the_domain_is_not_sent")
def watches_are_reset() -> None:
    DeviceEngine.send = ClientConnection.send


@mutant(15, "test_what_would_harm_the_domain_is_not_sent")
def the_end_of_no_transaction_is_sent() -> None:
    ClientConnection._check_state = lambda self, request, tx_id: None


@mutant(15, "suspended or suspend")
def a_lost_transaction_is_a_missing_node() -> None:
    right = BlockingClientBase.__init__

    def init(self: Any, *arguments: Any) -> None:
        right(self, *arguments)
        self._connection.forgetful = False

    BlockingClientBase.__init__ = init


@mutant(16, "test_time_is_limited_if_nobody_says_otherwise")
def time_is_not_limited() -> None:
    xsproto.adapters.device.TIMEOUT = None


@mutant(16, "test_a_watch_that_hangs_hangs_nobody_else", hangs=True)
def watches_are_written_by_who_sets_them() -> None:
    def write_to(self: WatchTransport, descriptor: Any, message: bytes) -> None:
        os.write(descriptor.file.fileno(), message)

    WatchTransport._write_to = write_to


@mutant(16, "test_a_dead_daemon_takes_no_more_and_more")
def descriptors_are_opened_without_end() -> None:
    xenbus.POOL_MAX = 1000


@mutant(16, "test_a_stuck_request_holds_nobody_up")
def there_is_one_descriptor() -> None:
    xenbus.POOL_MAX = 1


@mutant(16, "test_who_waits_behind_a_request_that_is_given_up_is_served")
def a_descriptor_with_an_unanswered_request_is_never_used_again() -> None:
    right = xenbus._Descriptor.receive_data

    def receive_data(self: Any, data: bytes) -> Any:
        asked = self.asked
        taken = right(self, data)
        self.asked = asked
        return taken

    xenbus._Descriptor.receive_data = receive_data


@mutant(17, "test_the_environment_may_name_a_device")
def it_is_opened_buffered() -> None:
    def open_one(self: RequestTransport) -> Any:
        file = open(self.path, "r+b")  # noqa: SIM115
        os.set_blocking(file.fileno(), False)
        return file

    RequestTransport._open = open_one
