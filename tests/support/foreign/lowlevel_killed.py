"""What `xen.lowlevel.xs` says once the daemon is dead: a line from standard input is the news."""

import sys
from typing import Any

from xen.lowlevel import xs


def call(method: Any, *arguments: Any) -> None:
    try:
        result: Any = method(*arguments)
    except xs.Error as error:
        result = error.args
    print(method.__name__, result)


handle, watching = xs.xs(), xs.xs()
handle.write("0", "/a", "")
watching.watch("/a", "token")
print(watching.read_watch())
handle.write("0", "/a", "again")
# Its answer says that the daemon has sent the event before.
print(watching.read("0", "/a"), flush=True)
sys.stdin.readline()
call(watching.read_watch)
call(watching.read_watch)
call(watching.check_watch)
for each in (watching, handle):
    # (Whether the first one is told EPIPE, EBADF or EINVAL is a race in libxenstore.)
    try:
        each.read("0", "/a")
    except xs.Error:
        print("an error")
    call(each.read, "0", "/a")
    call(each.write, "0", "/a", "")
    call(each.transaction_start)
    call(each.watch, "/a", "token")
    call(each.close)
    call(each.close)
