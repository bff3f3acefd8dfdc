"""Sockets and the XenBus device, for the greenlets of a hub. Internal."""

__all__: list[str] = []
