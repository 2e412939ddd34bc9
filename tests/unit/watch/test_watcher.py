# SPDX-License-Identifier: MIT
"""The real watcher on a real file system. Nothing here sleeps to see that nothing happens: a *canary*, an
edit that must be seen, follows what must not be seen, and is then the only thing in the first batch."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hotreload.errors import InputError
from hotreload.watch import watcher as watcher_module
from hotreload.watch.changes import ChangeBatch
from hotreload.watch.watcher import Watcher

OLD, NEW = "int answer(void) { return 41; }\n", "int answer(void) { return 42; }\n"
Seen = dict[str, str]  # path below the test's folder -> kind


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A folder with foo.c and sub/bar.h."""
    folder = tmp_path / "driver"
    (folder / "sub").mkdir(parents=True)
    (folder / "foo.c").write_text(OLD)
    (folder / "sub/bar.h").write_text("#define BAR 1\n")
    return folder


def shell(command: str, folder: Path) -> None:
    subprocess.run(["sh", "-ec", command], cwd=folder, check=True)


async def next_batch(watcher: Watcher) -> ChangeBatch:
    return await asyncio.wait_for(anext(watcher), 10)


async def gather(watcher: Watcher, until: Path) -> Seen:
    """Batches up to the one with ``until``, added up; a slow machine may spread them."""
    seen: Seen = {}
    while str(until) not in seen:
        seen |= {str(change.path): change.kind for change in (await next_batch(watcher)).changes}
    return seen


def seen_after(
    folder: Path, edit: str | Callable[[], Any], watched: Path | None = None, **options: Any
) -> Seen:
    """What a watcher of ``watched`` (default: ``folder``) reports for an edit, a shell command or a call."""

    async def session() -> Seen:
        async with Watcher([watched or folder], **options) as watcher:
            if callable(edit):
                edit()
            else:
                shell(edit, folder)
            canary = (watched or folder) / "canary.c"
            canary.write_text("canary\n")
            seen = await gather(watcher, until=canary)
            assert seen.pop(str(canary)) == "created"
            return {os.path.relpath(path, watched or folder): kind for path, kind in seen.items()}

    return asyncio.run(session())


@pytest.mark.parametrize(
    "save",
    [
        "echo 'int x;' >> foo.c",
        "sed -i s/41/42/ foo.c",
        "printf new > foo.c",
        "printf new > .foo.c.tmp && mv .foo.c.tmp foo.c",
        "printf new > foo.c.XXXX && mv foo.c.XXXX foo.c",
        "printf new > ../elsewhere.c && mv ../elsewhere.c foo.c",
        "printf new > ../elsewhere.c && cp -p ../elsewhere.c foo.c",
        "printf new > ../elsewhere.c && ln -f ../elsewhere.c foo.c",
        "rm foo.c && printf new > foo.c",
        # vim, backupcopy=no: a probe, the old file moved away, the new one written under its name
        "touch 4913 && rm 4913 && mv foo.c foo.c~ && printf new > foo.c && rm foo.c~",
        # emacs: lock, autosave, backup by renaming
        "ln -s me@here .#foo.c; printf x > '#foo.c#'; mv foo.c foo.c~; printf new > foo.c; rm .#foo.c",
    ],
)
def test_however_an_editor_saves_it_is_one_modified_file(driver: Path, save: str) -> None:
    seen = seen_after(driver, save)
    assert seen.pop("foo.c") == "modified"
    assert set(seen) <= {"foo.c.XXXX"}  # a temporary of no known form may be seen to come and go


@pytest.mark.skipif(shutil.which("vim") is None, reason="vim is missing; to get it: apt-get install vim")
@pytest.mark.parametrize("backupcopy", ["yes", "no", "auto"])
def test_vim_saves_one_modified_file(driver: Path, backupcopy: str) -> None:
    vim = f"vim -Nu NONE -i NONE -es '+set backup backupcopy={backupcopy}' +%s/41/42/ +wq foo.c"
    assert seen_after(driver, vim) == {"foo.c": "modified"}


@pytest.mark.parametrize(
    "nothing",
    [
        "touch foo.c",
        "cat foo.c > ../copy && cat ../copy > foo.c",
        "cp foo.c ../copy && mv ../copy foo.c",
        "rm foo.c && printf 'int answer(void) { return 41; }\\n' > foo.c",
        "sed -i s/41/42/ foo.c && sed -i s/42/41/ foo.c",
        "printf x > new.c && rm new.c",
        "chmod 600 foo.c",
        "touch foo.o .foo.o.cmd foo.ko foo.mod.c modules.order .foo.c.swp foo.c~ '#foo.c#'",
        "mkdir -p .git/objects && echo x > .git/objects/aa.c",
        "mv sub elsewhere && mv elsewhere sub",
    ],
)
def test_a_save_that_changes_nothing_is_not_seen(driver: Path, nothing: str) -> None:
    assert seen_after(driver, nothing, patience=0.3) == {}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("rm foo.c", {"foo.c": "deleted"}),
        ("mv foo.c ../away.c", {"foo.c": "deleted"}),
        ("mv foo.c new.c", {"foo.c": "deleted", "new.c": "created"}),
        ("printf x > new.c", {"new.c": "created"}),
        ("ln -s foo.c new.c", {"new.c": "created"}),
        ("mkdir -p deep/er && printf x > deep/er/new.c", {"deep/er/new.c": "created"}),
        ("mv sub gone", {"sub/bar.h": "deleted", "gone/bar.h": "created"}),
        ("rm -r sub", {"sub/bar.h": "deleted"}),
        ("rm -r sub && printf x > sub", {"sub/bar.h": "deleted", "sub": "created"}),
        ("printf new > foo.c && printf new > sub/bar.h", {"foo.c": "modified", "sub/bar.h": "modified"}),
        ("mkdir ../t && printf x > ../t/n.c && mv ../t sub/t", {"sub/t/n.c": "created"}),
    ],
)
def test_files_come_and_go(driver: Path, edit: str, expected: Seen) -> None:
    assert seen_after(driver, edit) == expected


def test_files_saved_together_are_one_batch(driver: Path) -> None:
    async def session() -> tuple[Path, ...]:
        async with Watcher([driver], quiet=0.1) as watcher:
            (driver / "foo.c").write_text(NEW)
            (driver / "sub/bar.h").write_text("#define BAR 2\n")
            return (await next_batch(watcher)).paths

    assert asyncio.run(session()) == (driver / "foo.c", driver / "sub/bar.h")


def test_a_folder_made_later_is_watched(driver: Path) -> None:
    async def session() -> tuple[ChangeBatch, ChangeBatch]:
        async with Watcher([driver]) as watcher:
            shell("mkdir -p new/deeper && printf 1 > new/deeper/late.c", driver)
            first = await next_batch(watcher)
            (driver / "new/deeper/late.c").write_text("2")
            return first, await next_batch(watcher)

    first, second = asyncio.run(session())
    assert [change.kind for change in first.changes + second.changes] == ["created", "modified"]


def test_a_moved_folder_is_watched_under_its_new_name_only(driver: Path) -> None:
    async def session() -> list[Path]:
        async with Watcher([driver]) as watcher:
            os.rename(driver / "sub", driver / "moved")
            await gather(watcher, until=driver / "moved/bar.h")
            (driver / "moved/bar.h").write_text("2")
            (driver / "sub").mkdir()
            (driver / "sub/bar.h").write_text("3")
            return sorted(map(Path, await gather(watcher, until=driver / "sub/bar.h")))

    assert asyncio.run(session()) == [driver / "moved/bar.h", driver / "sub/bar.h"]


def test_the_watched_folder_may_be_replaced_as_a_whole(driver: Path) -> None:
    async def session() -> tuple[Seen, tuple[Path, ...]]:
        async with Watcher([driver]) as watcher:
            shell("cp -r driver next && printf new > next/foo.c", driver.parent)
            shell("mv driver old && mv next driver", driver.parent)
            replaced = await gather(watcher, until=driver / "foo.c")
            (driver.parent / "old/foo.c").write_text("nobody watches this any more")
            (driver / "sub/bar.h").write_text("#define BAR 2\n")
            return replaced, (await next_batch(watcher)).paths

    replaced, later = asyncio.run(session())
    assert replaced == {str(driver / "foo.c"): "modified"}
    assert later == (driver / "sub/bar.h",)


def test_the_folder_above_the_root_may_be_moved_away(driver: Path, tmp_path: Path) -> None:
    async def session() -> Seen:
        async with Watcher([tmp_path / "work/driver"]) as watcher:
            os.rename(tmp_path / "work", tmp_path / "gone")
            return await gather(watcher, until=tmp_path / "work/driver/foo.c")

    (tmp_path / "work").mkdir()
    os.rename(driver, tmp_path / "work/driver")
    assert set(asyncio.run(session()).values()) == {"deleted"}


def test_a_root_that_is_a_symbolic_link_reports_paths_as_given(driver: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(driver)
    assert seen_after(driver, "printf new > foo.c", watched=link) == {"foo.c": "modified"}


def test_a_link_that_is_turned_to_another_folder_shows_the_difference(driver: Path, tmp_path: Path) -> None:
    shutil.copytree(driver, tmp_path / "other")
    (tmp_path / "other/foo.c").write_text(NEW)
    link = tmp_path / "link"
    link.symlink_to(driver)
    assert seen_after(tmp_path, "ln -sfn other link", watched=link) == {"foo.c": "modified"}


def test_a_source_that_is_a_symbolic_link_is_watched_where_it_leads(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/real.c").write_text(OLD)
    (driver / "link.c").symlink_to("../shared/real.c")
    assert seen_after(driver, "sed -i s/41/42/ ../shared/real.c") == {"link.c": "modified"}


def test_links_to_folders_are_not_followed(driver: Path) -> None:
    assert seen_after(driver, "ln -s . loop && ln -s /usr/include inc") == {}


def test_headers_elsewhere_are_watched_but_not_their_neighbours(driver: Path, tmp_path: Path) -> None:
    include = tmp_path / "include"
    include.mkdir()
    (include / "used.h").write_text("1")
    (include / "other.h").write_text("1")

    async def session() -> Seen:
        async with Watcher([driver], files=[include / "used.h"]) as watcher:
            (include / "other.h").write_text("2")
            (include / "used.h").write_text("2")
            seen = await gather(watcher, until=include / "used.h")
            await watcher.also_watch([include / "other.h"])
            (include / "other.h").write_text("3")
            seen |= await gather(watcher, until=include / "other.h")
            shell("mv include old && mkdir include", tmp_path)
            shell("echo 4 > include/used.h && cp old/other.h include", tmp_path)
            return seen | await gather(watcher, until=include / "used.h")

    assert asyncio.run(session()) == {
        str(include / "used.h"): "modified",
        str(include / "other.h"): "modified",
    }


def test_a_header_in_the_parent_folder_may_be_replaced_with_it(driver: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    os.rename(driver, work / "driver")
    (work / "common.h").write_text("1")

    async def session() -> list[Seen]:
        async with Watcher([work / "driver"], files=[work / "common.h"]) as watcher:
            shell("cp -r work new && mv work old && mv new work && echo 2 > work/common.h", tmp_path)
            first = await gather(watcher, until=work / "common.h")
            (work / "driver/foo.c").write_text(NEW)
            second = await gather(watcher, until=work / "driver/foo.c")
            (work / "common.h").write_text("3")
            return [first, second, await gather(watcher, until=work / "common.h")]

    header, source = {f"{work}/common.h": "modified"}, {f"{work}/driver/foo.c": "modified"}
    assert asyncio.run(session()) == [header, source, header]


def test_a_header_that_is_missing_is_seen_when_it_comes(driver: Path, tmp_path: Path) -> None:
    late = tmp_path / "generated" / "late.h"

    async def session() -> Seen:
        async with Watcher([driver], files=[late]) as watcher:
            late.parent.mkdir()
            late.write_text("1")
            return await gather(watcher, until=late)

    assert asyncio.run(session()) == {str(late): "created"}


def test_only_wanted_files_are_reported(driver: Path) -> None:
    edit = "printf x > foo.c; printf x > README.md"
    assert seen_after(driver, edit, wanted=lambda path: path.suffix == ".c") == {"foo.c": "modified"}


def test_of_a_large_tree_only_the_named_files_are_read_and_the_others_count_with_their_first_save(
    driver: Path,
) -> None:
    async def session() -> tuple[Seen, frozenset[Path], Seen]:
        async with Watcher([driver], files=[driver / "foo.c"], look=False) as watcher:
            read = frozenset(watcher.digests())
            shell("touch foo.c; printf x >> sub/bar.h", driver)
            first = await gather(watcher, until=driver / "sub/bar.h")
            watcher.rescan()
            (driver / "foo.c").write_text(NEW)
            return first, read, await gather(watcher, until=driver / "foo.c")

    first, read, second = asyncio.run(session())
    assert read == {driver / "foo.c"}
    assert first == {f"{driver}/sub/bar.h": "created"}
    assert second == {f"{driver}/foo.c": "modified"}


def test_two_thousand_files_at_once_are_all_seen(driver: Path) -> None:
    def burst() -> None:
        for number in range(2_000):
            (driver / f"gen{number}.c").write_text(f"int g{number};\n")

    assert len(seen_after(driver, burst)) == 2_000


def test_a_queue_that_overflows_loses_nothing(driver: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(10):
        (driver / f"{number}.c").write_text("1")

    async def session() -> Seen:
        async with Watcher([driver]) as watcher:
            assert watcher._inotify is not None
            # The reading thread needs this lock, so that the kernel's queue fills up; two names, because
            # equal events in a row are merged into one.
            with watcher._inotify._descriptor._lock:
                for _ in range(queue // 2):
                    for name in ("foo.c", "sub/bar.h"):
                        os.utime(driver / name)
                        os.close(os.open(driver / name, os.O_WRONLY))
                for number in range(10):
                    (driver / f"{number}.c").write_text("2")
                shell("mkdir late && echo 1 > late/late.c", driver)
            seen = await gather(watcher, until=driver / "9.c")
            (driver / "late/late.c").write_text("2")
            return seen | await gather(watcher, until=driver / "late/late.c")

    seen = asyncio.run(session())
    assert {f"{driver}/{number}.c" for number in range(10)} | {f"{driver}/late/late.c"} == set(seen)
    assert "checking every file" in caplog.text


def test_an_unreadable_file_is_told_once_and_seen_when_it_can_be_read(
    driver: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Not by permissions, for root reads everything: a file that gives EIO when read, as a bad disk does.
    (driver / "bad.c").symlink_to("/proc/self/mem")

    async def session() -> Seen:
        async with Watcher([driver]) as watcher:
            watcher.rescan()
            (driver / "foo.c").write_text(NEW)
            seen = await gather(watcher, until=driver / "foo.c")
            (driver / "bad.c").unlink()
            (driver / "bad.c").write_text("int good;\n")
            return seen | await gather(watcher, until=driver / "bad.c")

    seen = asyncio.run(session())
    assert seen == {f"{driver}/foo.c": "modified", f"{driver}/bad.c": "created"}
    assert caplog.text.count("bad.c cannot be read") == 1


def test_a_file_that_is_written_while_it_is_hashed_arrives_whole(driver: Path) -> None:
    whole = b"x" * (16 << 20)

    def write() -> None:
        for _ in range(5):
            (driver / "big.c").write_bytes(whole)
        (driver / "big.c").write_bytes(whole + b"end")

    async def session() -> bytes:
        async with Watcher([driver], quiet=0) as watcher:
            writer = threading.Thread(target=write)
            writer.start()
            while watcher.digests().get(driver / "big.c") != final:
                await next_batch(watcher)
            writer.join()
            return watcher.digests()[driver / "big.c"]

    (driver.parent / "copy.c").write_bytes(whole + b"end")
    from hotreload.watch.files import digest

    final = digest(str(driver.parent / "copy.c"))
    assert asyncio.run(session()) == final


def test_a_rescan_finds_nothing_when_nothing_changed(driver: Path) -> None:
    async def session() -> Seen:
        async with Watcher([driver]) as watcher:
            watcher.rescan()
            await asyncio.to_thread(lambda: None)
            (driver / "foo.c").write_text(NEW)
            return await gather(watcher, until=driver / "foo.c")

    assert asyncio.run(session()) == {f"{driver}/foo.c": "modified"}


def test_what_changed_since_an_earlier_session_is_the_first_batch(driver: Path) -> None:
    async def digests() -> dict[Path, bytes]:
        async with Watcher([driver]) as watcher:
            return watcher.digests()

    async def changed(since: dict[Path, bytes]) -> Seen:
        async with Watcher([driver], since=since) as watcher:
            return {str(change.path): change.kind for change in (await next_batch(watcher)).changes}

    since = asyncio.run(digests())
    shell("printf new > foo.c; rm sub/bar.h; printf x > new.c", driver)
    assert asyncio.run(changed(since)) == {
        f"{driver}/foo.c": "modified",
        f"{driver}/new.c": "created",
        f"{driver}/sub/bar.h": "deleted",
    }


def test_a_cancelled_wait_loses_no_batch(driver: Path) -> None:
    async def session() -> Seen:
        async with Watcher([driver], quiet=0.05) as watcher:
            (driver / "foo.c").write_text(NEW)
            for _ in range(20):
                waiter = asyncio.ensure_future(anext(watcher))
                await asyncio.sleep(0.001)
                waiter.cancel()
                await asyncio.wait([waiter])
                if not waiter.cancelled():  # on a busy machine a millisecond may be as long as the quiet time
                    return {str(change.path): change.kind for change in waiter.result().changes}
            return await gather(watcher, until=driver / "foo.c")

    assert asyncio.run(session()) == {f"{driver}/foo.c": "modified"}


def test_a_wait_that_is_cancelled_in_the_midst_of_hashing_loses_no_batch(driver: Path) -> None:
    large = [driver / f"{number}.c" for number in range(40)]

    async def session() -> Seen:
        async with Watcher([driver], quiet=0.1) as watcher:
            for file in large:
                file.write_bytes(bytes(1 << 20))
            waiter = asyncio.ensure_future(anext(watcher))
            while not watcher._looking.locked():  # noqa: ASYNC110  (a lock between threads)
                await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.wait([waiter])
            assert waiter.cancelled()
            return await gather(watcher, until=large[-1])

    assert set(asyncio.run(session())) == set(map(str, large))


def test_edits_during_a_reload_wait_for_the_next_turn_and_keep_their_time(driver: Path) -> None:
    async def session() -> tuple[float, float]:
        async with Watcher([driver]) as watcher:
            (driver / "foo.c").write_text(NEW)
            saved = time.monotonic()
            await asyncio.sleep(0.3)  # a reload that takes its time
            return saved, (await next_batch(watcher)).saved_at

    saved, saved_at = asyncio.run(session())
    assert abs(saved_at - saved) < 0.2


def test_changes_on_network_file_systems_are_found_by_looking(driver: Path) -> None:
    async def session() -> Seen:
        async with Watcher([driver], polling=True) as watcher:
            assert watcher._inotify is not None
            watcher._inotify.stop()  # as deaf as it is to another machine's edits
            (driver / "foo.c").write_text(NEW)
            (driver / "sub/new.c").write_text("1")
            return await gather(watcher, until=driver / "sub/new.c")

    assert asyncio.run(session()) == {f"{driver}/foo.c": "modified", f"{driver}/sub/new.c": "created"}


def test_leaving_ends_the_iteration_the_thread_and_the_descriptors(driver: Path) -> None:
    async def session() -> None:
        async with Watcher([driver]) as watcher:
            waiter = asyncio.ensure_future(anext(watcher, None))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiter, 10) is None

    asyncio.run(session())
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        asyncio.run(session())
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)


def test_watches_do_not_pile_up(driver: Path) -> None:
    async def session() -> tuple[int, int]:
        async with Watcher([driver], files=[driver.parent / "a.h"]) as watcher:
            assert watcher._inotify is not None
            before = len(watcher._inotify)
            assert before == 5  # driver, driver/sub, the folder of a.h, and the parents of driver and that
            for number in range(5):
                watcher.rescan()
                await watcher.also_watch([driver.parent / "a.h"])
                shell(f"mv sub sub2; mv sub2 sub; echo {number} > foo.c", driver)
                await gather(watcher, until=driver / "foo.c")
            return before, len(watcher._inotify)

    before, after = asyncio.run(session())
    assert before == after


def test_a_root_that_is_no_folder_is_an_error_with_its_name(driver: Path) -> None:
    async def session() -> None:
        async with Watcher([driver / "foo.c"]):
            pass

    with pytest.raises(InputError, match=r"foo\.c is not a folder"):
        asyncio.run(session())


LIMITED = """
import asyncio, sys
from pathlib import Path
from hotreload.errors import EnvironmentFault
from hotreload.watch.watcher import Watcher

async def session():
    async with Watcher([Path(sys.argv[1])]):
        print("no fault")

try:
    asyncio.run(session())
except EnvironmentFault as fault:
    print(fault.code, fault.message, "|", fault.hint)
"""


def limited(setting: str, value: int, folder: Path) -> str:
    # Each user namespace has limits of its own (namespaces(7)), so a test need not touch the machine's.
    command = f'echo {value} > /proc/sys/user/{setting} && exec "$@"'
    argv = ["unshare", "--user", "--map-root-user", "sh", "-ec", command, "sh", sys.executable, "-c", LIMITED]
    done = run([*argv, str(folder)])
    if "unshare" in done.stderr:
        pytest.skip("user namespaces are off; to get them: sysctl kernel.unprivileged_userns_clone=1")
    return done.stdout + done.stderr


def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_too_few_watches_are_an_error_that_names_the_setting_and_its_value(driver: Path) -> None:
    for number in range(10):
        (driver / f"sub{number}").mkdir()
    said = limited("max_inotify_watches", 5, driver)
    assert said.startswith("HR5102 the kernel allows no more inotify watches: user.max_inotify_watches is 5")
    assert "sudo sysctl user.max_inotify_watches=524288" in said


def test_too_few_instances_are_an_error_that_names_the_setting_and_its_value(driver: Path) -> None:
    said = limited("max_inotify_instances", 0, driver)
    assert said.startswith("HR5102 the kernel allows no more inotify instances: ")
    assert "user.max_inotify_instances is 0" in said


def test_an_idle_watcher_uses_no_processor_time(driver: Path) -> None:
    async def session() -> float:
        async with Watcher([driver]) as watcher:
            waiter = asyncio.ensure_future(anext(watcher))
            await asyncio.sleep(0.05)
            before = time.process_time()
            await asyncio.sleep(1.0)
            used = time.process_time() - before
            waiter.cancel()
            return used

    assert asyncio.run(session()) < 0.01


def test_a_named_file_that_is_edited_by_another_name_of_it_is_seen(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "NAMED_INTERVAL", 0.05)
    other = driver.parent / "other.c"
    os.link(driver / "foo.c", other)

    async def session() -> Seen:
        async with Watcher([driver], files=[driver / "foo.c"]) as watcher:
            other.write_text(NEW)  # inotify tells the other folder alone
            return {str(change.path): change.kind for change in (await next_batch(watcher)).changes}

    assert asyncio.run(session()) == {str(driver / "foo.c"): "modified"}


def test_a_file_that_is_not_read_differs_by_its_time(driver: Path) -> None:
    (driver / "table.txt").write_text("1\n")

    async def session() -> Seen:
        async with Watcher([driver], by_time=lambda path: path.suffix == ".txt") as watcher:
            os.utime(driver / "table.txt", (5, 5))
            return {str(change.path): change.kind for change in (await next_batch(watcher)).changes}

    assert asyncio.run(session()) == {str(driver / "table.txt"): "modified"}
