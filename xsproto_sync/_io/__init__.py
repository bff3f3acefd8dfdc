"""Sockets, the XenBus device, threads and clocks, for the blocking client. Internal."""

__all__: list[str] = []
