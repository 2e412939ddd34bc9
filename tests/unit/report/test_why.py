# SPDX-License-Identifier: MIT
"""The long answer to a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.errors import InputError
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.report.why import why

FILES = (Path("/drv/a.c"),)
REFUSED = ReloadReport(Outcome.REFUSED, files=FILES, reasons=(Reason("HR2101", "struct s grew"),))
RELOADED = ReloadReport(Outcome.RELOADED, number=1, files=FILES, symbols=("drv.ko",))
LIVE = ReloadReport(Outcome.LIVE, number=2, files=FILES, symbols=("f",))


def test_a_refusal_that_led_to_a_reload_is_what_was_refused_last() -> None:
    assert "HR2101 struct s grew" in why([REFUSED, RELOADED])
    assert "HR2101 struct s grew" in why([REFUSED, RELOADED, LIVE])


def test_a_reload_of_a_module_is_told_with_the_refusal_that_led_to_it() -> None:
    told = why([REFUSED, RELOADED, LIVE], 1)
    assert told.index("struct s grew") < told.index("drv.ko")
    assert "struct s grew" not in why([REFUSED, RELOADED, LIVE], 2)
    other = ReloadReport(Outcome.RELOADED, number=1, files=(Path("/drv/b.c"),))
    assert "struct s grew" not in why([REFUSED, other], 1)


def test_where_nothing_was_refused_there_is_nothing_to_tell() -> None:
    with pytest.raises(InputError, match="nothing has been refused yet"):
        why([LIVE])
