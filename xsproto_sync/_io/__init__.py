"""Internal: sockets, the XenBus device, threads and clocks of the blocking client."""

__all__: list[str] = []
