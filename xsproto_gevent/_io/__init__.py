"""Internal: sockets and the XenBus device of the client whose callers are greenlets of a hub."""

__all__: list[str] = []
