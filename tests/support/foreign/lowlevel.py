"""Every method of Xen's own `xen.lowlevel.xs`, run by Debian's Python."""

import os
import sys
from typing import Any

from xen.lowlevel import xs


def call(handle: Any, method: str, *arguments: Any) -> Any:
    """Call a method; print, and return, what comes of it."""
    try:
        result: Any = getattr(handle, method)(*arguments)
    except (xs.Error, TypeError, ValueError) as error:
        result = error
    shown = ", ".join(repr(each)[:60] for each in arguments)
    print(f"{method}({shown}): {result!r:.400}")
    return result


def nodes(handle: Any) -> None:
    call(handle, "write", "0", "/a/b", "text")
    call(handle, "write", "", "/a/c", b"\0\xff\n\0")
    call(handle, "write", "0", "/a/d", "")
    call(handle, "write", "0", "relative/e", "e")
    call(handle, "write", "0", "/a/" + "f" * 2000, "x" * 2000)
    call(handle, "write", "0", "/a/g", "x" * 4096)
    call(handle, "write", "0", "/a b", "")
    call(handle, "write", "0", "@releaseDomain", "")
    for path in ("/a/b", "/a/c", "/a/d", "relative/e", "/missing", "//", "/a/", "", "a\0b"):
        for method in ("read", "ls", "get_permissions"):
            call(handle, method, "0", path)
    call(handle, "ls", "0", "/a")
    call(handle, "ls", "0", "/")
    call(handle, "mkdir", "0", "/m/n")
    call(handle, "mkdir", "0", "/m/n")
    call(handle, "mkdir", "0", "/m//")
    for path in ("/m/n", "/m/n", "/m/n/o", "/none/none", "/", "", "@x"):
        call(handle, "rm", "0", path)
    for number in range(300):
        handle.write("0", f"/many/a-child-of-some-length-{number}", "")
    call(handle, "ls", "0", "/many")
    call(handle, "rm", "0", "/many")


def permissions(handle: Any) -> None:
    every = [
        [{"dom": 0}],
        [{"dom": 0, "read": 1}, {"dom": 5, "read": 1, "write": 1}],
        [{"dom": 5}],
        [{"dom": 5, "read": 1}],
        [{"dom": 0, "write": 1}, {"dom": 5}, {"dom": 6, "read": 1}, {"dom": 999, "write": 1}],
        [{"dom": 999}],
        [{"dom": 0}, {"dom": -1, "read": 1}],
        [],
        [{"dom": 0, "extra": 1}],
    ]
    for permissions in every:
        call(handle, "set_permissions", "0", "/a/b", permissions)
        call(handle, "get_permissions", "0", "/a/b")
    call(handle, "set_permissions", "0", "/missing", every[0])


def transactions(handle: Any, other: Any) -> None:
    first = call(handle, "transaction_start")
    second = call(handle, "transaction_start")
    call(handle, "write", first, "/t", "first")
    call(handle, "read", first, "/t")
    call(handle, "read", second, "/t")
    call(other, "read", "0", "/t")
    call(other, "read", first, "/t")
    call(handle, "transaction_end", first)
    call(handle, "read", "0", "/t")
    call(handle, "write", second, "/t", "second")
    call(handle, "transaction_end", second)
    call(handle, "transaction_end", second)
    third = call(handle, "transaction_start")
    call(handle, "rm", third, "/t")
    call(handle, "ls", third, "/")
    call(handle, "transaction_end", third, 1)
    call(handle, "read", "0", "/t")
    call(handle, "transaction_end", "0")
    call(handle, "transaction_end", "zzz")
    call(handle, "read", "7777", "/t")
    started = [handle.transaction_start() for _ in range(12)]
    print(started)
    for number in started:
        call(handle, "transaction_end", number, 1)


def watches(handle: Any, other: Any) -> None:
    token = ["any", "object"]
    call(handle, "watch", "/w", token)
    call(handle, "watch", "/w", token)
    call(handle, "watch", "//", token)
    call(handle, "watch", "@releaseDomain", "release")
    call(handle, "watch", "relative", "relative")
    for _ in range(3):
        call(handle, "read_watch")
    call(handle, "check_watch")
    call(other, "write", "0", "/w/x/y", "")
    call(handle, "read_watch")
    call(other, "write", "0", "relative/z", "")
    call(handle, "read_watch")
    call(other, "rm", "0", "/w")
    call(handle, "read_watch")
    call(handle, "unwatch", "/w", token)
    call(handle, "unwatch", "/w", token)
    call(other, "write", "0", "/w", "")
    call(handle, "check_watch")


def domains(handle: Any) -> None:
    call(handle, "watch", "@introduceDomain", "in")
    call(handle, "read_watch")
    for domid in (0, 5, 6, 999, -1, 70000):
        call(handle, "get_domain_path", domid)
    call(handle, "introduce_domain", 999, 1, 1)
    call(handle, "introduce_domain", 6, 1, 1)
    call(handle, "read_watch")
    for method in ("resume_domain", "release_domain"):
        for domid in (0, 6, 999, 6):
            call(handle, method, domid)
    call(handle, "check_watch")
    call(handle, "set_target", 5, 999)
    call(handle, "set_target", 5, 0)


def guest(handle: Any) -> None:
    """What a guest may do, and what not."""
    for path in ("name", "/local/domain/5/name", "/a", "/a/b", "/local/domain/5/readable"):
        call(handle, "read", "0", path)
        call(handle, "ls", "0", path)
        call(handle, "get_permissions", "0", path)
        call(handle, "write", "0", path, "guest")
        call(handle, "rm", "0", path)
    call(handle, "write", "0", "big", "x" * 3000)
    call(handle, "write", "0", "name", "five")
    call(handle, "set_permissions", "0", "name", [{"dom": 5}, {"dom": 0, "read": 1}])
    call(handle, "set_permissions", "0", "name", [{"dom": 0}])
    call(handle, "introduce_domain", 6, 1, 1)
    call(handle, "release_domain", 6)
    call(handle, "set_target", 5, 0)
    call(handle, "get_domain_path", 5)
    started = [call(handle, "transaction_start") for _ in range(12)]
    for number in started[:11]:
        call(handle, "transaction_end", number, 1)
    call(handle, "watch", "name", "name")
    call(handle, "read_watch")
    call(handle, "write", "0", "name", "again")
    call(handle, "read_watch")
    call(handle, "watch", "@releaseDomain", "release")
    call(handle, "read_watch")


def main() -> None:
    handle, other = xs.xs(), xs.xs()
    nodes(handle)
    permissions(handle)
    transactions(handle, other)
    watches(handle, other)
    handle.write("0", "/local/domain/5/name", "five")
    handle.set_permissions("0", "/local/domain/5", [{"dom": 5}])
    handle.set_permissions("0", "/local/domain/5/name", [{"dom": 5}])
    handle.write("0", "/local/domain/5/readable", "")
    handle.set_permissions("0", "/local/domain/5/readable", [{"dom": 0}, {"dom": 5, "read": 1}])
    os.environ["XENSTORED_PATH"] = sys.argv[1]
    guest(xs.xs())
    domains(other)
    call(handle, "close")
    call(handle, "read", "0", "/a")
    call(handle, "close")


main()
