"""What every client is made of, without I/O: sharing a connection, operations, the two APIs."""

__all__: list[str] = []
