"""A fake of Linux' XenBus device, for tests and programs on a machine without Xen.

The fake device is a library to be preloaded (`fake_device.h` says all about it): a program that
opens `device_of(socket)` there has /dev/xen/xenbus over the daemon, or the guest, of that socket:

    with Daemon("c") as daemon, Preload() as preload:
        preload.run([sys.executable, "-m", "something", device_of(daemon.socket_path)])

As a library is preloaded when a program starts, tests of clients on the device run in a process
of their own. `Preload.run_tests()` is a pytest for that: it runs whole test files, with as many
daemons as they like, and tells what came of each test. In such a process `is_preloaded()` holds,
and `set_modes()` and `suspend()` act on the fake device. By hand:

    python -m tests.support.daemons c -- python -m tests.support.fake_device -- COMMAND

`probes` asks a device for each of its rules, the fake device in `test_fake_device.py`, and a real
one in

    pytest tests/device --xenbus /dev/xen/xenbus

In the mode "freebsd" it is FreeBSD's device, as far as its source tells; `fake_device.h` has those
rules, and `tests/device/on_device/test_freebsd.py` asks for them.

The rules, measured with Linux 6.1:

 9. One request outstanding for each descriptor: more are answered in order and with the right
    ids, but often have each other's payloads.
10. Never WATCH or UNWATCH on a descriptor with a request outstanding: the kernel dead-locks.
11. Never read 0 bytes: with data queued the kernel loops for ever; without, it blocks.
12. One message for each write(): the rest is dropped, though write() returns all of it. At most
    4080 bytes of payload; more is EINVAL or E2BIG. A message may be split over several writes.
13. Never writable. Reads wait, or do not, as usual, and take part of a message or several.
    close() does not wake a blocked reader.
14. A refused WATCH is write()'s errno, without an answer. An unknown UNWATCH is answered OK. The
    same watch twice is two. A depth is ignored. The first event may come before the answer.
15. TRANSACTION_END without a transaction is never answered. RESET_WATCHES ends the watches of the
    kernel itself.
16. Nobody is told that the daemon died, and WATCH then never returns.
17. It is opened unbuffered.
"""

from .programs import LIBRARY, Outcome, Preload, device_of, is_preloaded, set_modes, suspend

__all__ = [
    "LIBRARY",
    "Outcome",
    "Preload",
    "device_of",
    "is_preloaded",
    "set_modes",
    "suspend",
]
