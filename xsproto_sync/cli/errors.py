"""What an operator sees of an error: an exit status and one line without Python's notation."""

from __future__ import annotations

import ast
import re
from typing import Any, Final

from xsproto.errors import LocalProtocolError, NotFound, TimedOut, XenStoreError
from xsproto.wire import op_name

from .output import printable

__all__ = ["EXIT_STATUSES", "message_of", "status_of"]

#: What the exit statuses of all commands mean.
EXIT_STATUSES: Final = {
    0: "success; for `exists`, all of the nodes exist",
    1: "XenStore or the system refused something, or the connection ended",
    2: "the arguments are wrong",
    3: "the node does not exist",
    4: "the time limit passed",
    130: "interrupted, for example `watch` by Ctrl-C",
}

_BYTES: Final = re.compile(r"""\bb('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")

#: Advice in messages of the library that names something to import -> the command that does it.
_COMMANDS: Final = {"xsproto_sync.EmbeddedXenStore": "`xsproto serve`"}


def status_of(error: Exception) -> int:
    """Return the exit status for an error."""
    for cls, status in ((LocalProtocolError, 2), (NotFound, 3), (TimedOut, 4)):
        if isinstance(error, cls):
            return status
    return 1


def message_of(error: Exception) -> str:
    """Return an error as one line for an operator: where it happened, and what.

    The library's messages are for Python programmers. They show a request as the call of a class,
    and bytes as a literal. Here a request is shown as in xenstore.txt (``READ /a``), and bytes as
    `printable` text.
    """
    if isinstance(error, XenStoreError):
        text = _without_request(error, error.request)
    elif isinstance(error, OSError) and error.strerror:
        # Without a file, it is about what the caller of the command has given it.
        text = f"{error.filename or 'input or output failed'}: {error.strerror}"
    else:
        text = str(error)
    for name, command in _COMMANDS.items():
        text = text.replace(name, command)
    return _BYTES.sub(_printable_literal, text)


def _printable_literal(found: re.Match[str]) -> str:
    try:
        return printable(ast.literal_eval(found[0]))
    except (SyntaxError, ValueError):
        return found[0]  # text that only looks like bytes, for example in the name of a file


def _without_request(error: XenStoreError, request: Any) -> str:
    text = str(error)
    if request is None:
        return text
    shown = op_name(request.op)
    path = getattr(request, "path", None)
    if isinstance(path, bytes):
        shown += f" {printable(path)}"
    refusal = f"{error.code}: {request!r}: "
    if text.startswith(refusal):
        where = shown if error.path is None else printable(error.path)
        why = text.removeprefix(refusal)
        if why == "there is no such node":
            return f"{where}: no such node"
        return f"{where}: {why} ({error.code})"
    return text.replace(repr(request), shown)
