"""Report domains as they come and go.

Here the program itself starts and ends the domains, on the embedded XenStore. On a host, the whole
program is `for line in report(Client()): print(line)`.
"""

from collections.abc import Iterator

from xsproto_sync import Client, EmbeddedXenStore


def report(client: Client) -> Iterator[str]:
    with client.watch_domains() as watch:
        for event in watch:
            yield f"domain {event.domid} was {event.what}: {event.name}"


def main() -> None:
    with EmbeddedXenStore() as store, store.client() as dom0:
        print("domains at first:", dom0.domains())
        news = report(dom0)
        web = store.add_guest(1, name="web")  # as a toolstack does, which has named dom0 before
        print(next(news))
        print(next(news))
        store.add_guest(2, name="mail")
        print(next(news))
        dom0.write_text("/local/domain/2/name", "post")
        print(next(news))
        store.shutdown_domain(1)  # the domain is still there
        web.remove()
        print(next(news))


if __name__ == "__main__":
    main()
