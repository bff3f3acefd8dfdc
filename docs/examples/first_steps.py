"""First steps in XenStore: write, read, list, watch, transact, and two mistakes."""

import xsproto
import xsproto_sync


def main() -> None:
    with xsproto_sync.Client(timeout=5) as c, xsproto_sync.Client(timeout=5) as other:
        print("A node has a path and a value. Missing parents are created.")
        c.write(b"/tool/example/colour", b"blue")
        c[b"/tool/example/size"] = b"7"
        print("  colour is", c.read(b"/tool/example/colour"))
        print("  /tool/example has", c.list(b"/tool/example"))
        for node in c.walk(b"/tool/example"):
            print("  walk:", node.path, node.value)

        print("A watch reports changes, also those of other clients.")
        with c.watch(b"/tool/example") as watch:
            print("  first event:", watch.get().path)
            other.write(b"/tool/example/colour", b"green")
            event = watch.get(timeout=5)
            print("  then:", event.path, "is", c.read(event.path))

        print("A transaction happens as a whole, or not at all.")

        def grow(tx: xsproto_sync.Transaction) -> int:
            size = int(tx.read(b"/tool/example/size"))
            if size == 7:  # another client is faster, the first time
                other.write(b"/tool/example/size", b"40")
            tx.write(b"/tool/example/size", b"%d" % (size + 1))
            return size + 1

        print("  the size is now", c.transact(grow), "- the first attempt was in vain")

        print("An error says what failed, where and why.")
        try:
            c.read(b"/tool/example/taste")
        except xsproto.NotFound as error:
            print(" ", error)
        try:
            c.write(b"/tool/example", "red")  # type: ignore[arg-type]
        except xsproto.InvalidType as error:
            print(" ", error)

        c.delete(b"/tool/example")
        print("Done:", c.exists(b"/tool/example"))


if __name__ == "__main__":
    main()
