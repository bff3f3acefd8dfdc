"""What `xen.lowlevel.xs` makes of odd arguments, of threads, and of events in numbers."""

import array
import contextlib
import os
import select
import threading
from typing import Any

from xen.lowlevel import xs

ERRORS = (xs.Error, TypeError, ValueError, OverflowError, UnicodeError)


class Five:
    """An integer to those who ask for its index."""

    def __index__(self) -> int:
        return 5

    def __repr__(self) -> str:
        return "Five()"


def show(what: str, arguments: Any, result: Any) -> None:
    kinds = ", ".join(f"{type(each).__name__} {str(each)[:30]!a}" for each in arguments)
    print(f"{what}({kinds}): {result!r:.300}")


def call(method: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call a method; print, and return, what comes of it."""
    try:
        result: Any = method(*arguments, **keywords)
    except ERRORS as error:
        result = f"{type(error).__name__}{error.args!a}"
    show(method.__name__, (*arguments, *keywords.values()), result)
    return result


def refuse(method: Any, *arguments: Any, **keywords: Any) -> None:
    """Call a method, as is wrong whatever its arguments are: the words are each Python's own."""
    try:
        result: Any = method(*arguments, **keywords)
    except TypeError:
        result = "TypeError"
    show(method.__name__, (*arguments, *keywords.values()), result)


def arguments(handle: Any) -> None:
    for wrong in ((), ("0",), ("0", "/", "x")):
        for method in (handle.read, handle.ls, handle.mkdir, handle.rm, handle.get_permissions):
            refuse(method, *wrong)
    refuse(handle.read, transaction="0", path="/")
    refuse(handle.write, "0", "/w")
    refuse(handle.set_permissions, "0", "/w")
    for method in (handle.watch, handle.unwatch):
        refuse(method, "/w")
        refuse(method, "/w", "t", "u")
    nothing = (handle.read_watch, handle.check_watch, handle.fileno, handle.transaction_start)
    for method in (*nothing, handle.close):
        refuse(method, 1)
    refuse(handle.transaction_end)
    refuse(handle.transaction_end, "1", 0, 0)
    refuse(handle.transaction_end, "1", bogus=1)
    refuse(handle.transaction_end, abort=1)
    refuse(handle.introduce_domain, 5, 1)
    refuse(handle.set_target, 5)
    for method in (handle.resume_domain, handle.release_domain, handle.get_domain_path):
        refuse(method)
        refuse(method, 1, 2)


def texts(handle: Any) -> None:
    every = ("/", "", "relative", "\0", "a\0b", "/\udc80", "/é", "/a b", "@x", "@releaseDomain")
    for text in (*every, "/" + "x" * 3070, "/" + "x" * 3080, "x" * 2050, "/" + "x" * 4096):
        for method in (handle.read, handle.ls, handle.get_permissions, handle.mkdir, handle.rm):
            call(method, "0", text)
        call(handle.write, "0", text, "")
    for wrong in (0, b"/", None, ["/"], 1.5):
        call(handle.read, wrong, "/")
        call(handle.read, "0", wrong)
        call(handle.write, "0", wrong, "")
        call(handle.watch, wrong, "token")
        call(handle.unwatch, wrong, "token")
        call(handle.transaction_end, wrong)
    numbers = ("", " 1", "\t\n\v\f\r 1", "-1", "+1", "- 1", "0x1", "0X1", "0x", "0xg", "1z", "zz")
    for text in (*numbers, "FFFFFFFFF", "F" * 30, "-" + "F" * 30, "100000000", "\0", "\udc80"):
        call(handle.read, text, "/")
        call(handle.transaction_end, text)
        call(handle.transaction_end, transaction=text, abort=1)


def values(handle: Any) -> None:
    buffers = (bytearray(b"x"), array.array("b"))
    for value in ("", "é", "\0", "\udc80", b"", b"\0\xff", 5, None, ["x"], *buffers):
        call(handle.write, "0", "/value", value)
        call(handle.read, "0", "/value")
    call(handle.write, "0", "/value", "x" * 4089)
    call(handle.write, "0", "/value", "x" * 4088)
    call(handle.write, "0", "/value", "x" * 40000)


def permissions(handle: Any) -> None:
    call(handle.write, "0", "/p", "")
    wrong: list[Any] = [None, (), {}, "n0", [{"dom": "x"}], [{"dom": 1.5}], [{}], [{"read": 1}]]
    wrong += [[{"dom": 0, "read": "x"}], [{"dom": 0, 5: 1}], [{"dom": 0, "x": 1, "y": 2}]]
    wrong += [[{"dom": 2**31}], [{"dom": -(2**31) - 1}], [{"dom": 2**70}], [{"dom": -(2**31)}]]
    odd: list[Any] = [[{"dom": False}], [{"dom": 0}, {"dom": Five(), "read": True, "write": -1}]]
    odd += [[{"dom": 0, "read": 2**31 - 1}], [{"dom": 0}] * 100, [{"dom": 5, "write": 7}]]
    for each in wrong + odd:
        call(handle.set_permissions, "0", "/p", each)
        call(handle.get_permissions, "0", "/p")


def numbers(handle: Any) -> None:
    for method in (handle.resume_domain, handle.release_domain, handle.get_domain_path):
        for number in ("5", 1.5, None, -1, 2**31, -(2**31) - 1, 2**70, Five(), True, 32767):
            call(method, number)
    for page in (2**63, 2**63 - 1, -1, "1", 1.5):
        call(handle.introduce_domain, 999, page, 1)
    for number in ("5", -1, 2**31):
        call(handle.introduce_domain, 999, 1, number)
        call(handle.introduce_domain, number, 1, 1)
        call(handle.set_target, number, 1)
        call(handle.set_target, 5, number)
    for number in ("x", 1.5, None, 2**31):
        call(handle.transaction_end, "1", number)
        call(handle.transaction_end, "1", abort=number)


def transactions(handle: Any, other: Any) -> None:
    for number in range(200):
        handle.write("0", f"/many/a-child-of-some-length-{number}", "")
    for number, abort in enumerate((0, 1, True, -5, Five())):
        tx = handle.transaction_start()
        handle.write(tx, f"/many/in-a-transaction-{number}", "")
        print(len(handle.ls(tx, "/many")), len(handle.ls("0", "/many")))
        other.write("0", "/elsewhere", "")
        call(handle.transaction_end, tx, abort=abort)
        call(handle.read, tx, "/many")
        call(handle.transaction_end, tx)
    tx = handle.transaction_start()
    call(handle.read, tx.lower(), "/many")
    call(other.read, tx, "/many")
    call(handle.read, tx, "/many/lost")
    other.write("0", "/many/lost", "")
    call(handle.write, tx, "/many/won", "")
    call(handle.transaction_end, tx)


def watches(handle: Any, other: Any) -> None:
    # (The tokens are shown by their place in this list: the addresses are nobody's business.)
    tokens: list[Any] = [5, "text", ["a", "list"], object(), ("a", 1), b"bytes"]

    def shown(event: Any) -> str:
        if not isinstance(event, tuple):
            return repr(event)
        places = [at for at, token in enumerate(tokens) if token is event[1]]
        return f"{event[0]} {places}"

    def read(count: int) -> None:
        print([shown(handle.read_watch()) for _ in range(count)])

    for token in tokens:
        handle.watch("/w", token)
    read(len(tokens))
    print(handle.check_watch())
    other.write("0", "/w/x", "")
    read(len(tokens))
    for token in (["a", "list"], object()):
        try:
            handle.unwatch("/w", token)
        except xs.Error as error:
            print("an equal token", error.args)
    for token in tokens[:-1]:
        handle.unwatch("/w", token)

    # The same token on several paths, below each other, and relative ones.
    token = tokens[-1]
    for path in ("/w/x", "/w/x/y", "relative/r", "@releaseDomain", "@bogus"):
        handle.watch(path, token)
        read(1)
    for path in ("/w/x", "relative/r", "//", "", "/a b"):
        try:
            handle.watch(path, token)
        except xs.Error as error:
            print(path, error.args)
    for path in ("/w/x/z", "/w/x/y/z", "relative/r/s", "/local/domain/0/relative/r/t"):
        other.write("0", path, "")
    found = [shown(handle.read_watch()) for _ in range(4)]
    # Identical events may be merged by the daemon, or not.
    with contextlib.suppress(xs.Error):
        while (event := handle.check_watch()) is not None:
            found.append(shown(event))
    print(sorted(set(found)))
    handle.unwatch("/local/domain/0/relative/r", token)
    handle.watch("relative/r", token)
    read(1)

    # Each event counts, also when nobody has read meanwhile.
    handle.watch("/counted", tokens[1])
    read(1)
    for number in range(50):
        handle.write("0", f"/counted/{number % 2}", "")
        handle.read("0", "/counted")
    handle.write("0", "/counted/last", "")
    events = [shown(handle.read_watch())]
    while not events[-1].startswith("/counted/last"):
        events.append(shown(handle.read_watch()))
    print(len(events), sorted(set(events)))

    # (The next watch takes the place of a token of None, which is then not known any more.)
    handle.watch("/none", None)
    read(1)


def descriptor(handle: Any, other: Any) -> None:
    handle.watch("/polled", "token")
    print(handle.read_watch())
    fd = handle.fileno()
    print(type(fd), fd == handle.fileno(), fd > 2)
    print(select.select([fd], [], [], 0)[0] == [])
    other.write("0", "/polled/1", "")
    print(select.select([fd], [], [], 20)[0] == [fd])
    print(handle.check_watch())
    print(handle.check_watch(), select.select([fd], [], [], 0)[0] == [])

    # A thread that waits, while others make requests and watches.
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(handle.read_watch()))
    thread.start()
    for number in range(100):
        handle.write("0", f"/beside/{number}", str(number))
        handle.read("0", f"/beside/{number}")
    handle.unwatch("/polled", "token")
    late = "a late watch"
    handle.watch("/late", late)
    thread.join()
    print(found)
    for number in range(3):
        handle.write("0", f"/late/{number}", "")
    seen = [handle.read_watch()[0] for _ in range(3)]
    print(seen)
    handle.write("0", "/late/stale", "")
    while not select.select([fd], [], [], 20)[0]:
        pass
    handle.unwatch("/late", late)
    stale = call(handle.check_watch)
    assert "Error(11," in stale


def connecting() -> None:
    print(sorted(name for name in vars(xs) if not name.startswith("_")))
    print(xs.Error.__mro__[1:])
    handle = xs.xs(readonly=1)
    print([name for name in dir(handle) if not name.startswith("_")])
    print(hasattr(handle, "__enter__"), hasattr(handle, "__dict__"))
    call(handle.close)
    for method in (handle.close, handle.fileno, handle.read_watch, handle.transaction_start):
        call(method)
    call(handle.read, "0", 5)
    call(handle.resume_domain, "x")
    for path in ("/nowhere", "/tmp", ""):
        os.environ["XENSTORED_PATH"] = path
        call(lambda: xs.xs())


def main() -> None:
    handle, other = xs.xs(), xs.xs(1)
    arguments(handle)
    texts(handle)
    values(handle)
    permissions(handle)
    transactions(handle, other)
    watches(xs.xs(), other)
    descriptor(xs.xs(), other)
    numbers(handle)
    connecting()


main()
