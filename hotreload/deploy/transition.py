# SPDX-License-Identifier: MIT
"""Parse the answers of the guest's agent: live patches, and tasks that hold up a transition. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hotreload.errors import GuestUnreachableError, TransitionStalledError


@dataclass(frozen=True, slots=True)
class StalledTask:
    """A task on the wrong side of a transition.

    ``stack``: ``func+0x1/0x2 [module]``, innermost frame first.
    """

    pid: int
    comm: str
    stack: tuple[str, ...]

    @property
    def told(self) -> str:
        """``cat (217) in my_read+0x1c/0x80 [drv] < vfs_read+0x9b/0x1c0``, without the scheduler's frames."""
        frames = [frame for frame in self.stack if not frame.startswith(SCHEDULER)] or list(self.stack)
        return f"{self.comm} ({self.pid})" + (f" in {' < '.join(frames[:3])}" if frames else "")


# Innermost frames of every sleeping task. The next frame says where it sleeps.
SCHEDULER = ("__schedule+", "schedule+", "schedule_timeout+", "__switch_to+", "msleep+", "io_schedule+")


@dataclass(frozen=True, slots=True)
class PatchedFunction:
    """A function that a live patch replaces. ``position``: its rank among functions of that name, from 1."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class PatchedObject:
    """An object that a live patch changes: ``name`` is ``vmlinux`` or a module's name.

    ``patched`` is False while that module is not loaded.
    """

    name: str
    patched: bool
    functions: tuple[PatchedFunction, ...]


@dataclass(frozen=True, slots=True)
class LivePatchState:
    """One patch as /sys/kernel/livepatch shows it. ``foreign``: it is not one of ours."""

    name: str
    enabled: bool
    transition: bool
    objects: tuple[PatchedObject, ...]
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """The live patches of the guest.

    ``replaced``: our loaded modules that are not live. ``tasks``: the tasks that hold up a transition.
    """

    patches: tuple[LivePatchState, ...]
    replaced: tuple[str, ...]
    tasks: tuple[StalledTask, ...]


def parse_answer(text: str) -> dict[str, Any]:
    """Parse the agent's one line. Raises GuestUnreachableError (HR4103) if it is anything else."""
    lines = text.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise nonsense(text)
    return answer


def nonsense(text: str) -> GuestUnreachableError:
    """Return the error for a malformed answer."""
    return GuestUnreachableError(
        f"the answer of the guest's agent makes no sense: {text.strip()[-120:] or 'nothing'!r}",
        hint="boot the guest with the agent of this version: hotreload guest restart",
    )


def parse_tasks(entries: Iterable[dict[str, Any]]) -> tuple[StalledTask, ...]:
    return tuple(
        StalledTask(int(entry["pid"]), str(entry["comm"]), tuple(map(str, entry["stack"])))
        for entry in entries
    )


def parse_status(answer: dict[str, Any]) -> PatchStatus:
    """Parse an answer to ``status``. Raises GuestUnreachableError (HR4103) when a field is missing."""
    try:
        return PatchStatus(
            tuple(_patch(patch) for patch in answer["patches"]),
            tuple(map(str, answer["replaced"])),
            parse_tasks(answer["tasks"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise nonsense(json.dumps(answer)) from error


def _patch(patch: dict[str, Any]) -> LivePatchState:
    return LivePatchState(
        patch["name"],
        patch["enabled"],
        patch["transition"],
        tuple(map(_object, patch["objects"])),
        patch["foreign"],
    )


def _object(entry: dict[str, Any]) -> PatchedObject:
    functions = (PatchedFunction(each["name"], each["position"]) for each in entry["functions"])
    return PatchedObject(entry["name"], entry["patched"], tuple(functions))


def stalled(what: str, answer: dict[str, Any]) -> TransitionStalledError:
    """Return the error for an answer of stage ``transition`` or ``busy``; ``what`` begins the sentence."""
    tasks = parse_tasks(answer.get("tasks", ()))
    held = f"{len(tasks)} task{'s' * (len(tasks) != 1)} in the way: " if tasks else "no task was reported"
    fact = f"{what}; {held}{', '.join(task.told for task in tasks)}"
    if answer.get("stage") == "busy":
        return TransitionStalledError(
            fact,
            tuple(task.told for task in tasks),
            hint="wait for that transition, or reverse it; hotreload status shows it",
        )
    if answer.get("undone") is not True:
        fact += "; it could not be undone either"
    return TransitionStalledError(
        fact,
        tuple(task.told for task in tasks),
        hint="wake or end these tasks, then save again; or reload the module: hotreload reload"
        if answer.get("undone") is True
        else "wake or end these tasks, or run hotreload guest restart",
    )
