"""Report domains as they come and go.

Here the program itself starts and ends the domains, on the embedded XenStore. On a host, the whole
program is `for news in changes(Client()): print(news)`.
"""

from collections.abc import Iterator

from xsproto_sync import Client, EmbeddedXenStore


def domains(client: Client) -> dict[int, str]:
    """Return the domains that the daemon serves, with their names."""
    found = {}
    for number in client.list(b"/local/domain"):
        if client.is_domain_introduced(int(number)):
            found[int(number)] = client.read(b"/local/domain/" + number + b"/name", b"?").decode()
    return found


def changes(client: Client) -> Iterator[str]:
    known: dict[int, str] = {}
    with client.monitor() as monitor:
        monitor.watch(b"@introduceDomain")
        monitor.watch(b"@releaseDomain")
        for _ in monitor:  # an event does not name the domain: compare
            present = domains(client)
            for domid in sorted(present.keys() - known.keys()):
                yield f"domain {domid} has come: {present[domid]}"
            for domid in sorted(known.keys() - present.keys()):
                yield f"domain {domid} has gone: {known[domid]}"
            known = present


def main() -> None:
    with EmbeddedXenStore({b"/local/domain/0/name": b"Domain-0"}) as store, store.client() as dom0:
        news = changes(dom0)
        print(next(news))
        for domid, name in (1, b"web"), (2, b"mail"):
            store.add_domain(domid)
            dom0.write(b"/local/domain/%d/name" % domid, name)
            dom0.introduce_domain(domid, gfn=1, evtchn=1)
            print(next(news))
        store.shutdown_domain(1)  # an event as well, but the domain is still there
        store.remove_domain(1)
        print(next(news))


if __name__ == "__main__":
    main()
