"""Rules 9, 12 and 15: messages, answers and transactions."""

from __future__ import annotations

import errno
import os

from .device import (
    BASE,
    END,
    ERROR,
    HEADER,
    NODE,
    OK,
    PAYLOAD_MAX,
    READ,
    RESET_WATCHES,
    WRITE,
    File,
    check,
    pack,
    probe,
    refused,
)

# Rule 9: one request outstanding for each descriptor


@probe(9)
def answers_bear_the_ids_of_their_requests(device: str) -> None:
    with File(device) as file:
        file.expect(WRITE, NODE + b"hello", (WRITE, OK))
        for request in 0, 1, 0xFFFFFFFF:
            check(file.request(READ, NODE, request), (READ, request, 0, b"hello"), "the answer")


@probe(9)
def descriptors_do_not_mix(device: str) -> None:
    """Requests of several may be in flight at once, even with equal ids."""
    with File(device) as one, File(device) as two:
        one.expect(WRITE, NODE + b"hello", (WRITE, OK))
        for request in range(50):
            one.send(READ, NODE, request)
            two.send(READ, BASE + b"/missing\0", request)
            check(two.receive(), (ERROR, request, 0, b"ENOENT\0"), "the second answer")
            check(one.receive(), (READ, request, 0, b"hello"), "the first answer")


@probe(9, modes="slow")
def outstanding_requests_get_the_payloads_of_later_ones(device: str) -> None:
    """All are answered, in order and with the right ids, but not all with the right values."""
    with File(device) as file:
        for number in range(20):
            body = BASE + b"/%d\0value %d" % (number, number)
            file.expect(WRITE, body, (WRITE, OK))
        for request in range(200):
            file.send(READ, BASE + b"/%d\0" % (request % 20), request)
        answers = [file.receive() for _ in range(200)]
    check([answer.request for answer in answers], list(range(200)), "the ids of the answers")
    wrong = [
        answer
        for answer in answers
        if (answer.op, answer.body) != (READ, b"value %d" % (answer.request % 20))
    ]
    assert wrong, "each of 200 requests at once has its own answer"


@probe(9, fake_device=True, modes="strict", aborts=True)
def a_second_request_can_be_reported(device: str) -> None:
    with File(device) as file:
        file.send(READ, NODE, 1)
        file.send(READ, NODE, 2)


@probe(9, fake_device=True, modes="strict")
def a_request_after_the_answer_is_not_reported(device: str) -> None:
    with File(device) as file, File(device) as other:
        for _ in range(3):
            file.send(READ, NODE)
            other.expect_alive()
            file.receive()


# Rule 12: one message for each write()


@probe(12)
def the_rest_of_a_write_is_dropped(device: str) -> None:
    with File(device) as file:
        file.expect(WRITE, NODE + b"hello", (WRITE, OK))
        file.write(pack(READ, NODE, 1) + pack(READ, NODE, 2) + pack(READ, NODE, 3))
        check(file.receive(), (READ, 1, 0, b"hello"), "the answer to the first")
        check(file.request(READ, NODE, 4), (READ, 4, 0, b"hello"), "the answer to the fourth")


@probe(12)
def a_message_may_be_split(device: str) -> None:
    with File(device) as file:
        file.expect(WRITE, NODE + b"hello", (WRITE, OK))
        for byte in pack(READ, NODE):
            file.write(bytes([byte]))
        check(file.receive(), (READ, 7, 0, b"hello"), "the answer")
        message = pack(READ, NODE)
        check(os.writev(file.fd, [message[:16], message[16:]]), len(message), "writev")
        check(file.receive(), (READ, 7, 0, b"hello"), "the answer")


@probe(12)
def nothing_may_be_written(device: str) -> None:
    with File(device) as file:
        file.write(b"")
        file.write(pack(READ, NODE)[:5])
        file.write(b"")
        file.write(pack(READ, NODE)[5:])
        check(file.receive().request, 7, "the answer's id")


@probe(12)
def the_longest_payload_has_4080_bytes(device: str) -> None:
    with File(device) as file:
        for split in False, True:
            message = pack(WRITE, NODE.ljust(PAYLOAD_MAX, b"x"))
            for part in [message[:16], message[16:]] if split else [message]:
                file.write(part)
            # Some daemons refuse the value.
            answer = file.receive()
            assert answer.op in (WRITE, ERROR), f"{answer} came"
            check(answer.request, 7, "the answer's id")


@probe(12)
def a_longer_write_is_refused(device: str) -> None:
    with File(device) as file:
        for size in PAYLOAD_MAX + 1, 4096, 8192:
            with refused(errno.EINVAL):
                os.write(file.fd, pack(WRITE, NODE.ljust(size, b"x")))
            file.expect_alive()


@probe(12)
def a_header_that_announces_more_is_refused(device: str) -> None:
    with File(device) as file:
        for size in PAYLOAD_MAX + 1, 4096, 4097, 0xFFFFFFF0 - 16:
            with refused(errno.E2BIG):
                os.write(file.fd, HEADER.pack(WRITE, 7, 0, size))
            file.expect_alive()


@probe(12)
def a_refused_write_takes_the_part_before_with_it(device: str) -> None:
    with File(device) as file:
        file.write(HEADER.pack(WRITE, 7, 0, 100))
        with refused(errno.EINVAL):
            os.write(file.fd, bytes(PAYLOAD_MAX + 1))
        file.expect_alive()


# Rule 15, and transactions


@probe(15)
def the_end_of_no_transaction_is_never_answered(device: str) -> None:
    with File(device) as file:
        file.send(END, b"T\0", 9)
        file.expect_silence()
        file.expect_alive()


@probe(15, danger="the watches of the kernel", aborts=True)
def resetting_watches_takes_those_of_others(device: str) -> None:
    with File(device) as file, File(device) as other:
        other.watch(BASE, b"t")
        file.expect(RESET_WATCHES, b"\0", (RESET_WATCHES, OK))


@probe(15)
def transactions_commit_and_roll_back(device: str) -> None:
    with File(device) as file:
        for end, value in (b"F\0", b"before"), (b"T\0", b"after"):
            file.expect(WRITE, NODE + b"before", (WRITE, OK))
            tx = file.start()
            file.expect(WRITE, NODE + b"after", (WRITE, OK), tx)
            file.expect(END, end, (END, OK), tx)
            file.expect(READ, NODE, (READ, value))


@probe(15)
def a_transaction_belongs_to_its_descriptor(device: str) -> None:
    with File(device) as file, File(device) as other:
        tx = file.start()
        other.expect(READ, NODE, (ERROR, b"ENOENT\0"), tx)
        other.expect(END, b"T\0", (ERROR, b"ENOENT\0"), tx)
        file.expect(END, b"T\0", (END, OK), tx)
        file.expect(READ, NODE, (ERROR, b"ENOENT\0"), tx)


@probe(15)
def a_malformed_end_leaves_the_transaction(device: str) -> None:
    with File(device) as file:
        tx = file.start()
        for body in b"X\0", b"T", b"", b"T\0\0":
            file.expect(END, body, (ERROR, b"EINVAL\0"), tx)
        file.expect(END, b"F\0", (END, OK), tx)


@probe(15)
def closing_ends_transactions(device: str) -> None:
    # More than a guest may have.
    for _ in range(60):
        with File(device) as file:
            file.start()
