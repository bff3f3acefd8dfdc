"""Keep a table of services for a year, through restarts of the daemon.

Programs register as ``/services/NAME``, with their address as the value. Here the program itself
registers services and restarts the daemon, on the embedded XenStore. On a host, the whole program
is `for routes in follow(Client(reconnect=True)): apply(routes)`.
"""

from collections.abc import Iterator

from xsproto_sync import Client, EmbeddedXenStore, Transaction

MARK = b"/tool/router/mark"


def look(tx: Transaction) -> tuple[bool, dict[bytes, bytes]]:
    """Return whether this is another store than at the last look, and the services in it.

    The transaction makes both be of one store. `transact` runs it again if the daemon restarts.
    """
    is_new = not tx.exists(MARK)
    if is_new:
        tx.write(MARK, b"")  # it is lost with the store
    names = tx.list(b"/services", [])
    return is_new, {name: tx.read(b"/services/" + name) for name in names}


def follow(client: Client) -> Iterator[dict[bytes, bytes]]:
    """Yield the routes after each change."""
    routes: dict[bytes, bytes] = {}
    seen: set[bytes] = set()  # the services that this store has had
    with client.watch(b"/services") as watch:
        for _ in watch:  # the first event comes at once; a restart brings one, too
            is_new, present = client.transact(look)
            if is_new:
                seen = set()
            for name in seen - present.keys():
                del routes[name]  # it was here, so it was removed
            routes |= present  # what is not here yet, after a restart, stays
            seen = set(present)
            yield dict(routes)


def main() -> None:
    with EmbeddedXenStore() as store, store.client(reconnect=True) as services:
        services.write_tree(b"/services", {b"web": b"10.0.0.1", b"mail": b"10.0.0.2"})
        news = follow(store.client(reconnect=True))
        print("at first:", next(news))
        store.restart()  # with an empty store
        print("after a restart:", next(news))
        services.write(b"/services/mail", b"10.0.0.3")
        print("mail is back:", next(news))
        services.delete(b"/services/mail")
        print("mail has gone:", next(news))


if __name__ == "__main__":
    main()
