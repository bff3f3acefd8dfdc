"""Drop-ins: pyxs, xen.lowlevel.xs, libxenstore's functions, and the xenstore-* commands."""

__all__: list[str] = []
