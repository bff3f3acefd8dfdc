"""What is asked of Debian's xenstore-utils.

Each line is an exit status and a command; after ``@5`` it runs in the guest.
"""

import shlex
from typing import Final

_every_byte = "".join(f"\\x{byte:02x}" for byte in range(1, 256))
READ_AND_WRITE: Final = rf"""
0 xenstore-write /a one /b '' relative/c three
0 xenstore-read /a
0 xenstore-read /a /b relative/c /local/domain/0/relative/c /
0 xenstore-read -p /a /b
0 xenstore-read -R /a
0 xenstore-read -p -R /a /b
0 xenstore-read --prefix --raw /a
0 xenstore-read /a -p
0 xenstore-read -s /a
1 xenstore-read /missing
1 xenstore-read /a /missing /b
1 xenstore-read //
1 xenstore-read /a/
1 xenstore-read '/a b'
1 xenstore-read ''
1 xenstore-read @releaseDomain
0 xenstore-write /escaped 'x\n\t\r\\\x41\x7f\101\0é' /bytes '{_every_byte}'
0 xenstore-read /escaped /bytes
0 xenstore-read -R /escaped
0 xenstore-write -R /raw 'x\n\t\\ \x41' --raw /again '\101'
0 xenstore-read /raw /again
0 xenstore-write /deep/er/and/deeper x /deep y
0 xenstore-write /long {"l" * 4000}
0 xenstore-read /long
1 xenstore-write /too-long {"l" * 4096}
1 xenstore-write /ok 1 // 2 /never 3
1 xenstore-read /ok
1 xenstore-write '/a b' x
1 xenstore-write @releaseDomain x
0 xenstore-write / root
0 xenstore-write /{"p" * 2040} x
1 xenstore-write /{"p" * 3080} x
"""

_many = " ".join(f"/many/child-of-some-length-{number} {number}" for number in range(200))
LS_AND_LIST: Final = rf"""
0 xenstore-write /vm/1/name one /vm/1/odd '\x01\n"\xff' /vm/2 '' /long {"x" * 100}
0 xenstore-write relative r {_many}
0 xenstore-chmod /vm/1 n5 r0 w6 b7
0 xenstore-ls /vm
0 xenstore-ls
0 xenstore-ls -f
0 xenstore-ls -p
0 xenstore-ls -fp /
0 xenstore-ls -f -p /vm/1 /vm
0 xenstore-ls --flat --prefix
0 xenstore-ls /vm/2
1 xenstore-ls .
0 xenstore-ls relative
1 xenstore-ls /missing
1 xenstore-ls /vm /missing /long
1 xenstore-ls /vm/
1 xenstore-ls ''
1 xenstore-ls @releaseDomain
0 xenstore-list /
0 xenstore-list /vm /vm/1 /vm/2
0 xenstore-list -p / /vm
0 xenstore-list /many
1 xenstore-list /vm /missing
1 xenstore-list //
1 xenstore-list relative/missing
0 xenstore-rm /many
"""

RM_EXISTS_AND_CHMOD: Final = """
0 xenstore-write /a/b/c/d x /e/f '' /g h relative/i j /k/l/m ''
0 xenstore-exists /a
0 xenstore-exists /a /e/f relative/i /
1 xenstore-exists /missing
1 xenstore-exists /a /missing /e
1 xenstore-exists /a/
0 xenstore-chmod /a n5
0 xenstore-chmod /a/b r0 w5 b6 n7
0 xenstore-chmod -r /a w0 r5
0 xenstore-chmod -u /a/b/c n0 r6
0 xenstore-chmod -r -u /a/b b5
0 xenstore-chmod --recurse /e n5
0 xenstore-chmod --upto /k/l r0
0 xenstore-ls -fp
1 xenstore-chmod /a n999
0 xenstore-chmod /a n0 r999
1 xenstore-chmod /a x5
0 xenstore-chmod /a r
1 xenstore-chmod /a n-1
1 xenstore-chmod /a
1 xenstore-chmod /missing n0
1 xenstore-chmod // n0
1 xenstore-chmod -u relative n0
0 xenstore-chmod relative n0 r5
1 xenstore-chmod -r / b0
0 xenstore-chmod @releaseDomain n0 r999
0 xenstore-ls -fp
0 xenstore-rm -t /k/l/m
0 xenstore-rm --tidy relative/i
0 xenstore-rm /g /e
0 xenstore-rm /missing
1 xenstore-rm /missing/deeper
1 xenstore-rm /a/b /missing/deeper
0 xenstore-exists /a/b
1 xenstore-rm /
1 xenstore-rm ''
0 xenstore-rm -t /a/b/c/d
0 xenstore-ls -fp
"""

_MODES = ("exists", "list", "ls", "rm", "read", "write", "chmod", "watch")
_USAGE = [f"1 xenstore-{mode} {wrong}" for mode in _MODES for wrong in ("-h", "--help")]
_USAGE += [f"1 xenstore-{mode}" for mode in _MODES if mode != "ls"]
WRONG_OPTIONS: Final = (
    "\n".join(_USAGE)
    + """
0 xenstore write /a b
0 xenstore read -p /a
0 xenstore ls -f
0 xenstore exists /a
1 xenstore
1 xenstore bogus
1 xenstore -h
0 xenstore-ls -z
0 xenstore-read --bogus /a
1 xenstore-read -t /a
1 xenstore-write /a
1 xenstore-write /a b /c
1 xenstore-ls -R
1 xenstore-rm -p /a
1 xenstore-chmod -f /a n0
1 xenstore-exists -p /missing
1 xenstore-watch -n
0 xenstore-read -- /a
"""
)

IN_A_GUEST: Final = f"""
0 xenstore-write /local/domain/5 '' /secret/deep x /shown/deep y
0 xenstore-chmod /local/domain/5 n5 r6
0 xenstore-chmod /secret n0
0 xenstore-chmod -r /shown n0 r5
0 @5 xenstore-write name five /local/domain/5/data/x y
1 @5 xenstore-write /a b
1 @5 xenstore-write name {"z" * 2100}
1 @5 xenstore-write ok 1 /secret 2
1 @5 xenstore-read name /secret
0 @5 xenstore-read -p name /local/domain/5/data/x /shown/deep
1 @5 xenstore-ls
1 @5 xenstore-list /
0 xenstore-chmod / r0
1 @5 xenstore-ls
1 @5 xenstore-ls -fp
0 @5 xenstore-ls -fp /local/domain/5
0 @5 xenstore-ls -p /shown
1 @5 xenstore-list / /secret
0 @5 xenstore-exists name
1 @5 xenstore-exists /secret
1 @5 xenstore-exists /secret/none
1 @5 xenstore-rm /secret
1 @5 xenstore-rm /shown/deep
0 @5 xenstore-rm -t data/x
0 @5 xenstore-rm none
0 @5 xenstore-chmod name n5 r0 r6 b6
1 @5 xenstore-chmod name r0
1 @5 xenstore-chmod /secret b5
1 @5 xenstore-chmod name n5 r0 r1 r2 r3 r4
0 @5 xenstore-watch -n 2 name /local/domain/5/name
0 @5 xenstore-watch -n 1 /secret
0 @5 xenstore-watch -n 1 @releaseDomain
1 @5 xenstore-watch -n 1 //
0 xenstore-ls -fp
"""


# What scanf makes of what is not quite a number.
_hex = ["", "4", "41", "411", "g", " 4", "  41", "\t4", "+4", "-1", "+", "- 1", "0x", "0x41", "0X4"]
_hex += ["+0x1", r"\x41", "0", "\v\f 4g", "+ 4", "-g", "é"]
_octal = ["1", "12", "123", "1234", "777", "8", "18", "08", "000", "0"]
_others = ["\\", r"\\", r"\\" + "\\", r"\q", r"\é", r"\ ", "x\\", r"\"", "é", "\t"]
_odd_values = [*(rf"\x{each}" for each in _hex), *(rf"\{each}" for each in _octal), *_others]
ODD_VALUES: Final = "\n".join(
    f"0 xenstore-write /v {shlex.quote(value)}\n0 xenstore-read /v\n0 xenstore-read -R /v"
    for value in _odd_values
)

ODD_OPTIONS: Final = """
0 xenstore-write /a 1 /a/b 2 /a/b/c 3 /-p 4
0 xenstore-read --pre /a
0 xenstore-read --r /a
0 xenstore-read --re=x /a
0 xenstore-read --rec= /a
0 xenstore-read --prefix=x /a
0 xenstore-read --bogus=x /a
1 xenstore-read --recurse /a
0 xenstore-read --= /a
0 xenstore-read -pR /a
0 xenstore-read -zpyR /a
0 xenstore-read -p -- /a
1 xenstore-read -- -p /a
1 xenstore-read - /a
1 xenstore-read -ph /a
1 xenstore-read -z -t /a
0 xenstore-read -é /a
0 xenstore read --bogus /a
0 xenstore read -z /a
1 xenstore read -h
1 xenstore ls -t
1 xenstore chmod
1 xenstore xenstore-read /a
0 xenstore-watch -n 0 /a
0 xenstore-watch -n0 /a
0 xenstore-watch -n1x /a
0 xenstore-watch -n ' 1' /a /b
1 xenstore-watch -n 1 /a /a
1 xenstore-watch -n 1 /a /a/
0 xenstore-watch --number=2 /a /b
0 xenstore-watch --num 2 /a /b
1 xenstore-watch --number
1 xenstore-watch -n
0 xenstore-watch -n 1 -n 2 /a /b
0 xenstore-watch -n -5 /a
0 xenstore-watch -d 1 /a -n 2
0 xenstore-ls -s -f /a
0 xenstore-ls /a --flat
0 xenstore-ls -p / /a
0 xenstore-ls -fp /a/b
0 xenstore-chmod /a n0x 'r 5' r+6 w-0 b007
0 xenstore-ls -p
1 xenstore-chmod /a n99999999999999999999
1 xenstore-chmod /a n4294967296 ''
0 xenstore-chmod /a n4294967296
1 xenstore-chmod /a 5
0 xenstore-chmod '' n0
1 xenstore-chmod /a n0 /b
0 xenstore-chmod -ur /a/b n0 r5
0 xenstore-ls -fp
"""

LONG_LINES: Final = "\n".join(
    [
        *(f"0 xenstore-write /w/{'n' * 20}/v{size} {'v' * size}" for size in range(28, 76)),
        *(f"0 xenstore-write /w/{'n' * size} {'v' * 8}" for size in range(50, 80)),
        rf"""0 xenstore-write /w/z '{"t " * 10}\\n\\n\\n\\x01' /w/y '{"x" * 70}\\n'""",
        f"0 xenstore-write /deep{'/d' * 100} end",
        f"0 xenstore-chmod /w/{'n' * 20} n0 r1 r2 r3",
        "0 xenstore-ls",
        "0 xenstore-ls -p",
        "0 xenstore-ls -f",
        "0 xenstore-ls -fp",
    ]
)
