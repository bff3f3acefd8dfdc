"""The command ``demo``: XenStore in a minute, on an embedded store."""

from __future__ import annotations

from collections.abc import Callable

import click

from xsproto.errors import AccessDenied, NotFound

from .. import Transaction
from ..embedded import EmbeddedXenStore

__all__ = ["demo", "show"]


@click.command()
def demo() -> None:
    """Show XenStore in a minute, on an embedded store."""
    show(click.echo)


def show(say: Callable[[str], None] = print) -> None:
    """Go through the main ideas of XenStore, and `say` what happens."""
    with EmbeddedXenStore() as store, store.client() as dom0, store.client() as other:
        say("XenStore is a small tree of nodes that all domains of a Xen host share.")
        say("Here is one, embedded in this process; no Xen is needed.")

        say("\n1. A node has a path and a value. Both are bytes. Missing parents are created.")
        dom0.write(b"/local/domain/7/device/vif/0/state", b"1")
        dom0.write(b"/local/domain/7/memory/target", b"1024")
        say(f"   read   {dom0.read(b'/local/domain/7/device/vif/0/state')!r}")
        say(f"   list   {dom0.list(b'/local/domain/7')}")
        for node in dom0.walk(b"/local/domain/7"):
            say(f"   walk   {node.path.decode()} = {node.value!r}")

        say("\n2. A watch reports changes at and below a path, also those of other clients.")
        with dom0.watch(b"/local/domain/7/device") as watch:
            say(f"   first event        {watch.get(timeout=5).path.decode()}")
            other.write(b"/local/domain/7/device/vif/0/state", b"4")
            event = watch.get(timeout=5)
            say(f"   another client's   {event.path.decode()} is now {dom0.read(event.path)!r}")

        say("\n3. A transaction happens as a whole or not at all. After a conflict it runs again.")
        attempts: list[int] = []

        def balloon(tx: Transaction) -> int:
            target = int(tx.read(b"/local/domain/7/memory/target"))
            if not attempts:  # in the first attempt, another client changes the node
                other.write(b"/local/domain/7/memory/target", b"2048")
            attempts.append(target)
            tx.write(b"/local/domain/7/memory/target", b"%d" % (target + 512))
            return target + 512

        target = dom0.transact(balloon)
        say(f"   the attempts read {attempts}; in the end the target is {target}")

        say("\n4. A guest may see and change only what its permissions allow.")
        guest = store.client(domid=7)  # first, because permissions count for existing domains only
        dom0.set_perms(b"/local/domain/7/memory/target", [b"n0", b"r7"])
        say(f"   domain 7 reads     memory/target = {guest.read(b'memory/target')!r}")
        try:
            guest.write(b"memory/target", b"9999")
        except AccessDenied as error:
            say(f"   domain 7 writes    {type(error).__name__}: {error}")

        say("\n5. An error says what failed, where and why. It is also a built-in exception.")
        try:
            dom0.read(b"/local/domain/8/name")
        except NotFound as error:
            say(f"   {type(error).__name__} is a FileNotFoundError: {error}")

        say("\nThe same calls work on a real host: xsproto_sync.Client() finds its xenstored.")
