# SPDX-License-Identifier: MIT
"""What no patch can bring: the module is built anew, unloaded and loaded, and all else stays."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hotreload.demo.driven import Driven
from hotreload.elf.build_id import read_build_id
from hotreload.errors import HotReloadError
from hotreload.report.outcome import Outcome
from tests.guest.story import FILES, HELP, MAIN, Read, Save
from tests.kernels import SERIES, kernel_of

InSession = Callable[..., None]

GROWN = MAIN.replace("static int reads;", "static struct { long n; } reads;").replace("reads++", "reads.n++")
GROWN = GROWN.replace('"hello %d %d\\n", reads, twice(reads)', '"grown %ld %d\\n", reads.n, twice(reads.n)')


def proc_module(name: str, shown: str, extra: str = "", before: str = "") -> str:
    """A module that shows a line in /proc/NAME; ``extra`` are its own definitions."""
    return f"""\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
{extra}
static int show(struct seq_file *m, void *v)
{{
	{before}seq_printf(m, {shown});
	return 0;
}}

static int __init start(void)
{{
	proc_create_single("{name}", 0, NULL, show);
	return 0;
}}

static void __exit stop(void)
{{
	remove_proc_entry("{name}", NULL);
}}
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
"""


CORE = proc_module(
    "core",
    '"core %d\\n", total',
    """
static int total;
int core_add(int n);
int core_add(int n)
{
	return total += n;
}
EXPORT_SYMBOL_GPL(core_add);
""",
)
USER = proc_module("user", '"user %d\\n", core_add(1)', "int core_add(int n);\n")
OTHER = proc_module("other", '"other %d\\n", ++reads', "static int reads;\n")
THREE = {"Kbuild": "obj-m := core.o user.o other.o\n", "core.c": CORE, "user.c": USER, "other.c": OTHER}


DEVICE = """\
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

static int opened;

static int is_open(struct inode *inode, struct file *file)
{
	opened++;
	return 0;
}

static const struct file_operations held_fops = { .owner = THIS_MODULE, .open = is_open };
static struct miscdevice held = { .minor = MISC_DYNAMIC_MINOR, .name = "held", .fops = &held_fops };
module_misc_device(held);
MODULE_LICENSE("GPL");
"""


async def proc(watch: Driven, name: str) -> str:
    return (await watch.run(f"cat /proc/{name}")).text.strip()


def test_a_struct_of_live_data_that_grows_has_its_module_loaded_anew(in_session: InSession) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "hello 1 2\n"
        grown = await save(main_c=GROWN)
        assert (grown.outcome, grown.symbols, grown.number) == (Outcome.RELOADED, ("pair.ko",), 1), grown
        assert await read() == "grown 1 2\n"
        # From here on it is the base: a patch of the module that is loaded now.
        patched = await save(help_c=HELP.replace("2 * n", "7 * n"))
        assert (patched.outcome, patched.symbols) == (Outcome.LIVE, ("twice",)), patched
        assert await read() == "grown 2 14\n"

    in_session(story, max_rung="module")


def test_why_it_is_loaded_anew_is_told_before_it_is(in_session: InSession) -> None:
    async def story(_save: Save, _read: Read, watch: Driven) -> None:
        (watch.folder / "main.c").write_text(GROWN)
        told = await watch.next_cycle()
        (reason,) = told.events["refused"]["reasons"]
        assert reason["code"] == "HR2101"
        assert reason["hint"] == "needs a module reload: pair.ko; its state is lost"
        assert told.events["apply.start"]["rung"] == told.events["apply.done"]["rung"] == "module"
        assert told.events["refused"]["seq"] < told.events["apply.start"]["seq"]

    in_session(story, max_rung="module")


def test_what_is_live_of_other_modules_stays_and_so_does_their_state(in_session: InSession) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        assert await proc(watch, "other") == "other 1"
        live = await save(other_c=OTHER.replace("other %d", "patched %d"))
        assert live.outcome is Outcome.LIVE
        grown = await save(user_c=USER.replace("static int show", "static long held;\nstatic int show"))
        assert grown.outcome in (Outcome.NO_CHANGE, Outcome.LIVE), grown
        again = await save(core_c=CORE.replace("int total", "long total").replace("core %d", "core %ld"))
        assert again.outcome is Outcome.RELOADED, again
        # The module that uses it has to go first, and comes with it.
        assert again.symbols == ("core.ko", "user.ko")
        assert await proc(watch, "user") == "user 1"
        assert await proc(watch, "core") == "core 1"
        assert await proc(watch, "other") == "patched 2"

    in_session(story, THREE, max_rung="module")


def test_undo_and_redo_go_there_and_back(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(help_c=HELP.replace("2 * n", "3 * n"))
        assert await read() == "hello 1 3\n"
        assert (await save(main_c=GROWN)).outcome is Outcome.RELOADED
        assert await read() == "grown 1 3\n"
        undone = await watch.request("undo")
        assert (undone.outcome, undone.number) == (Outcome.UNDONE, 2), undone
        assert await read() == "hello 1 3\n"
        redone = await watch.request("redo")
        assert (redone.outcome, redone.number) == (Outcome.REDONE, 2), redone
        assert await read() == "grown 1 3\n"
        await watch.request("undo", everything=True)
        assert await read() == "hello 1 2\n"
        # The sources have not changed: the next save brings all that they say.
        both = await save(help_c=HELP.replace("2 * n", "5 * n"))
        assert both.outcome is Outcome.RELOADED, both
        assert await read() == "grown 1 5\n"

    in_session(story, max_rung="module")


def test_a_module_in_use_stays_and_who_has_it_open_is_told(in_session: InSession) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        patched = await save(held_c=DEVICE.replace("return 0", "return opened < 0"))
        assert patched.outcome is Outcome.LIVE
        sleeping = "sleep 600 </dev/held >/dev/null 2>&1 & echo $!"
        pid = (
            await watch.run(f"{sleeping}; until ls -l /proc/$!/fd | grep -q held; do :; done")
        ).text.strip()
        grown = DEVICE.replace("static int opened", "static long opened")
        refused = await save(held_c=grown)
        assert refused.outcome is Outcome.REJECTED, refused
        (reason,) = refused.reasons
        assert (reason.code, reason.message) == ("HR2301", "module held is in use (1 reference)")
        # And nobody else: who looks has files of the kernel's open, too.
        assert str(reason.hint).endswith(f"open now: sleep (pid {pid}): /dev/held")
        # What was live of it still is.
        assert "is_open" in (await watch.run("ls /sys/kernel/livepatch/*/held")).text
        await watch.run(f"kill {pid}")
        assert (await save(held_c=grown + "\n")).outcome is Outcome.RELOADED

    in_session(story, {"Kbuild": "obj-m := held.o\n", "held.c": DEVICE}, max_rung="module")


@pytest.mark.parametrize("checkpoints", ["on", "off"])
def test_a_module_that_does_not_load_leaves_the_guest_with_the_old_one_and_what_was_live(
    in_session: InSession, checkpoints: str
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(help_c=HELP.replace("2 * n", "3 * n"))
        assert await read() == "hello 1 3\n"
        broken = GROWN.replace('proc_create_single("pair", 0, NULL, show);\n\treturn 0', "return -EIO")
        failed = await save(main_c=broken)
        assert failed.outcome is Outcome.REJECTED, failed
        assert failed.reasons[0].code == "HR3103"
        # With a checkpoint even its state is as it was.
        assert await read() == ("hello 2 6\n" if checkpoints == "on" else "hello 1 3\n")
        assert (await save(main_c=GROWN)).outcome is Outcome.RELOADED
        assert await read() == "grown 1 3\n"

    in_session(story, max_rung="module", options=("--checkpoints", checkpoints))


def test_a_new_recipe_loads_anew_what_it_makes_in_another_way(in_session: InSession) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        assert await proc(watch, "other") == "other 1"
        changed = await save(Kbuild=THREE["Kbuild"] + "CFLAGS_user.o := -DLOUD\n")
        assert (changed.outcome, changed.symbols) == (Outcome.RELOADED, ("user.ko",)), changed
        assert await proc(watch, "other") == "other 2"
        said = await save(Kbuild=THREE["Kbuild"] + "CFLAGS_user.o := -DLOUD\n# a word\n")
        assert said.outcome is Outcome.NO_CHANGE, said

    in_session(story, THREE, max_rung="module")


def test_a_unit_that_a_new_recipe_adds_is_watched_from_then_on(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        (watch.folder / "more.c").write_text('#include "pair.h"\nint twice(int n)\n{\n\treturn 4 * n;\n}\n')
        added = await save(Kbuild=FILES["Kbuild"].replace("help.o", "more.o"))
        assert added.outcome is Outcome.RELOADED, added
        assert await read() == "hello 1 4\n"
        patched = await save(more_c='#include "pair.h"\nint twice(int n)\n{\n\treturn 6 * n;\n}\n')
        assert (patched.outcome, patched.symbols) == (Outcome.LIVE, ("twice",))
        assert await read() == "hello 2 12\n"
        # Code that does not compile without the flag that was saved with it.
        recipe = FILES["Kbuild"].replace("help.o", "more.o") + "ccflags-y := -DSTEP=7\n"
        flagged = await save(
            Kbuild=recipe, more_c='#include "pair.h"\nint twice(int n)\n{\n\treturn STEP * n;\n}\n'
        )
        assert flagged.outcome is Outcome.RELOADED, flagged
        assert await read() == "hello 1 7\n"

    in_session(story, max_rung="module")


def test_a_new_recipe_that_did_not_compile_is_brought_with_the_next_save(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        (watch.folder / "help.c").unlink()
        recipe = FILES["Kbuild"].replace("help.o", "more.o")
        wrong = await save(
            more_c='#include "pair.h"\nintt twice(int n)\n{\n\treturn 4 * n;\n}\n', Kbuild=recipe
        )
        assert wrong.outcome is Outcome.COMPILE_ERROR, wrong
        mended = await save(more_c='#include "pair.h"\nint twice(int n)\n{\n\treturn 4 * n;\n}\n')
        assert mended.outcome is Outcome.RELOADED, mended
        assert await read() == "hello 1 4\n"

    in_session(story, max_rung="module")


def test_what_make_said_of_a_recipe_is_done_with_once_the_module_is_loaded(in_session: InSession) -> None:
    async def story(save: Save, read: Read) -> None:
        # Make is asked about the table, and says that it compiles another unit now.
        more = '#include "pair.h"\nint twice(int n)\n{\n\treturn 4 * n;\n}\n'
        added = await save(more_c=more, a_table="one\n", Kbuild=FILES["Kbuild"].replace("help.o", "more.o"))
        assert added.outcome is Outcome.RELOADED, added
        said = await save(Makefile="# changed, and read by nobody\n")
        assert said.outcome is Outcome.NO_CHANGE, said
        assert await read() == "hello 1 4\n"

    in_session(story, {**FILES, "Makefile": "# beside a Kbuild\n"}, max_rung="module")


def test_a_reload_beside_a_makefile_that_makes_the_same_is_told_its_own_reason(in_session: InSession) -> None:
    async def story(_save: Save, _read: Read, watch: Driven) -> None:
        (watch.folder / "Kbuild").write_text(FILES["Kbuild"] + "# later\n")
        (watch.folder / "main.c").write_text(GROWN)
        told = await watch.next_cycle()
        assert told.report.outcome is Outcome.RELOADED, told
        assert [reason.code for climb in told.climbs for reason in climb.reasons] == ["HR2101"]

    in_session(story, max_rung="module")


def test_a_refused_text_that_is_saved_over_costs_no_state(in_session: InSession) -> None:
    # The compiler has read the first text, and takes some time for the header.
    header = "".join(f"static inline int f{n}(int n)\n{{\n\treturn n + {n};\n}}\n" for n in range(60_000))
    files = {**FILES, "big.h": header, "main.c": '#include "big.h"\n' + MAIN}

    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert await read() == "hello 1 2\n"
        (watch.folder / "main.c").write_text('#include "big.h"\n' + GROWN)
        await asyncio.sleep(0.5)
        over = await save(main_c=files["main.c"].replace("hello", "hullo"))
        assert (over.outcome, over.symbols) == (Outcome.LIVE, ("show",)), over
        assert await read() == "hullo 2 4\n"

    in_session(story, files, max_rung="module")


def test_a_crash_of_the_new_module_brings_the_old_one_back(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert await read() == "hello 1 2\n"
        bad = GROWN.replace("reads.n++;", "reads.n = *(volatile int *)8;")
        assert (await save(main_c=bad)).outcome is Outcome.RELOADED
        reading = asyncio.create_task(watch.run("cat /proc/pair"))
        crashed = (await watch.next_cycle()).report
        await asyncio.gather(reading, return_exceptions=True)
        assert crashed.outcome is Outcome.CRASHED
        assert await read() == "hello 2 4\n"
        assert (await save(main_c=GROWN)).outcome is Outcome.RELOADED
        assert await read() == "grown 1 2\n"

    in_session(story, max_rung="module")


@pytest.mark.parametrize(
    ("max_rung", "options", "outcome", "needs"),
    [
        ("restore", (), Outcome.RESTORED, "needs a return to before the modules were loaded"),
        ("reboot", ("--checkpoints", "off"), Outcome.REBOOTED, "needs a restart of the guest"),
    ],
)
def test_what_cannot_be_unloaded_begins_anew_where_that_is_allowed(
    max_rung: str, options: tuple[str, ...], outcome: Outcome, needs: str, in_session: InSession
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(help_c=HELP.replace("2 * n", "3 * n"))
        assert await read() == "hello 1 3\n"
        await watch.run("echo kept >/tmp/kept")
        (watch.folder / "main.c").write_text(MAIN.replace("int reads;", "long reads"))
        broken = (await watch.next_cycle()).report
        assert broken.outcome is Outcome.COMPILE_ERROR
        stays = GROWN.replace("static void __exit pair_exit", "static void __maybe_unused pair_exit")
        permanent = await save(main_c=stays.replace("module_exit(pair_exit);\n", ""))
        assert permanent.outcome is Outcome.RELOADED, permanent
        assert await read() == "grown 1 3\n"
        (watch.folder / "main.c").write_text(MAIN)
        told = await watch.next_cycle()
        assert told.report.outcome is outcome, told.report
        assert told.events["apply.done"]["rung"] == max_rung
        hints = [reason.hint or "" for climb in told.climbs for reason in climb.reasons]
        assert hints[0] == "needs a module reload: pair.ko; its state is lost"
        assert hints[1].startswith(needs)
        assert await read() == "hello 1 3\n"
        assert not (await watch.run("cat /tmp/kept")).ok
        # It goes on from there, with numbers that go on, too.
        patched = await save(help_c=HELP.replace("2 * n", "7 * n"))
        assert (patched.outcome, patched.number) == (Outcome.LIVE, 3)
        assert await read() == "hello 2 14\n"
        # The guest of now has checkpoints of its own.
        if outcome is Outcome.RESTORED:
            await save(help_c=HELP.replace("2 * n", "*(volatile int *)8"))
            with contextlib.suppress(HotReloadError):
                await watch.run("cat /proc/pair")
            assert (await watch.next_cycle()).report.outcome is Outcome.CRASHED
            assert await read() == "hello 3 21\n"

    in_session(story, max_rung=max_rung, options=options)


def own(file: Path) -> Path:
    """A file in place of the link to it."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    return file


def built_anew(kernel: Path) -> str:
    vmlinux = own(kernel / "vmlinux")
    build_id = bytes.fromhex(read_build_id(vmlinux) or "")
    vmlinux.write_bytes(vmlinux.read_bytes().replace(build_id, bytes(len(build_id))))
    return "the guest runs a different kernel: build-id"


def being_linked(kernel: Path) -> str:
    vmlinux = own(kernel / "vmlinux")
    os.truncate(vmlinux, vmlinux.stat().st_size // 2)
    return "vmlinux is incomplete: the kernel is being built"


def configured_anew(kernel: Path) -> str:
    with own(kernel / "include/generated/autoconf.h").open("a") as header:
        header.write("#define CONFIG_ARCH_HAS_SCALED_CPUTIME 1\n")
    return "was reconfigured"


def header_saved(kernel: Path) -> str:
    # As if the whole tree were here: what is included is behind links.
    image = own(kernel / "arch/x86/boot/bzImage")
    os.utime(image, (0, 1))
    return "was saved after"


def cleaned(kernel: Path) -> str:
    (kernel / "vmlinux").unlink()
    (kernel / "arch/x86/boot/bzImage").unlink()
    return "is incomplete"


@pytest.mark.parametrize(
    ("max_rung", "happens", "outcome"),
    [
        ("module", built_anew, Outcome.REFUSED),
        ("module", being_linked, Outcome.REFUSED),
        ("module", configured_anew, Outcome.REFUSED),
        ("module", header_saved, Outcome.REFUSED),
        ("module", cleaned, Outcome.REFUSED),
        ("restore", built_anew, Outcome.REJECTED),
        ("reboot", built_anew, Outcome.REBOOTED),
    ],
)
def test_a_module_for_a_kernel_that_is_built_meanwhile_is_not_loaded_into_that_of_before(
    max_rung: str, happens: Callable[[Path], str], outcome: Outcome, in_session: InSession, tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    subprocess.run(["cp", "-as", asyncio.run(kernel_of(SERIES[0])).output, kernel], check=True)

    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert await read() == "hello 1 2\n"
        await watch.ask("save", name="mine")
        expected = happens(kernel)
        (watch.folder / "main.c").write_text(GROWN)
        told = await watch.next_cycle()
        assert told.report.outcome is outcome, told.report
        if outcome is Outcome.REBOOTED:
            assert await read() == "grown 1 2\n"
            hints = [reason.hint or "" for climb in told.climbs for reason in climb.reasons]
            assert hints[-1] == (
                "needs a restart of the guest: all state in it is lost, and so are the checkpoints mine"
            )
            return
        reason = told.report.reasons[0]
        assert re.search(expected, f"{reason.message} {reason.hint}")
        assert "boot the guest with the current kernel" in (reason.hint or "")
        assert await read() == "hello 2 4\n"
        # What is no matter of layouts is patched as ever.
        (watch.folder / "main.c").write_text(MAIN)
        await watch.next_cycle()
        assert (await save(help_c=HELP.replace("2 * n", "7 * n"))).outcome is Outcome.LIVE
        assert await read() == "hello 3 21\n"

    in_session(story, max_rung=max_rung, options=("-K", str(kernel)))


def test_a_module_that_was_unloaded_by_hand_comes_back_as_its_sources_say(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(help_c=HELP.replace("2 * n", "3 * n"))
        assert (await watch.run("rmmod pair")).ok
        anew = await save(main_c=GROWN)
        assert anew.outcome is Outcome.RELOADED, anew
        assert "it is not loaded in the guest: the next load uses the new one" in anew.notes
        ko = (watch.folder / "pair.ko").read_bytes()
        assert (await watch.run("cat >/tmp/pair.ko; insmod /tmp/pair.ko", ko)).ok
        assert await read() == "grown 1 3\n"
        patched = await save(help_c=HELP.replace("2 * n", "7 * n"))
        assert patched.outcome is Outcome.LIVE, patched
        assert await read() == "grown 2 14\n"

    in_session(story, max_rung="module")


def test_a_module_that_somebody_loaded_by_hand_is_loaded_anew_like_the_others(in_session: InSession) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        ko = (watch.folder / "other.ko").read_bytes()
        assert (await watch.run("cat >/tmp/other.ko; insmod /tmp/other.ko", ko)).ok
        assert await proc(watch, "other") == "other 1"
        grown = OTHER.replace("int reads", "long reads").replace("other %d", "grown %ld")
        assert (await save(other_c=grown)).outcome is Outcome.RELOADED
        assert await proc(watch, "other") == "grown 1"

    in_session(story, THREE | {"hotreload.toml": 'load = ["user"]\n'}, max_rung="module")


def test_another_build_of_a_module_is_not_patched(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(main_c=GROWN)
        await watch.request("undo")
        assert await read() == "hello 1 2\n"
        # What is on the disk now is the module with the other layout.
        ko = (watch.folder / "pair.ko").read_bytes()
        assert (await watch.run("rmmod pair; cat >/tmp/pair.ko; insmod /tmp/pair.ko", ko)).ok
        assert await read() == "grown 1 2\n"
        (watch.folder / "main.c").write_text(MAIN)
        refused = await save(help_c=HELP.replace("2 * n", "7 * n"))
        assert refused.outcome is Outcome.REJECTED, refused
        assert [reason.code for reason in refused.reasons] == ["HR3101"]
        assert await read() == "grown 2 4\n"

    in_session(story, max_rung="module")


def test_a_new_recipe_and_another_modules_source_are_both_brought(in_session: InSession) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        assert await proc(watch, "other") == "other 1"
        recipe = THREE["Kbuild"] + "CFLAGS_user.o := -DLOUD\n"
        both = await save(Kbuild=recipe, other_c=OTHER.replace("other %d", "patched %d"))
        assert (both.outcome, both.symbols) == (Outcome.RELOADED, ("user.ko",)), both
        assert await proc(watch, "other") == "patched 2"

    in_session(story, THREE, max_rung="module")


def test_an_object_that_two_modules_are_linked_from_is_no_patch(in_session: InSession) -> None:
    files = {
        "Kbuild": "obj-m := one.o two.o\none-y := main1.o shared.o\ntwo-y := main2.o shared.o\n",
        "shared.c": "int shared(int n);\nint shared(int n)\n{\n\treturn n + 1;\n}\n",
        "main1.c": proc_module("one", '"one %d\\n", shared(1)', "int shared(int n);\n"),
        "main2.c": proc_module("two", '"two %d\\n", shared(2)', "int shared(int n);\n"),
    }

    async def story(_save: Save, _read: Read, watch: Driven) -> None:
        assert [await proc(watch, name) for name in ("one", "two")] == ["one 2", "two 3"]
        (watch.folder / "shared.c").write_text(files["shared.c"].replace("n + 1", "n + 10"))
        told = await watch.next_cycle()
        assert [reason["code"] for reason in told.events["refused"]["reasons"]] == ["HR2208"]
        assert (told.report.outcome, told.report.symbols) == (Outcome.RELOADED, ("one.ko", "two.ko"))
        assert [await proc(watch, name) for name in ("one", "two")] == ["one 11", "two 12"]

    in_session(story, files, max_rung="module")


BUS = """\
#include <linux/module.h>
#include <linux/platform_device.h>

static struct platform_device *made;

static int __init start(void)
{
	made = platform_device_register_simple("toy", PLATFORM_DEVID_NONE, NULL, 0);
	return PTR_ERR_OR_ZERO(made);
}

static void __exit stop(void)
{
	platform_device_unregister(made);
}
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
"""
TOY = """\
#include <linux/module.h>
#include <linux/platform_device.h>

static int probed;
module_param(probed, int, 0444);

static int probe(struct platform_device *device)
{
	probed++;
	return 0;
}

static struct platform_driver toy = { .probe = probe, .driver.name = "toy" };
module_platform_driver(toy);
MODULE_LICENSE("GPL");
"""


def test_a_device_is_given_back_to_the_driver_that_had_it(in_session: InSession) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        # So that it would not come by itself.
        done = await watch.run("echo 0 >/sys/bus/platform/drivers_autoprobe; echo $?")
        assert done.text == "0\n"
        anew = await save(
            toy_c=TOY.replace("int probed;", "long probed;").replace("probed, int", "probed, long")
        )
        assert (anew.outcome, anew.symbols) == (Outcome.RELOADED, ("toy.ko",)), anew
        bound = await watch.run("cat /sys/module/toy/parameters/probed; ls /sys/bus/platform/drivers/toy/toy")
        assert bound.text.split()[0] == "1", bound.text

    in_session(story, {"Kbuild": "obj-m := bus.o toy.o\n", "bus.c": BUS, "toy.c": TOY}, max_rung="module")


def source_patch(folder: Path, name: str, old: str, new: str) -> Path:
    lines = (text.splitlines(keepends=True) for text in (old, new))
    patch = folder / "fix.patch"
    patch.write_text("".join(difflib.unified_diff(*lines, f"a/{name}", f"b/{name}")))
    return patch


def test_a_module_that_is_loaded_anew_is_built_without_a_source_patch_which_is_told(
    in_session: InSession, tmp_path: Path
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        patch = source_patch(tmp_path, "help.c", HELP, HELP.replace("2 * n", "5 * n"))
        assert (await watch.request("push", patches=[str(patch)])).outcome is Outcome.LIVE
        assert await read() == "hello 1 5\n"
        anew = await save(main_c=GROWN)
        assert anew.outcome is Outcome.RELOADED, anew
        assert "help.c: built from the file, without the source patch that was pushed" in anew.notes
        assert await read() == "grown 1 2\n"
        again = await save(main_c=GROWN.replace("grown %ld", "grows %ld"))
        assert not any("source patch" in note for note in again.notes)

    in_session(story, max_rung="module")


def test_a_source_patch_is_brought_to_a_module_that_was_loaded_anew(
    in_session: InSession, tmp_path: Path
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert (await save(main_c=GROWN)).outcome is Outcome.RELOADED
        patch = source_patch(tmp_path, "main.c", GROWN, GROWN.replace("grown %ld", "pushed %ld"))
        pushed = await watch.request("push", patches=[str(patch)])
        assert (pushed.outcome, pushed.symbols) == (Outcome.LIVE, ("show",)), pushed
        assert await read() == "pushed 1 2\n"
        assert (await watch.request("undo")).outcome is Outcome.UNDONE
        assert await read() == "grown 2 4\n"

    in_session(story, max_rung="module")


def test_two_processors_are_no_other_story(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert (await watch.run("nproc")).text == "2\n"
        assert (await save(help_c=HELP.replace("2 * n", "3 * n"))).outcome is Outcome.LIVE
        assert await read() == "hello 1 3\n"
        assert (await save(main_c=GROWN)).outcome is Outcome.RELOADED
        assert await read() == "grown 1 3\n"
        await save(help_c=HELP.replace("2 * n", "*(volatile int *)8"))
        with contextlib.suppress(HotReloadError):
            await watch.run("cat /proc/pair")
        crashed = (await watch.next_cycle()).report
        assert (crashed.outcome, crashed.still_runs) == (Outcome.CRASHED, 2), crashed
        assert await read() == "grown 2 6\n"

    in_session(story, {**FILES, "hotreload.toml": "cpus = 2\n"}, max_rung="module")


WORKS = MAIN.replace("<linux/module.h>", "<linux/module.h>\n#include <linux/workqueue.h>")
TICKS = WORKS.replace(
    "static int show",
    """\
static int ticks;
static void tick(struct work_struct *unused);
static DECLARE_DELAYED_WORK(ticking, tick);

static void tick(struct work_struct *unused)
{
	ticks++;
	schedule_delayed_work(&ticking, HZ / 50);
}

static int show""",
).replace("\treads++;\n", "\treads++;\n\tif (!ticks)\n\t\tschedule_delayed_work(&ticking, 0);\n")
STOPPED = TICKS.replace(
    "\tremove_proc_entry",
    '\tpr_info("pair: %d ticks\\n", ticks > 0);\n\tcancel_delayed_work_sync(&ticking);\n\tremove_proc_entry',
)


@pytest.mark.parametrize("kernel", ["debian", "debian:6.12"])
def test_what_an_edit_started_its_exit_code_stops_though_the_guest_booted_with_another(
    kernel: str, in_session: InSession
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        live = await save(main_c=STOPPED)
        assert live.outcome is Outcome.LIVE, live
        assert "pair_exit" in live.symbols
        await read()
        grown = await save(
            main_c=STOPPED.replace("static int reads;", "static long reads;").replace(
                '"hello %d %d', '"hello %ld %d'
            )
        )
        assert (grown.outcome, grown.symbols) == (Outcome.RELOADED, ("pair.ko",)), grown
        await asyncio.sleep(0.5)
        assert await read() == "hello 1 2\n"
        log = (await watch.run("dmesg; ls -d /sys/module/hotreload_*")).text
        assert "pair: 1 ticks" in log
        assert "Call Trace" not in log
        # What stayed loaded for the module that is gone went with it.
        assert "/sys/module/hotreload_1" not in log
        assert not any("exit code from before" in note for note in grown.notes)
        both = await save(main_c=STOPPED.replace("pair: %d", "pair ended: %d"))
        assert both.outcome is Outcome.RELOADED
        assert [note for note in both.notes if "exit code from before this edit" in note], both.notes
        assert "pair ended" not in (await watch.run("dmesg")).text

    in_session(story, max_rung="module", options=("-K", kernel))


def test_exit_code_that_cannot_go_live_with_what_it_is_to_end_is_saved_first(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert (await save(main_c=TICKS)).outcome is Outcome.LIVE
        await read()
        both = STOPPED.replace("\tproc_create_single", '\tpr_info("pair is new\\n");\n\tproc_create_single')
        refused = await save(main_c=both)
        assert refused.outcome is Outcome.REFUSED, refused
        assert [(reason.code, reason.symbol) for reason in refused.reasons] == [("HR2201", "pair_exit")]
        assert (await save(main_c=STOPPED)).outcome is Outcome.LIVE
        assert (await save(main_c=both)).outcome is Outcome.RELOADED
        await asyncio.sleep(0.5)
        log = (await watch.run("dmesg")).text
        assert "pair: 1 ticks" in log
        assert "Call Trace" not in log

    in_session(story, max_rung="module")


def test_a_module_is_loaded_anew_on_demand_and_names_that_are_none_are_told(in_session: InSession) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        assert [await read(), await read()] == ["hello 1 2\n", "hello 2 4\n"]
        assert (await save(help_c=HELP.replace("2 * n", "5 * n"))).outcome is Outcome.LIVE
        loaded = await watch.request("reload", modules=["pair"])
        assert (loaded.outcome, loaded.symbols, loaded.number) == (Outcome.RELOADED, ("pair.ko",), 2), loaded
        assert await read() == "hello 1 5\n"
        assert (await watch.request("undo")).outcome is Outcome.UNDONE
        assert await read() == "hello 1 5\n"
        with pytest.raises(HotReloadError, match="no module other was built here"):
            await watch.request("reload", modules=["other"])

    in_session(story)
