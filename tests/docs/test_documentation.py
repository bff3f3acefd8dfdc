"""The documentation says what is true."""

from __future__ import annotations

import itertools
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from ..support import loopback_sshd
from ..support.manual import PROGRAM, ROOT, blocks, needs_ssh

pytestmark = pytest.mark.environment("plain", "pages")

PAGES: Final = {
    str(page.relative_to(ROOT)): page
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if any(blocks(page))
}

#: Blocks that are not run: a page, and what they begin with -> why.
LEFT_OUT: Final = {
    ("README.md", "python3 -m venv"): ".ci/run does, word by word",
    ("CONTRIBUTING.md", "scripts/"): "they run the tests",
    ("CONTRIBUTING.md", ".venv/bin/"): "they need daemons, which may be missing",
    (
        "docs/explain/design.md",
        "xsproto/   ",
    ): "the house, of which tests/test_layers.py has the exact table",
    ("docs/learn/installation.md", "git clone"): "it needs the network; .ci/run installs a clone",
    ("docs/howto/writing-an-adapter.md", ""): "tests/docs/test_guide.py follows it to the letter",
    ("docs/explain/xenbus-real.md", ""): "they need a Xen host",
}


def look_at(page: Path, *left_out: str) -> str:
    """Run a page's blocks in a process of its own; return what is wrong with it."""
    result = subprocess.run(
        [sys.executable, "-Werror", "-m", "tests.support.manual", page, *left_out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0 or result.stdout
    return "" if result.returncode == 0 else result.stdout


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_is_so(name: str) -> None:
    if needs_ssh(PAGES[name]):
        loopback_sshd.require("ssh", "ssh-keygen", "/usr/sbin/sshd")
    wrong = look_at(PAGES[name], *(start for page, start in LEFT_OUT if page == name))
    assert not wrong, wrong


@pytest.mark.parametrize(("name", "start"), LEFT_OUT)
def test_what_is_left_out_is_there(name: str, start: str) -> None:
    assert any(block.text.startswith(start) for block in blocks(PAGES[name]))


def test_ssh_is_among_what_is_run() -> None:
    assert [name for name, page in PAGES.items() if needs_ssh(page)] == ["docs/howto/transports.md"]


def test_every_example_is_in_the_manual_with_what_it_prints() -> None:
    page = [*blocks(PAGES["docs/learn/examples.md"])]
    shown = {
        Path(block.text)
        for block, behind in itertools.pairwise(page)
        if block.language == PROGRAM and behind.language == "text"
    }
    assert shown == {*(ROOT / "docs" / "examples").glob("*.py")}


def test_the_fuzz_target_finds_a_rule_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = runpy.run_path(str(ROOT / "docs" / "examples" / "fuzz_target.py"))["fuzz"]
    assert [fuzz(data) for data in (b"8\n512", b"-8\n512")] == ["accepted", "refused"]
    monkeypatch.setitem(fuzz.__globals__, "capacity", lambda nodes: int(nodes[b"sectors"]))
    with pytest.raises(AssertionError):
        fuzz(b"-8\n512")


#: Pages, and what makes each a false one.
TRUE: Final = {
    """
```python
from xsproto_sync import Client

with Client() as client:
    client.write(b"/a", b"1")
    print(client.read(b"/a"))
```

```text
b'1'
```
""": [
        ("'1'\n", "'2'\n"),
        ("'1'\n```", "'1'\n2\n```"),
        ("```text", "So:\n\n```text"),
        ("/a", "/a/"),
    ],
    """
```pycon
>>> from xsproto_sync import Client
>>> client = Client()
>>> client.write(b"/a", b"1")
>>> client.read(b"/b")
Traceback (most recent call last):
    ...
xsproto.errors.NotFound: ENOENT: Read(path=b'/b'): there is no such node
>>> client.close()
```
""": [("such node", "such thing"), ('b"/b"', 'b"/a"'), (">>> ", "> ")],
    """
- in a list

  ```console
  $ xsproto write /a 1
  $ xsproto read /a
  1
  $ xsproto exists /b || echo $?
  3
  ```
""": [("echo $?", "true"), ("/a 1", "/a 2"), ("  $ xsproto write", "  xsproto write")],
    """
```python
# module.py
client = 2
```

```python
# test_module.py
import module


def test_client(xenstore_client):
    assert module.client == 2
    assert not xenstore_client.exists(b"/a")
```
""": [("client = 2", "client = 3")],
    """
```sh
xsproto write /b 2
```
""": [("/b 2", "/b"), ("```sh", "```shell")],
}


def test_true_pages_pass(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(TRUE))
    assert not look_at(page)


@pytest.mark.parametrize(
    ("page", "true", "false"),
    [(page, true, false) for page, lies in TRUE.items() for true, false in lies],
)
def test_a_false_page_fails(page: str, true: str, false: str, tmp_path: Path) -> None:
    assert true in page
    file = tmp_path / "page.md"
    file.write_text(page.replace(true, false))
    assert str(file) in look_at(file)
