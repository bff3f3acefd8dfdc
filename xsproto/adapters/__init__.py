"""What adapters are built from: the one room of xsproto whose code may touch the operating system.

The rest of xsproto does no I/O, but for the program ``python -m xsproto``. Here, too, no module
imports ``socket``, ``os``, ``select``, ``threading`` or anything else that does I/O, waits or tells
the time; ``tests/test_layers.py`` keeps that rule. Some modules act on the system all the same,
through what an adapter hands in:

- `transport` and `streams` read and write through the socket that they are given;
- `asynchronous` makes and connects sockets, through the modules and the ``sleep`` of a `Backend`;
- `device_transport` opens, reads and writes the XenBus device, and starts a thread, through
  `SystemModules`;
- `discovery` looks for sockets and devices, through the module ``os``;
- `server` makes and serves sockets, and registers them with a selector, through the modules
  ``os``, ``socket`` and ``selectors``;
- `ssh` starts OpenSSH, makes its sockets and waits for it, through `SshModules`;
- `deadlines` tells the time, through the clock that it is given;
- `blocking` opens connections, through the functions of a `Backend`.

`device` and `fork` touch nothing by themselves. They hold the rules of the device, and the list of
the connections that a forked child must close.

The adapter decides what it hands in. So one that runs where gevent has patched Python can give the
device the original functions, and a test can give a module that fails where the test wants it to.
"""

__all__: list[str] = []
