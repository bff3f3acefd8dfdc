"""Drop-ins for programs that were written for another XenStore library.

`pyxs` replaces pyxs 0.4, `lowlevel` replaces `xen.lowlevel.xs`, `libxenstore` has the functions of
libxenstore, and `xenstore_utils` has Debian's commands ``xenstore-read`` and so on.
``docs/howto/migrating.md`` says how to use each, and what differs. Nothing else in xsproto imports
this room.
"""

__all__: list[str] = []
