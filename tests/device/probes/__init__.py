"""What is asked of a XenBus device, real or not: one probe for each fact.

    python3 -m probes DEVICE [NAME...]

runs those NAMEd, or all that are harmless and need nothing, each in a process of its own, and
prints a line for each. Only Python's library is used, so that this directory alone can be carried
into a machine that has nothing else. In a guest, `data` of the domain must be its own to write.

XENBUS_DAEMON_PID in the environment names the daemon for the probe that kills it.
"""

from . import ends, reading, requests, watching
from .device import PROBES, Probe

__all__ = ["PROBES", "Probe", "ends", "reading", "requests", "watching"]
