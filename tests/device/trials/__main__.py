"""Run trials."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from contextlib import suppress

from xsproto.errors import NotFound

from . import agent, ends, load  # noqa: F401  # for their trials
from .trial import BASE, TRIALS, Setting


def main() -> int:
    lines = [
        f"  {name}{''.join(f' --{need} ...' for need in trial.needs)}: {trial.run.__doc__}"
        + (f" (Only when named: {trial.named_only}.)" if trial.named_only else "")
        for name, trial in TRIALS.items()
    ]
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description="Try the blocking client on a real XenBus device.",
        epilog="trials:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device")
    parser.add_argument("--daemon", type=int, metavar="PID", help="the daemon, in dom0")
    parser.add_argument("--domid", type=int, help="the guest that `host` talks to")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long `host` asks")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds between the watches of `agent`"
    )
    parser.add_argument("--stay", action="store_true", help="`host` does not end the agent")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for each trial")
    parser.add_argument("trial", nargs="*", metavar="TRIAL")
    options = vars(parser.parse_intermixed_args())
    names, limit = options.pop("trial"), options.pop("limit")
    if unknown := set(names) - set(TRIALS):
        parser.error(f"there is no trial {', '.join(sorted(unknown))}")
    setting = Setting(**options)
    if len(names) == 1:
        return _run(names[0], setting)
    names = names or [
        name for name, trial in TRIALS.items() if not (trial.named_only or trial.missing(setting))
    ]
    arguments = [argument for argument in sys.argv[1:] if argument not in names]
    failed = 0
    for name in names:
        command = [sys.executable, "-m", __package__, *arguments, name]
        process = subprocess.Popen(command)
        try:
            failed += process.wait(limit) != 0
        except subprocess.TimeoutExpired:
            failed += 1
            process.kill()  # and not waited for: it may be stuck
            print(f"{name}: FAILED: no end after {limit:g} s", flush=True)
    return bool(failed)


def _run(name: str, setting: Setting) -> int:
    trial = TRIALS[name]
    if missing := trial.missing(setting):
        print(f"{name}: it needs --{' and --'.join(missing)}")
        return 2
    try:
        print(f"{name}: {trial.run(setting)}", flush=True)
        if not trial.named_only:
            with setting.client() as client, suppress(NotFound):
                client.delete(BASE)
    except Exception as error:
        traceback.print_exc()
        print(f"{name}: FAILED: {error!r}", flush=True)
        # Not by a longer way: threads may be blocked for ever.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
