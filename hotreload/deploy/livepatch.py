# SPDX-License-Identifier: MIT
"""Load patch modules into the guest and remove them, in one round trip each, through the agent (agent.sh)."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotreload.deploy.guest import AGENT_PATH as AGENT_PATH
from hotreload.deploy.guest import PATIENCE, Guest, run_in_time
from hotreload.deploy.neighbours import blocked_by, foreign_patches
from hotreload.deploy.transition import PatchStatus, nonsense, parse_answer, parse_status, stalled
from hotreload.errors import PatchRejectedError, ValueChangedError

# Seconds in addition to the agent's limits: to send the module, to revert a transition (10 s), and to remove
# the module (2 s).
MARGIN = 20.0
PLAIN_LIMIT = 30.0
# A module's init may look for hardware, or test itself; its exit may wait for others.
MODULE_LIMIT = 120.0
# Before v6.2 the kernel searches all its symbols for each one that a patch refers to: 27 to 64 ms in an
# emulated guest.
LOOKUP = 0.25

# Lines of the kernel's log that accompany every patch, successful or not.
NOISE = re.compile(
    r"hotreload: (?!value of )|loading out-of-tree module taints|tainting kernel"
    r"|module verification failed: signature and|enabling patch|initializing patching transition"
    r"|starting (?:un)?patching|(?:un)?patching complete"
)
# The template's message about a value that it would have to write (patch/csource).
EVOLVED = re.compile(r"value of (\S+) is not the one it was loaded with")
UNSIGNED = re.compile(
    r"Lockdown: |Key was rejected by service|Required key not available|signature", re.IGNORECASE
)
STAMP = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*\w+\])? ")


@dataclass(frozen=True, slots=True)
class AppliedPatch:
    """A live patch whose transition is complete. All times are in milliseconds.

    ``load_ms``: insmod, after which the first tasks run the new code. ``complete_ms``: from the same start
    until all tasks do. ``push_ms``: the round trip minus ``complete_ms``. ``live``: the patches that the
    guest has. ``sections``: the addresses of the requested sections, as far as they are known.
    """

    name: str
    load_ms: float
    complete_ms: float
    push_ms: float
    live: tuple[str, ...]
    sections: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Swept:
    """The patch modules that were removed, the replaced ones still loaded, and where live code is."""

    removed: tuple[str, ...]
    left: tuple[str, ...]
    text: Mapping[str, int] = field(default_factory=dict, compare=False)


def agent_source() -> bytes:
    """Return the agent, a shell script."""
    return Path(__file__).with_name("agent.sh").read_bytes()


async def apply_patch(
    guest: Guest,
    name: str,
    module: bytes,
    *,
    timeout: float,
    lookups: int = 0,
    sections: Iterable[str] = (),
    builds: Mapping[str, str] | None = None,
) -> AppliedPatch:
    """Load the patch module ``name`` and wait for its transition, at most ``timeout`` seconds.

    ``lookups``: how many symbols the kernel has to find for it; each may prolong loading. ``sections``:
    sections of the module whose addresses are requested. ``builds``: the build-ids, in hexadecimal, that
    modules must have if they are loaded. A patch that fails leaves the guest as it was.

    Raises PatchRejectedError (HR3103 with the kernel's reason, or the other user of the function, or the
    foreign live patches that ours would replace; HR3101 a module of another build; HR3105 signature or
    lockdown; HR3109 no space in the guest; HR2103 a value that the kernel has changed),
    TransitionStalledError (HR3104), GuestUnreachableError (HR4103).
    """
    started = time.monotonic()
    answer = await _ask(
        guest,
        (
            "apply",
            name,
            _seconds(timeout),
            *(f"{key}={value}" for key, value in (builds or {}).items()),
            *sections,
        ),
        stdin=module,
        timeout=timeout + MARGIN + lookups * LOOKUP,
    )
    round_trip = (time.monotonic() - started) * 1000
    if not answer["ok"]:
        raise _refusal(f"patch {name}", answer, timeout)
    try:
        load, complete = float(answer["load_ms"]), float(answer["complete_ms"])
        # If the guest hides addresses, they are zero.
        found = {section: int(address or "0", 16) for section, address in answer["sections"].items()}
        known = {section: address for section, address in found.items() if address}
        return AppliedPatch(
            name, load, complete, max(0.0, round_trip - complete), tuple(answer["patches"]), known
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise nonsense(repr(answer)) from error


async def disable_patch(guest: Guest, name: str, *, timeout: float, lookups: int = 0) -> bool:
    """Return to the kernel's own functions, within ``timeout`` seconds; ``sweep`` removes the module.

    ``lookups``: as for ``apply_patch``, because reverting many functions takes long, too. Returns False if
    there is no such live patch. Raises PatchRejectedError (HR3103), TransitionStalledError (HR3104; the patch
    is live again then), GuestUnreachableError (HR4103).
    """
    limit = timeout + MARGIN + lookups * LOOKUP
    answer = await _ask(guest, ("disable", name, _seconds(timeout)), timeout=limit)
    if answer["ok"]:
        return True
    if answer.get("stage") == "absent":
        return False
    raise _refusal(f"disabling patch {name}", answer, timeout)


async def sweep(guest: Guest, keep: Iterable[str] = ()) -> Swept:
    """Remove our replaced patch modules whose code no task is in, except those in ``keep``."""
    answer = await _ask(guest, ("sweep", *keep))
    text = {name: int(address or "0", 16) for name, address in answer.get("text", {}).items()}
    return Swept(tuple(answer.get("removed", ())), tuple(answer.get("left", ())), text)


async def patch_status(guest: Guest) -> PatchStatus:
    """Return the live patches of the guest, ours and foreign ones."""
    return parse_status(await _ask(guest, ("status",)))


async def load_module(guest: Guest, name: str, image: bytes, parameters: str = "") -> None:
    """Load an ordinary module; ``parameters`` as on insmod's command line.

    Raises PatchRejectedError: HR3103 with the kernel's reason, HR2303 (vermagic, CRC), HR3105 (signature),
    HR3109 (no space in the guest).
    """
    answer = await _ask(guest, ("load", name, parameters), stdin=image, timeout=MODULE_LIMIT)
    if not answer["ok"]:
        raise _refusal(f"module {name}", answer, PLAIN_LIMIT)


async def require_space(guest: Guest, name: str, image: bytes) -> None:
    """Raise PatchRejectedError (HR3109) if the guest has no space for a module.

    Call before unloading another.
    """
    answer = await _ask(guest, ("fits",), stdin=image)
    if not answer["ok"]:
        raise _refusal(f"module {name}", answer, PLAIN_LIMIT)


@dataclass(frozen=True, slots=True)
class ModuleUse:
    """Who uses a loaded module: ``users`` references, including one from each of the ``holders`` (modules).

    ``parameters``: the readable ones, with their values.
    """

    users: int
    holders: tuple[str, ...]
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModuleUses:
    """The use of modules.

    ``of``: the use of each loaded module. ``open_files``: files that may belong to one, in readable form.
    """

    of: Mapping[str, ModuleUse]
    open_files: tuple[str, ...]


async def module_uses(guest: Guest, names: Iterable[str]) -> ModuleUses:
    """Return which of the modules are loaded, and who uses them."""
    answer = await _ask(guest, ("modules", *names))
    uses = {
        name: ModuleUse(int(use["users"]), tuple(map(str, use["holders"])), dict(use["parameters"]))
        for name, use in answer["modules"].items()
    }
    return ModuleUses(uses, tuple(map(str, answer["open"])))


async def unload_module(guest: Guest, name: str) -> tuple[str, ...]:
    """Remove an ordinary module. Return the devices that its drivers had, in the form for ``rebind_devices``.

    Raises PatchRejectedError: HR2301 in use, HR2304 other modules use it, HR2302 it has no exit function,
    HR3103 anything else.
    """
    answer = await _ask(guest, ("unload", name), timeout=MODULE_LIMIT)
    if not answer["ok"]:
        raise _not_unloaded(name, answer)
    return tuple(map(str, answer["bound"]))


async def rebind_devices(guest: Guest, devices: Iterable[str]) -> tuple[str, ...]:
    """Bind devices, ``BUS/DRIVER/DEVICE``, to their drivers again if the bus did not.

    Return those not bound.
    """
    return tuple(map(str, (await _ask(guest, ("rebind", *devices)))["left"]))


async def build_id(guest: Guest, module: str) -> str | None:
    """Return the build-id of a loaded module in hexadecimal; None if it is not loaded, or has none."""
    answer = await _ask(guest, ("buildid", module))
    return str(answer["buildid"]) if answer["ok"] else None


async def _ask(
    guest: Guest, words: Iterable[str], *, stdin: bytes | None = None, timeout: float | None = None
) -> dict[str, Any]:
    command = f"{guest.agent} {shlex.join(words)}"
    limit, patience = (PLAIN_LIMIT, PATIENCE) if timeout is None else (timeout, 1)
    result = await run_in_time(guest, command, stdin=stdin, timeout=limit, patience=patience)
    if not result.stdout.strip():
        raise nonsense(result.complaint or f"status {result.status}")
    return parse_answer(result.text)


def _seconds(timeout: float) -> str:
    # The agent's shell only has integers.
    return str(max(1, math.ceil(timeout)))


def _refusal(what: str, answer: dict[str, Any], timeout: float) -> Exception:
    stage = answer.get("stage")
    if stage == "transition":
        return stalled(f"{what}: the transition did not finish within {timeout:.0f} s", answer)
    if stage == "busy":
        return stalled(f"{what} must wait, because {answer.get('patch')} is in transition", answer)
    if stage == "receive":
        return _no_room(what, str(answer.get("folder", "")), str(answer.get("error", "")))
    if stage == "other":
        names = ", ".join(map(str, answer.get("modules", ())))
        return PatchRejectedError(
            f"the guest has a different build of {names} than the one that hotreload loaded",
            code="HR3101",
            hint="run hotreload guest restart, or load the previous build in the guest",
        )
    if stage == "foreign":
        return foreign_patches(what, tuple(map(str, answer.get("patches", ()))))
    if blocked := answer.get("blocked"):
        return blocked_by(what, blocked)
    reason = kernel_reason(str(answer.get("dmesg", "")), str(answer.get("error", "")))
    return rejection(what, reason)


def _no_room(what: str, folder: str, error: str) -> PatchRejectedError:
    """Return the error for a module that the receiving folder in the guest cannot hold."""
    if "No space left" in error:
        fact = f"the guest's {folder} is full: there is no space for {what}"
    else:
        reason = error.strip().rpartition(": ")[2] or "no reason given"
        fact = f"the guest's {folder} cannot hold {what}: {reason}"
    # Below /run other programs fill the file system, not we.
    place = folder if folder.count("/") == 1 else folder.rpartition("/")[0]
    hint = (
        f"list the files with hotreload guest exec 'du -ax {place} | sort -n',"
        " delete what is not needed, and save again"
    )
    return PatchRejectedError(fact, code="HR3109", hint=hint)


def kernel_reason(dmesg: str, complaint: str) -> str:
    """Return the kernel's reason: its log lines without time stamps, noise and repetition, else insmod's."""
    lines = _outside_traces(STAMP.sub("", line).strip() for line in dmesg.splitlines())
    # busybox's insmod tries twice, so the kernel prints everything twice.
    told = dict.fromkeys(line for line in lines if line and not NOISE.search(line))
    return (
        "; ".join(told)
        or re.sub(r"^insmod: can't insert '[^']*': ", "", complaint.strip())
        or "no reason given"
    )


def _outside_traces(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines outside the marks of a WARN, which is reported separately as a complaint."""
    inside = False
    for line in lines:
        inside = inside or "[ cut here ]" in line
        if not inside:
            yield line
        inside = inside and "[ end trace" not in line


def rejection(what: str, reason: str) -> PatchRejectedError:
    """Return the error for a module that the kernel refuses."""
    code, hint = "HR3103", "see all messages of the kernel with hotreload guest logs"
    if found := EVOLVED.search(reason):
        return evolved(found[1])
    if UNSIGNED.search(reason):
        code, hint = "HR3105", "boot the guest with a kernel that loads unsigned modules"
    elif "version magic" in reason or "disagrees about version" in reason:
        code, hint = (
            "HR2303",
            "the guest runs a different kernel than this was built for: name the right one with -K",
        )
    return PatchRejectedError(f"the guest's kernel refused {what}: {reason}", code=code, hint=hint)


def evolved(name: str) -> ValueChangedError:
    """Return the error for a value that the kernel has changed."""
    return ValueChangedError(
        name,
        f"{name} has a new initial value in the source, and the kernel has changed the old one",
        hint="write the value in the guest yourself and undo the change of the initial value,"
        " or reload the module: hotreload reload",
    )


def used_by(name: str, holders: Iterable[str]) -> PatchRejectedError:
    """Return the error for a module that other modules use."""
    told = ", ".join(holders)
    return PatchRejectedError(f"module {name} is used by {told}", code="HR2304", hint=f"remove {told} first")


def in_use(name: str, users: int, open_files: Sequence[str]) -> PatchRejectedError:
    """Return the error for a module that user space, or the kernel, holds."""
    count = "1 reference" if users == 1 else f"{users} references"
    hint = "end the programs that have its devices or files open, then: hotreload push"
    if open_files:
        hint += f"; open now: {', '.join(open_files)}"
    return PatchRejectedError(f"module {name} is in use ({count})", code="HR2301", hint=hint)


def _not_unloaded(name: str, answer: dict[str, Any]) -> PatchRejectedError:
    holders = tuple(map(str, answer.get("holders", ())))
    users = answer.get("users", -1)
    if holders:
        return used_by(name, holders)
    if users > 0:
        return in_use(name, users, tuple(map(str, answer.get("open", ()))))
    if users == 0 and "busy" in str(answer.get("error", "")):
        fact, code = f"module {name} has no exit function", "HR2302"
        hint = "give it a module_exit(), or restart the guest"
    else:
        reason = kernel_reason(str(answer.get("dmesg", "")), str(answer.get("error", "")))
        fact, code, hint = (
            f"module {name} was not removed: {reason}",
            "HR3103",
            "see its state with lsmod in the guest",
        )
    return PatchRejectedError(fact, code=code, hint=hint)
