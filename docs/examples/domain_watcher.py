"""Report domains as they come and go.

Here the program itself starts and ends the domains, on the embedded XenStore. On a host, the whole
program is `for news in changes(Client()): print(news)`.
"""

from collections.abc import Iterator

from xsproto import NotFound
from xsproto_sync import Client, EmbeddedXenStore


def domains(client: Client) -> dict[int, str]:
    """Return the domains that the daemon serves, with their names."""
    found: dict[int, str] = {}
    try:
        numbers = client.list(b"/local/domain")
    except NotFound:
        return found  # the daemon has just started, and no toolstack has written anything
    for number in numbers:
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
    with EmbeddedXenStore() as store, store.client() as dom0:
        print("domains at first:", domains(dom0))
        news = changes(dom0)
        web = store.add_guest(1, name="web")  # as a toolstack does, which has named dom0 before
        print(next(news))
        print(next(news))
        store.add_guest(2, name="mail")
        print(next(news))
        store.shutdown_domain(1)  # an event as well, but the domain is still there
        web.remove()
        print(next(news))


if __name__ == "__main__":
    main()
