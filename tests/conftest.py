# SPDX-License-Identifier: MIT
"""What every test shares: isolation from the user's own folders, the kernel, and honest skips.

Folders decide a test's kind: tests/unit needs nothing, tests/objects a compiler (marker ``objects``),
tests/guest boots a guest (marker ``guest``). They run in that order, so that a cheap test fails first.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hotreload.errors import EnvironmentFault
from hotreload.survey.debug_kernel import settings_for

if TYPE_CHECKING:
    from hotreload.build.kernel_tree import KernelTree

TESTS = Path(__file__).parent
# scripts/debug-kernel names one that checks itself, for the guest tests that do not name their own.
OTHER_KERNEL = os.environ.get("HOTRELOAD_KERNEL")
KINDS = ("unit", "objects", "guest")
# Fixtures that are a guest of a folder's or a file's tests. Other tests have one of their own, or the one
# that each worker boots.
SHARED_GUESTS = ("running", "neighbourhood", "theirs")

# A shell that starts the tests in the background has interrupts ignored, and every program that a test
# starts and interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def require(condition: object, what: str, command: str) -> None:
    """Skip the test unless ``condition`` holds: ``what`` is missing, ``command`` brings it.

    With HOTRELOAD_REQUIRE in the environment, as in this project's own CI, the test fails instead.
    """
    if condition:
        return
    message = f"{what} is missing; to get it: {command}"
    if os.environ.get("HOTRELOAD_REQUIRE"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


_pytest: list[pytest.Config] = []


def pytest_configure(config: pytest.Config) -> None:
    _pytest[:] = [config]


def say(text: str) -> None:
    """Tell whoever watches the terminal what is being waited for, past pytest's capturing."""
    capture = _pytest[0].pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n{text}", file=sys.stderr, flush=True)


def kind_of(path: Path) -> str:
    """The kind of the tests in this file: the name of its folder below tests/."""
    folder = path.relative_to(TESTS).parts[0]
    return folder if folder in KINDS else "unit"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        kind = kind_of(item.path)
        if kind != "unit":
            item.add_marker(getattr(pytest.mark, kind))
    items.sort(key=lambda item: KINDS.index(kind_of(item.path)))  # stable: the order within a kind stays
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if group := _who_shares_a_guest(item):
                item.add_marker(pytest.mark.xdist_group(group))


def _who_shares_a_guest(item: pytest.Item) -> str | None:
    """Tests of one name run on one worker, one after the other; None: a test that may run anywhere."""
    if kind_of(item.path) != "guest":
        return str(item.path)
    names = getattr(item, "fixturenames", ())
    shared = next((name for name in SHARED_GUESTS if name in names), None)
    given = getattr(item, "callspec", None)
    return (
        f"{item.path.parent.name}-{shared}-{given.params.get(shared) if given else None}" if shared else None
    )


@pytest.fixture(autouse=True, scope="session")
def _no_test_meets_the_users_own_state() -> Iterator[None]:
    # A short name: the sockets that live below it may have 108 bytes of path (unix(7)).
    place = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HOTRELOAD_")]:
            if name != "HOTRELOAD_REQUIRE" and not (OTHER_KERNEL and name in settings_for(OTHER_KERNEL)):
                patch.delenv(name)
        patch.delenv("NO_COLOR", raising=False)
        for variable, folder in (
            ("XDG_STATE_HOME", "s"),
            ("XDG_CONFIG_HOME", "c"),
            ("XDG_RUNTIME_DIR", "r"),
        ):
            (place / folder).mkdir(mode=0o700)
            patch.setenv(variable, str(place / folder))
        yield
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(autouse=True)
def _unit_tests_start_from_empty_folders(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind_of(request.path) == "unit":
        for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
            monkeypatch.setenv(variable, str(tmp_path / variable.lower()))


@pytest.fixture(scope="session")
def debian_kernel() -> KernelTree:
    """The packaged kernel, from the cache or fetched (40 MB); or the one that guest tests are to run in."""
    from hotreload.build.debian_kernel import open_kernel
    from hotreload.config import PACKAGED_KERNEL

    try:
        return asyncio.run(open_kernel(OTHER_KERNEL or PACKAGED_KERNEL, say))
    except EnvironmentFault as fault:
        require(False, f"the packaged kernel ({fault.message})", fault.hint or "hotreload doctor --fix")
        raise
