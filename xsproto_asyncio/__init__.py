"""XenStore for asyncio."""

from xsproto.awaitable import AsyncMonitor as Monitor
from xsproto.awaitable import AsyncTransaction as Transaction
from xsproto.awaitable import AsyncWatch as Watch

from .client import Client, open_client

__all__ = ["Client", "Monitor", "Transaction", "Watch", "open_client"]
