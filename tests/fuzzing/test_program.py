"""``python -m xsproto_sync.fuzz``, and the recorded seeds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from xsproto.errors import ERRORS
from xsproto.testing.conversations import Act
from xsproto.wire import Op, PacketReader
from xsproto_sync.fuzz import TARGETS, main, recorded

from ..support import ROOT, daemons
from . import record

#: A target of a user's own.
OWN = """
def refuses_x(data):
    assert b"x" not in data, "there is an x"


def takes_all(data):
    pass
"""


def test_the_seeds_are_those_of_the_scripts() -> None:
    wanted = [f"{kind}/{name}" for kind in daemons.KINDS for name in record.SCRIPTS]
    assert list(recorded()) == wanted
    assert record.CORPUS.stat().st_size < 100_000


def test_the_seeds_have_all_kinds_of_answers() -> None:
    seen = set()
    for name, steps in recorded().items():
        for step in steps:
            if step.act is Act.RECEIVE:
                for packet in PacketReader().receive_data(step.data):
                    seen.add(Op(packet.op))
                    if packet.op == Op.ERROR:
                        assert packet.payload[:-1].decode() in ERRORS, name
    # No daemon of Xen 4.17 knows the first four, and all domains are introduced already.
    newest = {Op.GET_FEATURE, Op.SET_FEATURE, Op.GET_QUOTA, Op.SET_QUOTA}
    assert seen >= {*Op} - newest - {Op.INTRODUCE}


@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_accept_the_seeds(name: str) -> None:
    for steps in recorded().values():
        for data in TARGETS[name].seeds(steps):
            TARGETS[name].fuzz(data)


def test_a_seed_can_be_recorded_again() -> None:
    daemons.require("c")
    assert record.record("c", "conflict") == recorded()["c/conflict"]


# The program


def test_a_target_is_run_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reader", "--seconds", "1", "--simple"]) == 0
    assert "no rule is broken" in capsys.readouterr().out


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_target.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_target", raising=False)
    return tmp_path


def test_an_input_that_breaks_a_rule_is_kept(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "corpus").mkdir()
    (own / "corpus" / "one").write_bytes(b"abc")
    assert main(["own_target:refuses_x", "corpus", "--simple", "--seconds", "30"]) == 1
    captured = capsys.readouterr()
    assert "there is an x" in captured.out
    assert "AssertionError" in captured.err
    again = captured.out.split("python -m xsproto_sync.fuzz ")[1].split()
    assert b"x" in (own / again[-1]).read_bytes()
    assert main(again) == 1
    assert main([*again[:-1], "corpus"]) == 0
    assert "1 inputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nonsense"], "no such target: nonsense"),
        (["no_such_module:f"], "No module named"),
        (["own_target:nothing"], "nothing"),
        (["reader", "missing"], "missing"),
    ],
)
def test_what_cannot_be_run_says_why(
    arguments: list[str], why: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert why in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
def test_atheris_finds_more(own: Path) -> None:
    command = [sys.executable, "-m", "xsproto_sync.fuzz", "own_target:refuses_x", "--seconds", "20"]
    result = subprocess.run(
        command, cwd=own, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "there is an x" in result.stderr + result.stdout
    (file,) = own.glob("fuzz-own_target-refuses_x-*")
    assert b"x" in file.read_bytes()
