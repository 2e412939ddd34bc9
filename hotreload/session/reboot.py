# SPDX-License-Identifier: MIT
"""The last rungs: build what neither a live patch nor a module reload brings, and restart the guest with it.

If the kernel stays the same, the guest is restored to before its modules were loaded, which needs no boot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hotreload.build.built import Build
from hotreload.config import Config
from hotreload.errors import CompileError, SessionError
from hotreload.ladder import is_allowed
from hotreload.report.codes import codes
from hotreload.report.console import Progress
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.session.boot import require_buildable

# The codes of a module that cannot be reloaded. Most name no rung in codes.md, but a restart helps.
MODULE_CODES = "HR23"
RECIPE_CHANGED = "HR1004"
LOST = {
    "restore": "needs a return to before the modules were loaded: all state since then is lost",
    "reboot": "needs a restart of the guest: all state in it is lost",
}


def next_rung(report: ReloadReport, max_rung: str, build: Build, *, restorable: bool) -> str | None:
    """Return the rung that brings what this cycle failed to bring: "restore", "reboot", or None.

    ``restorable``: whether there is a checkpoint from before the modules were loaded, and only modules are
    edited.
    """
    failed = report.outcome in (Outcome.REFUSED, Outcome.REJECTED) and bool(report.reasons)
    if not failed or not all(map(_is_gone_by_boot, report.reasons)):
        return None
    if build.is_kernel and any(each.code == RECIPE_CHANGED for each in report.reasons):
        restorable = False
    if restorable and is_allowed("restore", max_rung):
        return "restore"
    return "reboot" if is_allowed("reboot", max_rung) else None


def _is_gone_by_boot(reason: Reason) -> bool:
    return codes()[reason.code].rung is not None or reason.code.startswith(MODULE_CODES)


def announced(report: ReloadReport, rung: str, saved: Sequence[str]) -> ReloadReport:
    """Return the refusal, with the hints replaced by what happens next and what state is lost.

    ``saved``: the checkpoints that are lost.
    """
    lost = LOST[rung] + (f", and so are the checkpoints {', '.join(saved)}" if saved else "")
    return replace(report, reasons=tuple(replace(each, hint=lost) for each in report.reasons))


async def build_anew(build: Build, config: Config, bar: Progress) -> None:
    """Build what the next boot needs from the current sources. The previous build stays in use until then.

    Raises what make_kernel and require_buildable raise.
    """
    if not build.is_kernel:
        await require_buildable(build.folder, config, bar.update)
        return
    from hotreload.build.kernel_make import make_kernel
    from hotreload.build.kernel_progress import on_bar

    await make_kernel(build.tree.source, build.tree.output, None, os.cpu_count() or 1, on_bar(bar))


def failed_build(
    error: CompileError | SessionError, files: Iterable[Path], running: int | None
) -> ReloadReport:
    """Return the report of a failed build. The guest continues with the code that it runs."""
    if isinstance(error, CompileError):
        return ReloadReport(
            Outcome.COMPILE_ERROR, files=tuple(files), error=error.diagnostics, still_runs=running
        )
    reason = Reason(error.code, error.message, hint=error.hint)
    return ReloadReport(Outcome.REJECTED, files=tuple(files), reasons=(reason,), still_runs=running)


def began_anew(
    rung: str, files: Iterable[Path], contents: str, milliseconds: float, seconds: float
) -> ReloadReport:
    """Return the report of a guest that was restored or rebooted, and so runs the current sources.

    ``milliseconds``: of the build. ``seconds``: from the save until the guest was ready.
    """
    return ReloadReport(
        Outcome.RESTORED if rung == "restore" else Outcome.REBOOTED,
        files=tuple(files),
        symbols=(contents,),
        milliseconds={"build": milliseconds},
        saved_to_live_ms=seconds * 1000,
    )
