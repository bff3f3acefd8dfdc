"""XenStore for gevent: a client that greenlets share, and a daemon, without monkey-patching."""

from xsproto.blocking import BlockingMonitor as Monitor
from xsproto.blocking import BlockingTransaction as Transaction
from xsproto.blocking import BlockingWatch as Watch

from .client import Client

__all__ = ["Client", "Monitor", "Transaction", "Watch"]
