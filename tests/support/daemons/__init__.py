"""Real XenStore daemons to test against: C xenstored and oxenstored, without Xen.

They run on a fake hypervisor (`fakexen.c`), without root, and processes here
act as their guest domains:

    with Daemon("c") as daemon, daemon.guest(5) as guest:
        ...  # clients of daemon.socket_path are dom0's, of guest.socket_path domain 5's

By hand: ``python -m tests.support.daemons --help``. XSPROTO_XENSTORED_C and
XSPROTO_XENSTORED_OCAML in the environment name other daemons than Debian's.

Events go through FIFOs in place of hypercalls: timings over rings mean little.
"""

from .guest import GuestDomain, State
from .launcher import KINDS, Daemon, DaemonError, missing, require, skip
from .wire import Connection, Op, Packet

__all__ = [
    "KINDS",
    "Connection",
    "Daemon",
    "DaemonError",
    "GuestDomain",
    "Op",
    "Packet",
    "State",
    "missing",
    "require",
    "skip",
]
