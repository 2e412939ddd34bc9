# SPDX-License-Identifier: MIT
"""``hotreload doctor``: run every check of preconditions.py, print the findings, and fix what can be fixed.

Fixing takes rounds, because one fix may reveal the next: only once apt has its lists can it say which
compiler the kernel needs. A fix that did not help is not tried again.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from hotreload.config import Config
from hotreload.errors import EnvironmentFault
from hotreload.interrupts import run
from hotreload.preconditions import CHECKS, Check, Finding, Mend, look

Results = dict[Check, Finding]
Tell = Callable[[Check, Finding], None]


def examine(
    config: Config,
    *,
    fix: bool = False,
    as_json: bool = False,
    color: bool = False,
    terse: bool = False,
    checks: Sequence[Check] = CHECKS,
) -> int:
    """Run the checks and print their findings. With ``fix``, fix what can be fixed.

    ``terse`` prints only what fails in the end. Return the exit status, 0 or 7.
    """
    tell = _as_json() if as_json else _as_text(color)
    tell_now = _silent if terse else tell
    results = _look_at(checks, config, tell_now)
    tried: set[Mend] = set()
    while fix and (mends := [mend for mend in _merged(results) if mend not in tried]):
        for mend in mends:
            _run_as_root(mend)
        tried.update(mends)
        # Run all checks again, because another check may have needed the new program.
        again = _look_at(checks, config, _silent)
        for check in checks:
            if again[check] != results[check]:
                tell_now(check, again[check])
        results = again
    failed = [check for check in checks if results[check].state == "fail"]
    for check in failed if terse else ():
        tell(check, results[check])
    if not as_json and (failed or not terse):
        print(_summary(results, fix), file=sys.stderr)
    return EnvironmentFault.exit_status if failed else 0


def _look_at(checks: Iterable[Check], config: Config, tell: Tell) -> Results:
    results: Results = {}
    for check in checks:
        results[check] = run(look(check, config))
        tell(check, results[check])
    return results


def _silent(_check: Check, _found: Finding) -> None:
    pass


def _as_json() -> Tell:
    numbers = itertools.count(1)

    def tell(check: Check, found: Finding) -> None:
        event = {
            "v": 1,
            "seq": next(numbers),
            "t": round(time.time(), 3),
            "type": "doctor.check",
            "cycle": None,
        }
        facts = {"name": check.name, "state": found.state, "fact": found.fact, "why": check.why}
        mend = {"mend": str(found.mend) if found.mend else None, "code": found.code}
        print(json.dumps(event | facts | mend), flush=True)

    return tell


def _as_text(color: bool) -> Tell:
    paints = {"ok": "32", "warn": "33", "fail": "31"} if color else {}

    def tell(check: Check, found: Finding) -> None:
        state = f"{found.state:<4}"
        paint = paints.get(found.state)
        code = f"  {found.code}" if found.code else ""
        print(f"\033[{paint}m{state}\033[0m" if paint else state, f" {check.name:<12} {found.fact}{code}")
        if found.state != "ok":
            print(f"{'':18} why: {check.why}")
        if found.mend:
            print(f"{'':18} fix: {found.mend}")
        sys.stdout.flush()

    return tell


def _summary(results: Results, fixed: bool) -> str:
    failed = [check.name for check, found in results.items() if found.state == "fail"]
    warned = sum(found.state == "warn" for found in results.values())
    if not failed:
        return "everything that hotreload needs is there" + (f" ({warned} could be better)" if warned else "")
    mendable = not fixed and any(found.mend for found in results.values())
    return f"needs fixing: {', '.join(failed)}" + (
        "; run the commands with hotreload doctor --fix" if mendable else ""
    )


def _merged(results: Results) -> list[Mend]:
    """Return each command once, and all packages in a single call of apt.

    ``apt-get update`` comes first if it is needed.
    """
    mends = [found.mend for found in results.values() if found.mend]
    packages = dict.fromkeys(package for mend in mends for package in mend.packages)
    commands = dict.fromkeys(mend for mend in mends if mend.command)
    return [*commands, *([Mend(packages=tuple(packages))] if packages else [])]


def _run_as_root(mend: Mend) -> None:
    """Run it as root. Print what is being run, and its output if it fails."""
    print(f"hotreload: running {mend}", file=sys.stderr, flush=True)
    done = _system(mend.argv)
    if done.returncode and mend.packages and _system(("apt-get", "update")).returncode == 0:
        done = _system(mend.argv)  # the package lists were out of date
    if done.returncode:
        print(f"{done.stdout.rstrip()}\nhotreload: {mend}: exit status {done.returncode}", file=sys.stderr)


def _system(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Do not use process.run. It gives the program a process group of its own, where sudo could not ask for a
    # password, and kills it when we are killed, which would leave dpkg half done.
    if argv[0] == "apt-get":
        argv = (
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
            *argv[1:],
        )
    if os.geteuid() != 0:
        argv = ("sudo", *(() if sys.stdin.isatty() else ("-n",)), *argv)
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(
            argv, 127, f"{error.filename} is not installed: run the command as root"
        )
