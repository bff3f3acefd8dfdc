"""What adapters are built from: the one room of xsproto whose code may touch the operating system.

The rest of xsproto does no I/O, but for the program ``python -m xsproto``. Here, too, no module
imports ``socket``, ``os``, ``select``, ``threading`` or anything else that does I/O, waits or tells
the time; ``tests/test_layers.py`` keeps that rule. Some modules act on the system all the same, but
only through what an adapter gives, its `Backend`:

- `backend` says what that is, and finds XenStore with it, through `discovery`;
- `blocking` and `asynchronous` open the connections of clients;
- `device_transport` opens, reads and writes the XenBus device, and starts a thread;
- `ssh` starts OpenSSH, makes its sockets and waits for it;
- `server` makes and serves sockets;
- `deadlines` tells the time, and `fork` is called in forked children;
- `transport`, `streams` and `recording` read and write through the socket that they are given.

`device` touches nothing. It holds the rules of the device.

The adapter decides what its backend has. So one that runs where gevent has patched Python can give
the device the original functions, and a test can give a module that fails where the test wants it
to.
"""

__all__: list[str] = []
