# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hotreload.errors import CompileError, GuestBusyError, GuestUnreachableError, InputError
from hotreload.paths import runtime_folder
from hotreload.report.outcome import Outcome, Reason, ReloadReport
from hotreload.session.control import (
    Message,
    RemoteError,
    Send,
    answer,
    ask,
    report_from,
    report_object,
    serving,
)
from hotreload.session.guests import (
    UNNAMED,
    About,
    Place,
    claim,
    find_running,
    find_session,
    guest_name,
    place_of,
    sessions,
)


def about(name: str, folder: Path) -> About:
    return About(name, folder.resolve(), os.getpid(), True, 1.5, folder / "state")


async def echo(request: Message, send: Send) -> Message:
    await send({"progress": "on it"})
    return {"said": request["text"]}


# Names and owners.


def test_a_guest_is_named_after_its_folder_and_folders_of_one_name_have_two_guests(tmp_path: Path) -> None:
    names = []
    for parent in ("a", "b"):
        folder = tmp_path / parent / "my driver"
        folder.mkdir(parents=True)
        names.append(guest_name(UNNAMED, folder))
    assert names[0] != names[1]
    assert all(name.startswith("my-driver-") for name in names)


def test_a_link_to_a_folder_means_the_folders_guest(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "link").symlink_to("driver")
    assert guest_name(UNNAMED, tmp_path / "link") == guest_name(UNNAMED, tmp_path / "driver")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 65])
def test_a_name_that_cannot_be_a_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        guest_name(name, tmp_path)
    assert raised.value.code == "HR1008"


def test_a_guest_has_one_owner_at_a_time_and_nothing_stays_behind(tmp_path: Path) -> None:
    with claim(about("one", tmp_path)) as place:
        assert [found.guest for found in sessions()] == ["one"]
        with pytest.raises(GuestBusyError) as raised, claim(about("one", tmp_path)):
            pass
        assert f"process {os.getpid()}, which watches {tmp_path}" in raised.value.message
        assert raised.value.code == "HR3106"
    assert not place.folder.exists()
    with claim(about("one", tmp_path)):
        pass


def test_only_the_user_may_enter_a_guests_folder(tmp_path: Path) -> None:
    with claim(about("one", tmp_path)) as place:
        assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700


def test_what_a_killed_session_left_is_no_session_and_is_removed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from hotreload.session.guests import *\n"
        "with claim(About('one', Path(sys.argv[1]), 1, False, 0.0, Path('/s'))):\n"
        "    print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert len(sessions()) == 1
        owner.kill()
    assert sessions() == ()
    assert not place_of("one").folder.exists()


def test_a_command_means_the_session_of_its_folder_or_of_the_nearest_above(tmp_path: Path) -> None:
    inner = tmp_path / "drivers" / "foo"
    (inner / "sub").mkdir(parents=True)
    with claim(about("outer", tmp_path / "drivers")), claim(about("inner", inner)):
        assert find_session(UNNAMED, inner / "sub").guest == "inner"
        assert find_session(UNNAMED, tmp_path / "drivers").guest == "outer"
        assert find_session("outer", inner).guest == "outer"
        with pytest.raises(GuestUnreachableError) as raised:
            find_session(UNNAMED, tmp_path)
    assert raised.value.code == "HR4103"
    assert raised.value.exit_status == 8
    assert "hotreload watch or hotreload guest start; running: inner, outer" in str(raised.value.hint)


def test_a_guest_of_another_folder_is_not_the_one_to_attach_to(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with claim(about("mine", tmp_path)):
        assert find_running("mine", tmp_path) is not None
        assert find_running("mine", tmp_path / "other") is None
        assert find_running("another", tmp_path) is None


# The socket.


@contextlib.asynccontextmanager
async def served(folder: Path, handler=echo) -> AsyncIterator[Place]:
    with claim(about("one", folder)) as place:
        async with serving(place, handler):
            yield place


def test_a_request_gets_what_is_told_on_the_way_and_then_its_answer(tmp_path: Path) -> None:
    async def scenario() -> list[Message]:
        async with served(tmp_path) as place:
            return [message async for message in ask(place, "say", text="hullo")]

    assert asyncio.run(scenario()) == [{"progress": "on it"}, {"done": {"said": "hullo"}}]


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    async def scenario() -> int:
        async with served(tmp_path) as place:
            return stat.S_IMODE(place.control.stat().st_mode)

    assert asyncio.run(scenario()) == 0o600


def test_an_error_arrives_as_it_was_raised(tmp_path: Path) -> None:
    async def fail(_request: Message, _send: Send) -> Message:
        raise CompileError("foo.c: no", "foo.c:1:1: error\n", hint="mend it")

    async def scenario() -> None:
        async with served(tmp_path, fail) as place:
            await answer(place, "push")

    with pytest.raises(RemoteError) as raised:
        asyncio.run(scenario())
    error = raised.value
    assert (error.code, error.message, error.hint) == ("HR1003", "foo.c: no", "mend it")
    assert (error.exit_status, error.diagnostics) == (3, "foo.c:1:1: error\n")


def test_a_bug_in_one_request_leaves_the_session_alive(tmp_path: Path) -> None:
    async def scenario() -> Message:
        async with served(tmp_path) as place:
            with pytest.raises(RemoteError, match="KeyError"):
                await answer(place, "say")
            return await answer(place, "say", text="still here")

    assert asyncio.run(scenario()) == {"said": "still here"}


def test_without_a_session_a_request_is_hr4103(tmp_path: Path) -> None:
    with pytest.raises(GuestUnreachableError) as raised:
        asyncio.run(answer(Place("none", tmp_path / "none"), "status"))
    assert raised.value.code == "HR4103"


def test_a_socket_that_nobody_listens_to_is_hr4103(tmp_path: Path) -> None:
    async def scenario() -> None:
        with claim(about("one", tmp_path)) as place:
            async with serving(place, echo):
                pass
            assert place.control.exists()
            await answer(place, "status")

    with pytest.raises(GuestUnreachableError) as raised:
        asyncio.run(scenario())
    assert raised.value.exit_status == 8


def test_a_session_that_ends_before_it_has_answered_is_hr4103(tmp_path: Path) -> None:
    async def never(_request: Message, _send: Send) -> Message:
        await asyncio.Event().wait()
        return {}

    async def scenario() -> None:
        async with served(tmp_path, never) as place:
            asking = asyncio.create_task(answer(place, "stop"))
            await asyncio.sleep(0.05)
        await asking

    with pytest.raises(GuestUnreachableError, match="the session of the guest one ended"):
        asyncio.run(scenario())


def test_a_client_that_hangs_up_takes_its_request_back(tmp_path: Path) -> None:
    async def scenario() -> bool:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(_request: Message, _send: Send) -> Message:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return {}

        async with served(tmp_path, wait) as place:
            asking = asyncio.create_task(answer(place, "exec"))
            await started.wait()
            asking.cancel()
            await asyncio.wait_for(cancelled.wait(), 5)
        return cancelled.is_set()

    assert asyncio.run(scenario())


def test_a_folder_deeper_than_a_socket_address_may_be_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 120)))
    assert len(str(runtime_folder())) > 108

    async def scenario() -> Message:
        async with served(tmp_path) as place:
            return await answer(place, "say", text="deep")

    assert asyncio.run(scenario()) == {"said": "deep"}


def test_a_megabyte_travels_in_one_request(tmp_path: Path) -> None:
    async def scenario() -> Message:
        async with served(tmp_path) as place:
            return await answer(place, "say", text="x" * 1_000_000)

    assert len(asyncio.run(scenario())["said"]) == 1_000_000


# Values.


def test_a_report_is_the_same_after_its_journey() -> None:
    report = ReloadReport(
        Outcome.REFUSED,
        files=(Path("/d/foo.c"),),
        symbols=("foo_read",),
        milliseconds={"build": 780.5},
        saved_to_live_ms=940.0,
        reasons=(Reason("HR2101", "struct foo grew", "foo", "reload", Path("/d/foo.h"), 31),),
        notes=("a note",),
        error="foo.c:1: error",
        still_runs=12,
        time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    assert report_from(report_object(report)) == report


def test_listing_sessions_disturbs_nobody_who_starts_one(tmp_path: Path) -> None:
    began = time.monotonic()
    with claim(about("one", tmp_path)):
        for _ in range(50):
            sessions()
        with claim(about("two", tmp_path)):
            assert len(sessions()) == 2
    assert time.monotonic() - began < 2
