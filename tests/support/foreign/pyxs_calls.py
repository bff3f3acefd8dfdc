"""Every method of pyxs, or of the drop-in for it, on two clients of dom0 and on one of a guest.

Arguments: the guest's socket; the module, if it is not pyxs.
"""

import importlib
import os
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

pyxs: Any = importlib.import_module(sys.argv[2] if len(sys.argv) > 2 else "pyxs")
PyXSError = pyxs.PyXSError

# It refuses some requests by itself where it sees no /proc/xen.
pyxs.Client.SU = True


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method; print, and return, what comes of it."""
    try:
        result = function(*arguments)
    except (PyXSError, ValueError) as error:
        result = error
    shown = ", ".join(repr(each)[:60] for each in arguments)
    print(f"{function.__name__}({shown}): {result!r:.400}")
    return result


def nodes(client: Any) -> None:
    for path, value in (
        (b"/a/b", b"text"),
        (b"/a/c", b"c"),
        (b"/a/c", b""),
        (b"relative/d", b"d"),
        (b"/a/e", b"x" * 4000),
        (b"/a/f", b"x" * 4093),
        (b"/a/" + b"g" * 2000, b"g"),
        (b"/a b", b""),
    ):
        call(client.write, path, value)
    for path in (b"/", b"/a", b"/a/b", b"/a/c", b"relative/d", b"/missing", b"/missing/deeper"):
        for function in (client.read, client.list, client.exists, client.get_perms):
            call(function, path)
    call(client.read, b"/missing", b"default")
    call(client.mkdir, b"/m/n")
    call(client.mkdir, b"/m/n")
    for path in (b"/m/n", b"/m/n", b"/none/none", b"/", b"//"):
        call(client.delete, path)
    for number in range(300):
        client.write(b"/many/a-child-of-some-length-%d" % number, b"x")
    call(client.list, b"/many")  # it knows no DIRECTORY_PART
    call(client.exists, b"/many")
    call(client.delete, b"/many")
    for perms in (
        [b"n0", b"r5", b"w6", b"b999"],
        [b"b5"],
        [b"r999"],
        [b"n0", b"r70000"],
        [b"x0"],
        [],
    ):
        call(client.set_perms, b"/a/b", perms)
        call(client.get_perms, b"/a/b")
    print(sorted(client.walk(b"/")))


def transactions(client: Any, other: Any) -> None:
    call(client.transaction)
    call(client.transaction)
    call(other.transaction)
    call(client.write, b"/t", b"mine")
    call(client.read, b"/t")
    call(other.exists, b"/t")
    call(client.commit)
    call(other.write, b"/t", b"other")
    call(other.commit)
    call(client.read, b"/t")
    call(client.transaction)
    call(client.delete, b"/t")
    call(client.rollback)
    call(client.read, b"/t")
    call(client.commit)
    call(client.rollback)


def watches(client: Any, other: Any) -> None:
    with client.monitor() as monitor:
        events = monitor.wait()
        for path in (b"/w", b"@releaseDomain", b"@introduceDomain", b"relative"):
            call(monitor.watch, path, b"token-of-" + path)
            print(next(events))
        call(monitor.watch, b"/w", b"token-of-/w")
        call(monitor.watch, b"//", b"token")
        call(other.write, b"/w/x", b"x")
        call(other.write, b"relative/y", b"y")
        call(other.introduce_domain, 6, 1, 1)
        call(other.release_domain, 6)
        call(other.delete, b"/w")
        print(list(islice(events, 5)))
        call(monitor.unwatch, b"/w", b"another")
        print(sorted(monitor.watched))


def domains(client: Any) -> None:
    for domid in (0, 5, 6, 999, 70000, -1):
        call(client.get_domain_path, domid)
        call(client.is_domain_introduced, domid)
        call(client.resume_domain, domid)
    call(client.introduce_domain, 999, 1, 1)
    call(client.introduce_domain, 6, 1, 0)
    call(client.release_domain, 0)
    call(client.release_domain, 999)
    call(client.set_target, 5, 999)
    call(client.set_target, 5, 0)


def guest(client: Any) -> None:
    for path in (b"name", b"/local/domain/5/name", b"/a", b"/a/c", b"/none", b"readable"):
        for function in (client.read, client.list, client.exists, client.get_perms, client.mkdir):
            call(function, path)
        call(client.write, path, b"guest")
        call(client.delete, path)
    call(client.write, b"big", b"x" * 2100)
    call(client.write, b"name", b"five")
    call(client.set_perms, b"name", [b"n5", b"r0"])
    call(client.set_perms, b"name", [b"n0"])
    call(client.set_perms, b"name", [b"n5", b"r0", b"r1", b"r2", b"r3", b"r4"])
    call(client.is_domain_introduced, 5)
    call(client.introduce_domain, 6, 1, 1)
    call(client.release_domain, 6)
    call(client.get_domain_path, 5)
    call(client.transaction)
    call(client.write, b"name", b"again")
    call(client.commit)
    with client.monitor() as monitor:
        events = monitor.wait()
        for path in (b"name", b"/a", b"@releaseDomain"):
            call(monitor.watch, path, b"token-of-" + path)
            print(next(events))
        call(client.write, b"name", b"once more")
        print(next(events))


def main() -> None:
    with pyxs.Client() as client, pyxs.Client() as other:
        nodes(client)
        transactions(client, other)
        watches(client, other)
        client.write(b"/local/domain/5/readable", b"x")
        client.set_perms(b"/local/domain/5", [b"n5"])
        client.set_perms(b"/local/domain/5/readable", [b"n0", b"r5"])
        with pyxs.Client(unix_socket_path=sys.argv[1]) as five:
            guest(five)
            domains(client)
            call(five.list, b"/a")  # as it may, now that dom0 is its target
    # Its threads can keep the interpreter from ending.
    sys.stdout.flush()
    os._exit(0)


main()
