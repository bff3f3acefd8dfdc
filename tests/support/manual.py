"""The manual as a program: what its pages show is done, and what they say comes of it is compared.

The blocks of a page are run in order, with an empty embedded XenStore that `Client()` and the
command ``xsproto`` find:

=========== ======================================================================================
``python``  is run, in one namespace for the page; or, if its first line is a comment with a file
            name, is that file, which pytest runs if it is one of tests
``pycon``   a session, whose answers must come, in the same namespace
``sh``      is run by bash, and must succeed
``console`` lines after ``$`` are run by bash, one by one, and must print what follows
a program   that is included from the examples is run
``text``    must be what the block right before it printed; there ``...`` stands for anything
=========== ======================================================================================

Where a block reaches a host by ssh, that is the loopback host of `tests.support.loopback_sshd`,
with the same store.

A block of another kind, or a ``text`` that follows none, is an error: it could say anything.

By hand: ``python -m tests.support.manual docs/learn/tutorial.md``.
"""

from __future__ import annotations

import doctest
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from xsproto_sync import EmbeddedXenStore

from . import ROOT, loopback_sshd
from .loopback_sshd import LoopbackSshd

__all__ = ["PROGRAM", "ROOT", "Block", "blocks", "needs_ssh", "run_page"]

_FENCE: Final = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n"
    r"(?P<text>.*?)"
    r"^(?P=indent)(?P=fence)$\n?",
    re.MULTILINE | re.DOTALL,
)
_FILE: Final = re.compile(r"# ([\w.]+\.py)\n")
_TIMEOUT: Final = 60

#: The language of a block whose text is the path of a program.
PROGRAM: Final = "program"

#: What an installation puts on PATH, and where its `main` is.
COMMANDS: Final = {
    "xsproto": "xsproto_sync.cli.main",
    "xsproto-xenstore": "xsproto_sync.compat.xenstore_utils",
}


@frozen
class Block:
    """A fenced block of a page.

    Attributes:
        line: that of its first line of text, counted from 1.
        follows: whether it stands right behind another one.
    """

    page: Path
    line: int
    language: str
    text: str
    follows: bool

    def wrong(self, why: str) -> AssertionError:
        return AssertionError(f"{self.page}:{self.line}: {why}")


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page; of MyST's directives, only those that include an example."""
    source = page.read_text(encoding="utf-8")
    end = None
    for match in _FENCE.finditer(source):
        follows = end is not None and not source[end : match.start()].strip()
        end = match.end()
        language, text = match["language"].strip(), _outdented(match["text"], len(match["indent"]))
        if language.startswith("{literalinclude} ../examples/"):
            language, text = PROGRAM, str((page.parent / language.partition(" ")[2]).resolve())
        if not language.startswith("{"):
            line = source.count("\n", 0, match.start()) + 2
            yield Block(page, line, language, text, follows)


def _outdented(text: str, by: int) -> str:
    return "".join(line[by:] or "\n" for line in text.splitlines(keepends=True))


def run_page(page: Path, directory: Path, left_out: Collection[str] = ()) -> None:
    """Do what a page shows, in this process, whose environment is changed.

    Arguments:
        directory: where to keep its files.
        left_out: what blocks begin with that are not to be run.

    Raises:
        AssertionError: what comes of it is not what the page says.
    """
    commands = directory / "bin"
    commands.mkdir()
    for name, module in COMMANDS.items():
        code = f"import sys; sys.argv[0] = '{name}'; from {module} import main; sys.exit(main())"
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
        (commands / name).chmod(0o755)
    os.environ.pop("PYTEST_ADDOPTS", None)  # which is for the tests that look at the page
    path = [str(commands), os.path.dirname(sys.executable), os.environ["PATH"]]
    os.environ |= {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(ROOT),
        "HOME": str(directory),
        "COLUMNS": "100",
    }
    with EmbeddedXenStore() as store, ExitStack() as stack:
        os.environ["XENSTORED_PATH"] = store.socket_path()
        if needs_ssh(page, left_out):
            _reach_by_ssh(stack, directory, store.socket_path())
        _run_blocks(page, directory, left_out)


def needs_ssh(page: Path, left_out: Collection[str] = ()) -> bool:
    """Whether a block of a page, other than those that are left out, reaches a host by ssh."""
    return any(
        f"ssh://{loopback_sshd.ALIAS}" in block.text
        for block in blocks(page)
        if not block.text.startswith(tuple(left_out))
    )


def _reach_by_ssh(stack: ExitStack, directory: Path, socket_path: str) -> None:
    keys = directory / "keys"
    keys.mkdir()
    tools = loopback_sshd.tool_directory(directory / "tools", ["python3"])
    host = LoopbackSshd(keys, tools, {"XENSTORED_PATH": socket_path})
    sshd = stack.enter_context(host)
    command = ["/usr/bin/ssh", *sshd.ssh[1:]]
    loopback_sshd.program(directory / "bin", f'exec {shlex.join(command)} "$@"')


def _run_blocks(page: Path, directory: Path, left_out: Collection[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = None
    for block in blocks(page):
        if block.text.startswith(tuple(left_out)):
            printed = None
        elif block.language == "python" and (name := _FILE.match(block.text)):
            printed = _keep(block, directory / name[1])
        elif block.language == "python":
            printed = _run(block, namespace)
        elif block.language == "pycon":
            _discuss(block, namespace)
            printed = None
        elif block.language == PROGRAM:
            command = f"{sys.executable} -Werror {block.text}"
            printed = _command(block, command, directory, status=0)
        elif block.language == "sh":
            printed = _command(block, block.text, directory, status=0)
        elif block.language == "console":
            _commands(block, directory)
            printed = None
        elif block.language != "text":
            raise block.wrong(f"nobody knows what to do with {block.language!r}")
        elif printed is None or not block.follows:
            raise block.wrong("this text stands behind nothing that prints it")
        else:
            _compare(block, block.text, printed)
            printed = None


def _keep(block: Block, file: Path) -> str:
    file.write_text(block.text, encoding="utf-8")
    if not file.name.startswith("test_"):
        return ""
    # As where nothing but xsproto is installed.
    plugins = "-p no:cacheprovider -p xsproto_sync.pytest_plugin"
    command = (
        f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {sys.executable} -m pytest -q -Werror {plugins} {file}"
    )
    return _command(block, command, file.parent, status=0)


def _run(block: Block, namespace: dict[str, Any]) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        # With the page's own line numbers, for tracebacks.
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, block.page, "exec", dont_inherit=True), namespace)
    return printed.getvalue()


def _discuss(block: Block, namespace: dict[str, Any]) -> None:
    examples = doctest.DocTestParser().get_examples(block.text)
    if not examples:
        raise block.wrong("a session without a question")
    test = doctest.DocTest(examples, {}, block.page.name, str(block.page), block.line - 1, None)
    test.globs = namespace
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    if runner.run(test, out=report.write, clear_globs=False).failed:
        raise block.wrong(report.getvalue())


def _commands(block: Block, directory: Path) -> None:
    first, *rest = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    if first or not rest:
        raise block.wrong("what the console shows does not begin with $")
    for step in rest:
        command, _, want = step.partition("\n")
        _compare(block, want, _command(block, command, directory))


def _command(block: Block, command: str, directory: Path, status: int | None = None) -> str:
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise block.wrong(f"{command}\ndoes not end") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        process.communicate()
    if status is not None and process.returncode != status:
        raise block.wrong(f"{command}\nexits with {process.returncode}:\n{printed}")
    return printed


def _compare(block: Block, want: str, got: str) -> None:
    checker = doctest.OutputChecker()
    if not checker.check_output(want, got, doctest.ELLIPSIS):
        example = doctest.Example("", want)
        raise block.wrong(checker.output_difference(example, got, doctest.ELLIPSIS))


def main() -> None:
    page, *left_out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        run_page(Path(page).resolve(), Path(directory), left_out)


if __name__ == "__main__":
    main()
