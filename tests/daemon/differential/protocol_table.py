"""What docs/explain/protocol.md says of the C daemons, row by row, as steps and what comes of them.

A step is (client, operation, payload), which may go on with the id of a transaction, and with how
often it is repeated, each time with another number in the place of ``#``. A word alone is done to
domain 7, or to 5 with a 5 behind it.

What comes of a step is told in one line: what the one who asked got, in its order, then what others
did, with their number. ``!path|token`` is an event. An answer is ``OK``, an error's name, or the
payload with blanks for NULs. Of repeated steps only equal ones that follow each other are counted.
``EINVAL?`` is what 4.17 says only by chance, and may end of: docs/explain/embedded.md.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

LONG: Final = b"/" + b"x" * 299

Ask = tuple[int, str, bytes] | tuple[int, str, bytes, int] | tuple[int, str, bytes, int, int]


@frozen
class Row:
    """A row of the table: steps, and what comes of each with 4.17, and with the newest daemon."""

    number: int
    title: str
    steps: tuple[Ask | str, ...]
    c_4_17: tuple[str, ...]
    c: tuple[str, ...]
    kills_newest: bool = False


ROWS: Final[list[Row]] = []


def row(
    number: int,
    title: str,
    *steps: Ask | str,
    gives: str,
    newest: str | None = None,
    kills_newest: bool = False,
) -> None:
    """`gives` has a line for each step: what 4.17 does, and the newest, unless `newest` says."""
    lines = tuple([line.strip() for line in gives.strip().splitlines()])
    others = lines
    if newest is not None:
        others = tuple([line.strip() for line in newest.strip().splitlines()])
    ROWS.append(Row(number, title, steps, lines, others, kills_newest))


START: Final = (0, "TRANSACTION_START", b"\0")
COMMIT: Final = (0, "TRANSACTION_END", b"T\0", 1)

row(
    *(1, "a header that announces 4097 bytes", (0, "READ", bytes(4097)), (5, "READ", bytes(4097))),
    gives="closed\nclosed",
)
row(
    *(2, "a payload of exactly 4096 bytes", (0, "WRITE", b"/a\0" + b"v" * 4093)),
    gives="OK",
)
row(
    *(3, "no payload", (0, "CONTROL", b""), (0, "RESET_WATCHES", b""), (0, "READ", b"")),
    gives="EINVAL\nOK\nEINVAL?",
)
row(
    *(4, "unknown types", (0, "9999", b"\0"), (0, "20", b"\0"), (0, "15", b"\0"), (0, "16", b"\0")),
    gives="ENOSYS\nENOSYS\nENOSYS\nENOSYS",
)
row(5, "DIRECTORY_PART", (0, "DIRECTORY_PART", b"/tool\x000\0"), gives="xenstored")
row(
    *(6, "features and quotas", (0, "GET_FEATURE", b""), (5, "GET_FEATURE", b"")),
    *((0, "SET_FEATURE", b"5\x000\0"), (0, "GET_QUOTA", b""), (0, "SET_QUOTA", b"nodes\x005\0")),
    gives="ENOSYS\nENOSYS\nENOSYS\nENOSYS\nENOSYS",
    newest="""14
        14
        EBUSY
        nodes watches outstanding memory soft-memory transactions transaction-nodes \
node-permissions path-max node-size
        OK""",
)
row(
    *(7, "a path without its NUL, or with more", (0, "READ", b"/tool"), (0, "RM", b"/tool\0x\0")),
    gives="EINVAL?\nEINVAL?",
)
row(
    *(8, "the transaction's id comes back", (0, "WATCH", b"/a\0t\0", 77), (0, "READ", b"/\0", 77)),
    gives="OK !/a|t\nENOENT",
)
row(
    *(9, "an unknown transaction, or another's", (0, "READ", b"/\0", 9), (1, *START[1:])),
    *((0, "READ", b"/\0", 1), (0, "UNWATCH", b"/\0t\0", 9), (0, "WATCH", b"/\0t\0", 9)),
    gives="ENOENT\n1\nENOENT\nENOENT\nOK !/|t",
)
row(10, "nested transactions", START, (*START, 1), gives="1\nEBUSY")
row(11, "the end of none", (0, "TRANSACTION_END", b"T\0"), gives="ENOENT")
row(
    *(12, "an odd end", START, (0, "TRANSACTION_END", b"X\0", 1), (0, "TRANSACTION_END", b"T", 1)),
    COMMIT,
    gives="1\nEINVAL\nEINVAL\nOK",
)
row(
    *(13, "paths that are none", (0, "READ", b"//\0"), (0, "READ", b"/tool/\0")),
    *((0, "READ", b"/to ol\0"), (0, "READ", b"\0")),
    gives="EINVAL\nEINVAL\nEINVAL\nEINVAL",
)
row(
    *(14, "relative paths", (0, "WRITE", b"data\0v"), (0, "READ", b"/local/domain/0/data\0")),
    *((5, "WRITE", b"data\0w"), (0, "READ", b"/local/domain/5/data\0")),
    gives="OK\nv\nOK\nw",
)
row(
    *(
        15,
        "long paths",
        (0, "READ", b"/" + b"x" * 2047 + b"\0"),
        (0, "READ", b"/" + b"x" * 2048 + b"\0"),
    ),
    *((5, "READ", b"x" * 2047 + b"\0"), (5, "READ", b"x" * 2048 + b"\0")),
    (5, "READ", b"x" * 2049 + b"\0"),
    gives="ENOENT\nEINVAL\nENOENT\nENOENT\nEINVAL",
    newest="ENOENT\nENOENT\nENOENT\nEINVAL\nEINVAL",
)
row(
    *(16, "special paths where none may be", (0, "READ", b"@x\0"), (0, "WRITE", b"@x\0")),
    *((0, "MKDIR", b"@x\0"), (0, "RM", b"@releaseDomain\0"), (0, "DIRECTORY", b"@releaseDomain\0")),
    gives="EINVAL\nEINVAL\nEINVAL\nEINVAL\nEINVAL",
)
row(17, "what there is at first", (1, "DIRECTORY", b"/\0"), gives="tool local")
row(18, "what is in it", (0, "READ", b"/tool/xenstored\0"), gives='""')
row(
    *(19, "permissions of a special path", (0, "GET_PERMS", b"@releaseDomain\0")),
    (5, "GET_PERMS", b"@releaseDomain\0"),
    gives="EINVAL\nEINVAL",
    newest="n0 r32757\nn0 r32757",
)
row(20, "their change", (0, "SET_PERMS", b"@releaseDomain\0n0\0r5\0"), gives="OK")
row(
    *(21, "parents are made", (0, "WRITE", b"/a\0v"), (0, "SET_PERMS", b"/a\0r0\0w5\0")),
    *((0, "WRITE", b"/a/b/c\0v"), (0, "READ", b"/a/b\0"), (0, "GET_PERMS", b"/a/b\0")),
    gives='OK\nOK\nOK\n""\nr0 w5',
)
row(
    *(22, "a guest owns what it makes", (0, "WRITE", b"/a\0"), (0, "SET_PERMS", b"/a\0n0\0b5\0")),
    *((5, "WRITE", b"/a/b\0v"), (0, "GET_PERMS", b"/a/b\0")),
    gives="OK\nOK\nOK\nn5 b5",
)
row(
    *(23, "WRITE to the root", (1, "WATCH", b"/\0t\0"), (0, "WRITE", b"/\0v")),
    gives="OK !/|t\nOK 1!/|t",
)
row(24, "WRITE without a NUL", (0, "WRITE", b"/a"), gives="EINVAL")
row(
    *(25, "a guest's node may have so many bytes", (5, "WRITE", b"a\0" + b"v" * 2015)),
    *((5, "WRITE", b"a\0" + b"v" * 2016), (5, "WRITE", b"a\0" + b"v" * 2023)),
    (5, "WRITE", b"a\0" + b"v" * 2024),
    gives="OK\nENOSPC\nENOSPC\nENOSPC",
    newest="OK\nOK\nOK\nENOSPC",
)
row(
    *(26, "MKDIR of what there is", (0, "WATCH", b"/\0t\0"), (0, "MKDIR", b"/tool\0")),
    *((0, "MKDIR", b"/\0"), (5, "MKDIR", b"/tool\0")),
    gives="OK !/|t\nOK\nOK\nEACCES",
)
row(
    *(27, "RM of what there is not", (0, "WATCH", b"/\0t\0"), (0, "RM", b"/tool/a\0")),
    gives="OK !/|t\nOK",
)
row(28, "nor its parent", (0, "RM", b"/a/b\0"), gives="ENOENT")
row(29, "and a guest's", (5, "RM", b"/missing\0"), gives="EACCES")
row(30, "RM of the root", (0, "RM", b"/\0"), gives="EINVAL")
row(31, "a guest's READ of what there is not", (5, "READ", b"/tool/a\0"), gives="EACCES")
row(
    *(32, "a directory too large", (0, "MKDIR", LONG + b"/#\0", 0, 10), (0, "RM", LONG + b"\0")),
    *((0, "MKDIR", b"/a/#-" + LONG[1:] + b"\0", 0, 14), (0, "DIRECTORY", b"/a\0")),
    gives="10*OK\nOK\n14*OK\nE2BIG",
)
row(
    *(33, "children in the order of their creation", (0, "MKDIR", b"/d/#\0", 0, 3)),
    *((0, "DIRECTORY", b"/d\0"), (0, "RM", b"/d/1\0"), (0, "MKDIR", b"/d/1\0")),
    (0, "DIRECTORY", b"/d\0"),
    gives="3*OK\n1 2 3\nOK\nOK\n2 3 1",
)
row(
    *(
        34,
        "permissions that are none",
        (0, "SET_PERMS", b"/tool\0"),
        (0, "SET_PERMS", b"/tool\0x0\0"),
    ),
    *((0, "SET_PERMS", b"/tool\0r\0"), (0, "SET_PERMS", b"/tool\0n0")),
    gives="EINVAL\nEINVAL\nEINVAL\nEINVAL",
)
row(
    *(35, "a second entry without its NUL", (0, "SET_PERMS", b"/tool\0n0\0r5")),
    (0, "GET_PERMS", b"/tool\0"),
    gives="OK\nn0",
)
row(
    *(
        36,
        "numbers",
        (0, "SET_PERMS", b"/tool\0n0\0r010\0r0x10\0r-1\0"),
        (0, "GET_PERMS", b"/tool\0"),
    ),
    gives="OK\nn0 r8 r16 r-1",
)
row(37, "an owner that there is not", (0, "SET_PERMS", b"/tool\0n9\0"), gives="ENOENT")
row(
    *(38, "others that there are not, or twice", (0, "SET_PERMS", b"/tool\0n0\0r9\0b5\0r5\0r9\0")),
    (0, "GET_PERMS", b"/tool\0"),
    gives="OK\nn0 r9 b5 r5 r9",
)
row(
    *(39, "DOMID_ANY over a socket", (0, "SET_PERMS", b"/tool\0n0\0r32757\0")),
    *((0, "GET_PERMS", b"/tool\0"), (5, "READ", b"/tool\0")),
    gives="OK\nn0 r32757\nEACCES",
    newest='OK\nn0 r32757\n""',
    kills_newest=True,
)
row(
    *(40, "a guest's many permissions", (5, "MKDIR", b"a\0")),
    *((5, "SET_PERMS", b"a\0n5\0" + b"r0\0" * 3), (5, "SET_PERMS", b"a\0n5\0" + b"r0\0" * 4)),
    (5, "SET_PERMS", b"a\0n5\0" + b"r0\0" * 5),
    gives="OK\nOK\nOK\nENOSPC",
    newest="OK\nOK\nENOSPC\nENOSPC",
)
row(
    *(41, "a guest gives a node away, or another's", (5, "MKDIR", b"a\0")),
    *((5, "SET_PERMS", b"a\0n0\0"), (5, "SET_PERMS", b"/tool\0n5\0")),
    gives="OK\nEPERM\nEACCES",
)
row(
    *(42, "a watch twice", (0, "WATCH", b"/a\0t\0"), (0, "WATCH", b"/a\0t\0")),
    gives="OK !/a|t\nEEXIST",
)
row(
    *(43, "UNWATCH", (0, "UNWATCH", b"/a\0t\0"), (0, "WATCH", b"a\0t\0")),
    *(
        (0, "UNWATCH", b"/local/domain/0/a\0t\0"),
        (0, "UNWATCH", b"/a\0"),
        (0, "UNWATCH", b"/a\0t\0x\0"),
    ),
    gives="ENOENT\nOK !a|t\nOK\nEINVAL\nEINVAL",
)
row(
    *(44, "the first event", (0, "WATCH", b"/missing\0t\0"), (5, "WATCH", b"/tool\0t\0")),
    *((0, "WATCH", b"@foo\0t\0"), (5, "WATCH", b"@introduceDomain\0t\0")),
    gives="OK !/missing|t\nOK !/tool|t\nOK !@foo|t\nOK !@introduceDomain|t",
)
row(
    *(
        45,
        "events of one's own",
        (0, "WATCH", b"/a\0t\0"),
        (0, "WRITE", b"/a\0"),
        (0, "MKDIR", b"/a/b\0"),
    ),
    *((0, "SET_PERMS", b"/a\0n0\0"), (0, "RM", b"/a\0")),
    gives="OK !/a|t\n!/a|t OK\n!/a/b|t OK\n!/a|t OK\n!/a|t OK",
)
row(
    *(46, "events of a commit, and of domains", (0, "WATCH", b"/a\0t\0"), START),
    *((0, "WRITE", b"/a\0", 1), COMMIT, (0, "WATCH", b"@introduceDomain\0t\0")),
    *((0, "WATCH", b"@releaseDomain\0t\0"), "create", (0, "INTRODUCE", b"7\x001\x001\0")),
    (0, "RELEASE", b"7\0"),
    gives="""OK !/a|t
        1
        OK
        !/a|t OK
        OK !@introduceDomain|t
        OK !@releaseDomain|t
        -
        !@introduceDomain|t OK
        !@releaseDomain|t OK 7closed""",
)
row(
    *(47, "several watches", (0, "WATCH", b"/a/b\x001\0"), (0, "WATCH", b"/\x002\0")),
    *((0, "WATCH", b"/a\x003\0"), (0, "WRITE", b"/a/b\0")),
    gives="OK !/a/b|1\nOK !/|2\nOK !/a|3\n!/a/b|1 !/a/b|2 !/a/b|3 OK",
)
row(
    *(
        48,
        "identical events",
        (0, "WATCH", b"/a\0t\0"),
        (0, "WATCH", b"/\0t\0"),
        (0, "WRITE", b"/a\0"),
    ),
    gives="OK !/a|t\nOK !/|t\n!/a|t OK",
)
row(
    *(49, "events of a transaction", (1, "WATCH", b"/\0t\0"), (0, "MKDIR", b"/a\0"), START),
    *((0, "READ", b"/a\0", 1), (0, "WRITE", b"/b\0", 1), (0, "WRITE", b"/a\0", 1)),
    *((0, "WRITE", b"/b\0v", 1), (0, "WRITE", b"/c\0", 1), (0, "RM", b"/c\0", 1), COMMIT),
    gives='OK !/|t\nOK 1!/a|t\n1\n""\nOK\nOK\nOK\nOK\nOK\nOK 1!/a|t 1!/b|t',
)
row(
    *(50, "RM of a subtree", (0, "WRITE", b"/a/b/c\0"), (0, "WATCH", b"/a/b/c\x001\0")),
    *((0, "WATCH", b"/a\x002\0"), (0, "WATCH", b"/a/b\x003\0"), (0, "WATCH", b"/a/x\x004\0")),
    (0, "RM", b"/a\0"),
    gives="""OK
        OK !/a/b/c|1
        OK !/a|2
        OK !/a/b|3
        OK !/a/x|4
        !/a/b/c|1 !/a/b|3 !/a|2 OK""",
)
row(
    *(51, "a watch with a depth", (0, "WATCH", b"/a\0t\x000\0"), (0, "WRITE", b"/a\0")),
    *((0, "WRITE", b"/a/b\0"), (0, "WATCH", b"@introduceDomain\0t\x001\0"), "create"),
    (0, "INTRODUCE", b"7\x001\x001\0"),
    gives="EINVAL\nOK\nOK\nEINVAL\n-\nOK",
    newest="""OK !/a|t
        !/a|t OK
        OK
        OK !@introduceDomain|t
        -
        !@introduceDomain/7|t OK""",
)
row(
    *(52, "an event that fits no packet", (1, "WATCH", b"/\0" + b"t" * 2050 + b"\0")),
    (0, "WRITE", b"/" + b"x" * 2047 + b"\0"),
    gives=f"OK !/|{'t' * 2050}\nOK",
)
row(
    *(
        53,
        "a first read in a transaction",
        (0, "WRITE", b"/a\0old"),
        START,
        (1, "WRITE", b"/a\0new"),
    ),
    *((0, "READ", b"/a\0", 1), COMMIT),
    gives="OK\n1\nOK\nnew\nOK",
)
row(
    *(54, "what was read was written since", (0, "MKDIR", b"/a\0"), START, (0, "READ", b"/a\0", 1)),
    *((1, "WRITE", b"/a\0"), COMMIT),
    gives='OK\n1\n""\nOK\nEAGAIN',
)
row(
    *(55, "with the same value", (0, "WRITE", b"/a\0v"), START, (0, "READ", b"/a\0", 1)),
    *((0, "WRITE", b"/b\0", 1), (1, "WRITE", b"/a\0v"), COMMIT),
    gives="OK\n1\nv\nOK\nOK\nEAGAIN",
)
row(
    *(56, "what was written was written since", (0, "MKDIR", b"/a\0"), START),
    *((0, "WRITE", b"/a\0x", 1), (1, "WRITE", b"/a\0y"), COMMIT, (0, "READ", b"/a\0")),
    gives="OK\n1\nOK\nOK\nEAGAIN\ny",
)
row(
    *(57, "other children", (0, "MKDIR", b"/a\0"), START, (0, "WRITE", b"/a/x\0", 1)),
    *((1, "WRITE", b"/a/y\0"), COMMIT),
    gives="OK\n1\nOK\nOK\nEAGAIN",
)
row(
    *(58, "a child more", (0, "MKDIR", b"/a\0"), START, (0, "DIRECTORY", b"/a\0", 1)),
    *((0, "WRITE", b"/b\0", 1), (1, "WRITE", b"/a/y\0"), COMMIT),
    gives='OK\n1\n""\nOK\nOK\nEAGAIN',
)
row(
    *(
        59,
        "what was not there is",
        START,
        (0, "READ", b"/tool/a\0", 1),
        (0, "WRITE", b"/tool/xenstored/b\0", 1),
    ),
    *((1, "WRITE", b"/tool/a\0"), COMMIT),
    gives="1\nENOENT\nOK\nOK\nEAGAIN",
)
row(
    *(60, "other permissions", (0, "MKDIR", b"/a\0"), START, (0, "SET_PERMS", b"/a\0r0\0", 1)),
    *((1, "WRITE", b"/a\0"), COMMIT),
    gives="OK\n1\nOK\nOK\nEAGAIN",
)
row(
    *(
        61,
        "other nodes",
        START,
        (0, "WRITE", b"/tool/a\0", 1),
        (1, "WRITE", b"/tool/xenstored/b\0"),
    ),
    COMMIT,
    gives="1\nOK\nOK\nOK",
)
row(
    *(
        62,
        "a write too large in a transaction",
        (5, *START[1:]),
        (5, "WRITE", b"a\0" + bytes(2100), 1),
    ),
    *((5, "WRITE", b"b\0", 1), (5, *COMMIT[1:])),
    gives="1\nENOSPC\nOK\nENOMEM",
)
row(
    *(63, "a guest's transactions", (5, "TRANSACTION_START", b"\0", 0, 12)),
    gives="1 2 3 4 5 6 7 8 9 10 11 ENOSPC",
    newest="1 2 3 4 5 6 7 8 9 3*ENOSPC",
)
row(
    *(64, "a guest's watches", (5, "WATCH", b"a\0#\0", 0, 130)),
    gives=f"{' '.join([f'OK !a|{number}' for number in range(1, 130)])} E2BIG",
    newest=f"{' '.join([f'OK !a|{number}' for number in range(1, 128)])} 3*ENOSPC",
)
row(
    *(65, "a guest's nodes", (5, "MKDIR", b"a/#\0", 0, 400), (5, "MKDIR", b"b/#\0", 0, 400)),
    (5, "MKDIR", b"c/#\0", 0, 400),
    gives="400*OK\n400*OK\n196*OK 204*ENOSPC",
    newest="400*OK\n400*OK\n195*OK 205*ENOSPC",
)
row(
    *(66, "dom0's", (0, "TRANSACTION_START", b"\0", 0, 30), (0, "RESET_WATCHES", b"\0")),
    *((0, "WATCH", b"/a\0#\0", 0, 300), (0, "RESET_WATCHES", b"\0")),
    gives=f"""{" ".join(map(str, range(1, 31)))}
        OK
        {" ".join([f"OK !/a|{number}" for number in range(1, 301)])}
        OK""",
)
row(
    *(67, "RESET_WATCHES", (0, "WATCH", b"/a\0t\0"), START, (0, "RESET_WATCHES", b"\0")),
    *((0, "WRITE", b"/a\0"), COMMIT),
    gives="OK !/a|t\n1\nOK\nOK\nENOENT",
)
row(
    *(68, "GET_DOMAIN_PATH", (0, "GET_DOMAIN_PATH", b"999\0"), (0, "GET_DOMAIN_PATH", b"abc\0")),
    *((0, "GET_DOMAIN_PATH", b"70000\0"), (0, "GET_DOMAIN_PATH", b"-1\0")),
    (0, "GET_DOMAIN_PATH", b"\0"),
    gives="""/local/domain/999
        /local/domain/0
        /local/domain/70000
        /local/domain/4294967295
        /local/domain/0""",
    newest="/local/domain/999\nEINVAL\nEINVAL\nEINVAL\n/local/domain/0",
)
row(
    *(69, "IS_DOMAIN_INTRODUCED", (0, "IS_DOMAIN_INTRODUCED", b"0\0")),
    *((0, "IS_DOMAIN_INTRODUCED", b"999\0"), (0, "IS_DOMAIN_INTRODUCED", b"32752\0")),
    (0, "IS_DOMAIN_INTRODUCED", b"0"),
    gives="T\nF\nT\nEINVAL",
)
row(
    *(70, "INTRODUCE of a known domain", (5, "WATCH", b"a\0t\0"), (5, "TRANSACTION_START", b"\0")),
    *((0, "INTRODUCE", b"5\x002\x001\0more\0"), (0, "WRITE", b"/local/domain/5/a\0")),
    *(
        (5, "READ", b"a\0", 1),
        (0, "INTRODUCE", b"0\x001\x001\0"),
        (0, "INTRODUCE", b"5\x001\x000\0"),
    ),
    gives="OK !a|t\n1\nOK\nOK\nENOENT\nOK\nEINVAL",
)
row(71, "RELEASE", (0, "RELEASE", b"9\0"), (0, "RELEASE", b"0\0"), gives="ENOENT\nEINVAL")
row(
    *(72, "RESUME and SET_TARGET", (0, "RESUME", b"9\0"), (0, "RESUME", b"0\0")),
    (0, "SET_TARGET", b"5\x009\0"),
    gives="ENOENT\nEINVAL\nENOENT",
)
row(
    *(73, "nodes of a domain that ends", (0, "WATCH", b"/local\0t\0"), (5, "WRITE", b"a\0")),
    *("destroy5", (0, "READ", b"/local/domain/5\0"), "create", (0, "INTRODUCE", b"7\x001\x001\0")),
    *((0, "WRITE", b"/local/b\0"), (0, "SET_PERMS", b"/local/b\0n7\0"), (0, "RELEASE", b"7\0")),
    gives="""OK !/local|t
        OK 0!/local/domain/5/a|t
        0!/local/domain/5|t 5closed
        ENOENT
        -
        OK
        !/local/b|t OK
        !/local/b|t OK
        !/local/b|t OK 7closed""",
)
row(
    *(74, "what a guest may not", (5, "CONTROL", b"help\0"), (5, "INTRODUCE", b"7\x001\x001\0")),
    *((5, "RELEASE", b"5\0"), (5, "RESUME", b"5\0"), (5, "SET_TARGET", b"5\x000\0")),
    (5, "IS_DOMAIN_INTRODUCED", b"5\0"),
    gives="EACCES\nEACCES\nEACCES\nEACCES\nEACCES\nEACCES",
)
row(
    *(75, "CONTROL", (0, "CONTROL", b"nothing\0"), (0, "CONTROL", b"help\0")),
    gives="EINVAL\nwords",
)
