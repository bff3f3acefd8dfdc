"""Run a fuzz target: ``python -m xsproto_sync.fuzz TARGET [CORPUS...]``.

A target is a name in `xsproto.testing.fuzz.TARGETS`, or ``MODULE:NAME`` for a function of your own
that takes bytes, or for a `Target` of your own. With atheris (``pip install 'xsproto[fuzz]'``) the
inputs follow the coverage. Without it they are random changes of the seeds, which ``--seed``
repeats.

The seeds are conversations that were recorded with real daemons, and the files of the corpus.

To the targets of `xsproto.testing.fuzz` this module adds ``json``, which is what ``xsproto load``
takes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pkgutil
import random
import subprocess
import sys
import tempfile
import time
import traceback
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from zlib import decompress

from xsproto.daemon import Daemon
from xsproto.errors import XenStoreError
from xsproto.testing import fuzz
from xsproto.testing.conversations import Act, Step, decode
from xsproto.testing.fuzz import Target, inputs
from xsproto.wire import Op, PacketReader

from . import _json_tree

__all__ = ["TARGETS", "fuzz_json", "main", "recorded"]

_CORPUS: Final = "fuzz_corpus.txt"


def recorded() -> dict[str, list[Step]]:
    """Return the recorded conversations by name.

    A name says which daemon answered, and what it is about: ``c/conflict``. "Fuzzing" in the
    documentation says how they are recorded.
    """
    data = pkgutil.get_data("xsproto_sync", _CORPUS) or b""
    lines = [line.split(" ") for line in data.decode().splitlines()]
    return {name: decode(decompress(b64decode(text))) for name, text in lines}


def fuzz_json(data: bytes) -> None:
    """Check what reads a tree as JSON: it is filled into a store, or refused by a typed error."""
    try:
        _json_tree.fill(Daemon(), _json_tree.parse(data.decode("utf-8", "surrogateescape")))
    except XenStoreError:
        pass


def _trees(steps: Sequence[Step]) -> list[bytes]:
    """Return what clients wrote as JSON."""
    nodes = []
    for step in steps:
        for packet in PacketReader().receive_data(step.data if step.act is Act.SEND else b""):
            path, _, value = packet.payload.partition(b"\0")
            if packet.op == Op.WRITE and path[:1] == b"/":
                node = {"path": path.decode(), "value": _json_tree.to_json(value)}
                nodes.append({**node, "perms": ["n0", "r1", "b2"][: 1 + len(path) % 3]})
    return [json.dumps(nodes).encode()]


#: All targets, by name.
TARGETS: Final[dict[str, Target]] = {
    **fuzz.TARGETS,
    "json": Target(fuzz_json, _trees, plays=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, which is not 0 if an input breaks a rule."""
    parser = argparse.ArgumentParser(
        prog="python -m xsproto_sync.fuzz",
        description="Look for bytes on which a fuzz target breaks a rule.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help=f"one of {', '.join(TARGETS)}; or MODULE:NAME, a function of your own",
    )
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        nargs="*",
        help="inputs, as files or directories of files; atheris keeps what it finds in the first "
        "directory",
    )
    parser.add_argument(
        "--seconds", type=int, default=10, help="how long (10); 0: only what is in the corpus"
    )
    parser.add_argument("--seed", type=int, default=1, help="which random changes (1)")
    parser.add_argument("--simple", action="store_true", help="do without atheris")
    parser.add_argument("--in-atheris", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    try:
        target = _load(options.target)
        corpus = list(_files(options.corpus))
    except (ValueError, ImportError, AttributeError, OSError) as error:
        parser.error(str(error))
    if options.in_atheris:
        _fuzz_with_atheris(options)
        return 0
    if not options.seconds:
        return _run(options.target, target, corpus, sys.maxsize)
    found = [data for steps in recorded().values() for data in target.seeds(steps)]
    seeds = list(dict.fromkeys([*found, *corpus]))
    if not options.simple and find_spec("atheris") is not None:
        return _run_with_atheris(options, seeds)
    return _run(options.target, target, inputs(target, seeds, options.seed), options.seconds)


def _load(name: str) -> Target:
    """Return the target with a name.

    Raises:
        ValueError, ImportError, AttributeError: there is none.
    """
    if name in TARGETS:
        return TARGETS[name]
    if ":" not in name:
        raise ValueError(f"no such target: {name}; there are {', '.join(TARGETS)}, and MODULE:NAME")
    sys.path.insert(0, os.getcwd())
    found: Any = pkgutil.resolve_name(name)
    # (With atheris, the class is there twice.)
    return found if hasattr(found, "seeds") else Target(found, lambda steps: [], plays=False)


def _files(paths: Iterable[str]) -> Iterator[bytes]:
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir():
                yield file.read_bytes()


def _run(name: str, target: Target, given: Iterable[bytes], seconds: float) -> int:
    """Give a target inputs until the time is over, or until one breaks a rule."""
    end = time.monotonic() + seconds
    count = 0
    for data in given:
        if time.monotonic() >= end:
            break
        count += 1
        try:
            target.fuzz(data)
        except Exception as error:
            traceback.print_exception(error)
            file = f"{_prefix(name)}{hashlib.sha256(data).hexdigest()[:12]}"
            Path(file).write_bytes(data)
            print(f"{name}: input {count} breaks a rule: {error}")
            print(f"Again: python -m xsproto_sync.fuzz --seconds 0 {name} {file}")
            return 1
    print(f"{name}: {count} inputs, and no rule is broken")
    return 0


def _prefix(name: str) -> str:
    return f"fuzz-{name.replace(':', '-')}-"


def _run_with_atheris(options: argparse.Namespace, seeds: Sequence[bytes]) -> int:
    """Fuzz in a process of its own: atheris ends it, and nothing would be cleaned up here."""
    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(seeds):
            Path(directory, str(number)).write_bytes(data)
        corpus = [path for path in options.corpus if Path(path).is_dir()]
        limits = [f"--seconds={options.seconds}", f"--seed={options.seed}"]
        command = [sys.executable, "-m", "xsproto_sync.fuzz", options.target, *corpus, directory]
        return subprocess.run([*command, *limits, "--in-atheris"], check=False).returncode


def _fuzz_with_atheris(options: argparse.Namespace) -> None:
    """Have atheris fuzz a target. The last directory of the corpus has the seeds."""
    import atheris

    # atheris counts branches in what is imported from here on.
    instrumented = ["xsproto", "xsproto_sync", options.target.partition(":")[0]]
    for name in [name for name in sys.modules if name.partition(".")[0] in instrumented]:
        del sys.modules[name]
    with atheris.instrument_imports(include=instrumented):
        targets: Any = pkgutil.resolve_name("xsproto_sync.fuzz:TARGETS")
        target: Any = targets.get(options.target) or _load(options.target)
    change = fuzz.mutate_conversation if target.plays else fuzz.mutate

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            changed: bytes = atheris.Mutate(data, longest)
            return changed
        return bytes(change(data, chance, chance.choice(seeds) if seeds else b"")[:longest])

    flags = [
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-artifact_prefix={_prefix(options.target)}",
        "-max_len=8000",
        "-timeout=60",
        "-print_final_stats=1",
    ]
    seeds = list(_files(options.corpus[-1:]))
    atheris.Setup([sys.argv[0], *flags, *options.corpus], target.fuzz, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
