"""XenStore for blocking programs: a thread-safe client over the daemon's Unix socket."""

from xsproto.blocking import BlockingMonitor as Monitor
from xsproto.blocking import BlockingTransaction as Transaction
from xsproto.blocking import BlockingWatch as Watch

from .client import Client

__all__ = ["Client", "Monitor", "Transaction", "Watch"]
