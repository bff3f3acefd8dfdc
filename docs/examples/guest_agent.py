"""An agent in a guest: it publishes its version, and answers the questions of its host.

It survives suspend and resume, save and restore, and migration: see docs/howto/after-resume.md.
Here host and guest are clients of the embedded XenStore. In a real guest, call
`serve(Client())`.
"""

import threading

from xsproto_sync import Client, EmbeddedXenStore, Transaction

QUESTION, ANSWER, VERSION = b"data/host", b"data/guest", b"data/agent-version"


def publish(client: Client) -> None:
    client.write(VERSION, b"1")


def answer(client: Client) -> bytes | None:
    """Answer the question, if there is one, in a transaction; return the question."""

    def step(tx: Transaction) -> bytes | None:
        question: bytes | None = tx.read(QUESTION, None)
        if question is not None:
            tx.write(ANSWER, b"answer to " + question)
        return question

    return client.transact(step)


def serve(client: Client) -> None:
    with client.monitor() as monitor:
        for path in QUESTION, VERSION:
            monitor.watch(path)
        for _ in monitor:  # the first events come at once, and again after a resume
            if not client.exists(VERSION):
                publish(client)
            if answer(client) == b"goodbye":
                return


def main() -> None:
    with EmbeddedXenStore() as store, store.client() as host:
        guest = store.add_guest(7)
        home = guest.home
        agent = threading.Thread(target=serve, args=(guest.client(),))
        agent.start()
        with host.watch(home + b"/" + ANSWER) as answers:
            for question in b"how are you", b"goodbye":
                host.write(home + b"/" + QUESTION, question)
                while host.read(home + b"/" + ANSWER, b"") != b"answer to " + question:
                    answers.get(timeout=10)
                print(host.read(home + b"/" + ANSWER).decode())
        agent.join()
        print("agent of version", host.read(home + b"/" + VERSION).decode())


if __name__ == "__main__":
    main()
