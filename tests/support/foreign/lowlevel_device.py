"""`xen.lowlevel.xs` where XENSTORED_PATH is the XenBus device."""

import os
import sys
from typing import Any

from xen.lowlevel import xs


def call(method: Any, *arguments: Any) -> Any:
    try:
        result: Any = method(*arguments)
    except xs.Error as error:
        result = error.args
    print(method.__name__, result)
    return result


handle = xs.xs()
call(handle.write, "0", "/a", "1")
call(handle.read, "0", "/a")
call(handle.read, "0", "/missing")
call(handle.write, "0", "/a", "x" * 4076)
call(handle.ls, "0", "/")
call(handle.watch, "/a", "token")
call(handle.read_watch)
call(handle.check_watch)
call(handle.write, "0", "/a/b", "")
call(handle.read_watch)
call(handle.unwatch, "/a", "token")
tx = call(handle.transaction_start)
call(handle.write, tx, "/t", "")
call(handle.transaction_end, tx)
call(handle.read, "0", "/t")
call(handle.read, "ABC", "/t")
call(handle.transaction_end, "ABC")
# Closing ends libxenstore's thread by cancelling its `read`, which the fake device does not know.
sys.stdout.flush()
os._exit(0)
