# SPDX-License-Identifier: MIT
"""Edits of a driver of two units in one session: the guest does what the sources say, or is told why not."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from hotreload import process
from hotreload.build.kernel_tree import KernelTree
from hotreload.demo.driven import Driven, guest_name
from hotreload.report.outcome import Outcome, ReloadReport
from tests.conftest import require
from tests.guest.conftest import PROGRAMS

MAIN = """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include "pair.h"

static int reads;

static int show(struct seq_file *m, void *v)
{
	reads++;
	seq_printf(m, "hello %d %d\\n", reads, twice(reads));
	return 0;
}

static int __init pair_init(void)
{
	proc_create_single("pair", 0, NULL, show);
	return 0;
}

static void __exit pair_exit(void)
{
	remove_proc_entry("pair", NULL);
}
module_init(pair_init);
module_exit(pair_exit);
MODULE_LICENSE("GPL");
"""
HELP = """\
#include <linux/kernel.h>
#include "pair.h"

int twice(int n)
{
	return 2 * n;
}
"""
FILES = {
    "Kbuild": "obj-m := pair.o\npair-y := main.o help.o\n",
    "pair.h": "int twice(int n);\n",
    "main.c": MAIN,
    "help.c": HELP,
}

Save = Callable[..., Awaitable[ReloadReport]]
Read = Callable[[], Awaitable[str]]


@pytest.fixture
def in_session(debian_kernel: KernelTree, tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine function with ``save(name=text, ..)``, which awaits the cycle, and ``read()``."""
    assert debian_kernel.image.is_file()
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    folder = tmp_path / "pair"
    folder.mkdir()

    def run(story: Callable[..., Awaitable[None]], files: Mapping[str, str] = FILES) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)

        async def within() -> None:
            async with Driven(folder, guest_name("edits"), lambda _text: None) as watch:

                async def save(**texts: str) -> ReloadReport:
                    for name, text in texts.items():
                        (folder / name.replace("_", ".")).write_text(text)
                    return (await watch.next_cycle()).report

                async def read() -> str:
                    return (await watch.run("cat /proc/pair")).text

                if "watch" in inspect.signature(story).parameters:
                    await story(save, read, watch=watch)
                else:
                    await story(save, read)
                log = await watch.run("dmesg")
                assert "Call Trace" not in log.text

        asyncio.run(within())

    return run


def test_a_new_function_in_one_file_is_called_from_another(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "hello 1 2\n"
        report = await save(
            pair_h=FILES["pair.h"] + "int thrice(int n);\nextern int calls;\n",
            help_c=HELP + "int calls = 40;\nint thrice(int n)\n{\n\tcalls++;\n\treturn 3 * n;\n}\n",
            main_c=MAIN.replace("twice(reads)", "thrice(reads) + calls"),
        )
        assert report.outcome is Outcome.LIVE, report
        assert await read() == "hello 2 47\n"

    in_session(story)


def test_a_prototype_changes_with_its_callers_in_another_file(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        report = await save(
            pair_h="int twice(int n, int m);\n",
            help_c=HELP.replace("int n", "int n, int m").replace("2 * n", "m * n"),
            main_c=MAIN.replace("twice(reads)", "twice(reads, 100)"),
        )
        assert report.outcome is Outcome.LIVE, report
        assert await read() == "hello 1 100\n"

    in_session(story)


def test_a_change_for_the_next_load_is_told_beside_a_live_patch_and_refused_alone(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        other = MAIN.replace("{\n\tproc_create", '{\n\tpr_info("pair is here\\n");\n\tproc_create')
        alone = await save(main_c=other)
        assert [reason.code for reason in alone.reasons] == ["HR2201"]
        beside = await save(main_c=other.replace('"hello', '"hello!'))
        assert beside.outcome is Outcome.LIVE
        assert any("waits for the next load" in note for note in beside.notes)
        assert await read() == "hello! 1 2\n"
        again = await save(main_c=other.replace('"hello', '"hello!').replace("is here", "is there"))
        assert again.outcome is Outcome.NO_CHANGE
        assert any("waits for the next load" in note for note in again.notes)

    in_session(story)


def test_a_makefile_is_refused_until_it_is_put_back(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        changed = await save(Kbuild=FILES["Kbuild"] + "ccflags-y := -DLOUD\n")
        assert [reason.code for reason in changed.reasons] == ["HR1004"]
        meanwhile = await save(help_c=HELP.replace("2 * n", "5 * n"))
        assert meanwhile.outcome is Outcome.LIVE
        assert any(note.startswith("HR1004 Kbuild changed") for note in meanwhile.notes)
        assert await read() == "hello 1 5\n"
        back = await save(Kbuild=FILES["Kbuild"])
        assert back.outcome is Outcome.NO_CHANGE

    in_session(story)


def test_a_header_elsewhere_that_an_edit_includes_is_watched_from_then_on(
    in_session: Callable[..., None], tmp_path: Path
) -> None:
    header = tmp_path / "common.h"
    header.write_text("#define FACTOR 3\n")

    async def story(save: Save, read: Read) -> None:
        added = await save(help_c=f'#include "{header}"\n' + HELP.replace("2 * n", "FACTOR * n"))
        assert added.outcome is Outcome.LIVE, added
        assert await read() == "hello 1 3\n"
        header.write_text("#define FACTOR 11\n")
        assert (await save()).outcome is Outcome.LIVE
        assert await read() == "hello 2 22\n"

    in_session(story)


def test_what_is_saved_together_with_a_makefile_is_not_forgotten(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        both = await save(Kbuild=FILES["Kbuild"] + "# later\n", help_c=HELP.replace("2 * n", "9 * n"))
        assert [reason.code for reason in both.reasons] == ["HR1004"]
        assert await read() == "hello 1 2\n"
        other = await save(main_c=MAIN.replace("hello", "hi"))
        assert other.outcome is Outcome.LIVE
        assert await read() == "hi 2 18\n"

    in_session(story)


def test_a_refused_unit_holds_up_the_others_and_is_named(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=MAIN.replace("int reads;", "long reads;"))
        held = await save(help_c=HELP.replace("2 * n", "7 * n"))
        assert held.outcome is Outcome.REFUSED
        assert [(r.code, r.file and r.file.name) for r in held.reasons] == [("HR2101", "main.c")]
        assert await read() == "hello 1 2\n"
        freed = await save(main_c=MAIN)
        assert freed.outcome is Outcome.LIVE
        assert await read() == "hello 2 14\n"

    in_session(story)


COUNTED = MAIN.replace("\tseq_printf", "\tstatic int mine = 10;\n\n\tmine++;\n\tseq_printf").replace(
    "twice(reads)", "mine"
)


def test_a_variable_that_a_reload_added_keeps_its_value_through_later_ones(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=COUNTED)
        assert [await read(), await read()] == ["hello 1 11\n", "hello 2 12\n"]
        await save(help_c=HELP.replace("2 * n", "3 * n"))
        assert await read() == "hello 3 13\n"
        own = await save(main_c=COUNTED.replace('"hello', '"hey'))
        assert await read() == "hey 4 14\n"
        assert not any("anew" in note for note in own.notes)
        retyped = await save(
            main_c=COUNTED.replace("int mine = 10", "long mine = 20").replace("%d\\n", "%ld\\n")
        )
        assert "HR2104 starts anew, with another type or initial value: mine" in retyped.notes
        assert await read() == "hello 5 21\n"

    in_session(story)


TIMER = (
    MAIN.replace(
        "static int show",
        """\
static void beat(struct timer_list *timer);
static DEFINE_TIMER(heart, beat);
static int beats;

static noinline int step(void)
{
	return 1;
}

static void beat(struct timer_list *timer)
{
	beats += step();
	mod_timer(&heart, jiffies + 2);
}

static int show""",
    )
    .replace("reads, twice(reads)", "reads, beats")
    .replace("\treads++;\n", "\treads++;\n\tmod_timer(&heart, jiffies + 2);\n")
)


async def beats(read: Read) -> int:
    return int((await read()).split()[2])


def test_a_timer_that_an_edit_started_runs_what_is_saved_later(in_session: Callable[..., None]) -> None:
    async def until(read: Read, wanted: Callable[[int], bool]) -> bool:
        for _ in range(50):
            if wanted(await beats(read)):
                return True
            await asyncio.sleep(0.1)
        return False

    async def story(save: Save, read: Read) -> None:
        first = await save(main_c=TIMER)
        assert first.outcome is Outcome.LIVE, first
        assert await until(read, lambda n: n > 3)
        # Nothing arms the timer anew: the function that it has the address of is the first reload's.
        unarmed = TIMER.replace("reads++;\n\tmod_timer(", "reads++;\n\tif (reads == 1)\n\t\tmod_timer(")
        await save(main_c=unarmed.replace("beats += step();", "beats -= 1000;"))
        assert await until(read, lambda n: n < -3000)
        # The change may be deeper, in what it calls.
        await save(main_c=unarmed.replace("return 1;", "return 100000;"))
        assert await until(read, lambda n: n > 300000)
        gone = await save(main_c=MAIN)
        assert "HR2207 gone, and still run by whoever has its address: beat" in gone.notes

    in_session(story)


THREAD = (
    MAIN.replace("<linux/module.h>", "<linux/module.h>\n#include <linux/kthread.h>\n#include <linux/delay.h>")
    .replace(
        "static int show",
        """\
static int rounds;

static int walk(void *unused)
{
	while (!kthread_should_stop()) {
		rounds++;
		msleep(10);
	}
	return 0;
}

static struct task_struct *walker;

static int show""",
    )
    .replace("\treads++;\n", '\treads++;\n\tif (!walker)\n\t\twalker = kthread_run(walk, NULL, "walker");\n')
    .replace("twice(reads)", "rounds > 0")
)


def test_a_thread_in_a_function_that_an_edit_added_holds_up_only_edits_of_that_function(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=THREAD)
        await read()
        await asyncio.sleep(0.2)
        assert await read() == "hello 2 1\n"
        other = await save(main_c=THREAD.replace('"hello', '"hey'))
        assert other.outcome is Outcome.LIVE, other
        assert await read() == "hey 3 1\n"
        loop = await save(main_c=THREAD.replace("rounds++", "rounds += 2"))
        assert loop.outcome is Outcome.STALLED, loop
        assert "walker" in loop.reasons[0].message
        stopped = THREAD.replace("if (!walker)", "if (walker)").replace(
            'kthread_run(walk, NULL, "walker")', "NULL"
        )
        assert (await save(main_c=stopped)).outcome is Outcome.LIVE

    in_session(story)


OPS = {
    "Kbuild": "obj-m := pair.o\n",
    "pair.c": """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/uaccess.h>

static int limit = 5;
module_param(limit, int, 0644);
static int state = 1;

static ssize_t pair_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[64];
	int length = scnprintf(text, sizeof(text), "limit %d state %d\\n", limit, state);

	if (!*at)
		state++;
	return simple_read_from_buffer(to, size, at, text, length);
}

static const struct proc_ops pair_ops = {
	.proc_read = pair_read,
};

static int __init pair_init(void)
{
	proc_create("pair", 0666, NULL, &pair_ops);
	return 0;
}

static void __exit pair_exit(void)
{
	remove_proc_entry("pair", NULL);
}
module_init(pair_init);
module_exit(pair_exit);
MODULE_LICENSE("GPL");
""",
}
PAIR = OPS["pair.c"]


def test_a_new_initial_value_is_written_while_the_old_one_stands_and_goes_back(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "limit 5 state 1\n"
        six = await save(pair_c=PAIR.replace("limit = 5", "limit = 6"))
        assert (six.outcome, six.symbols) == (Outcome.LIVE, ("limit",)), six
        assert "new initial value written in place: limit; what was made from the old one stays" in six.notes
        assert await read() == "limit 6 state 2\n"
        await save(pair_c=PAIR.replace("limit = 5", "limit = 0x10007"))
        assert await read() == "limit 65543 state 3\n"
        back = await save(pair_c=PAIR)
        assert back.outcome is Outcome.UNDONE
        assert await read() == "limit 5 state 4\n"

    in_session(story, OPS)


def test_a_value_that_the_kernel_has_changed_is_not_written_over(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "limit 5 state 1\n"
        both = PAIR.replace("limit = 5", "limit = 6").replace("state = 1", "state = 100")
        refused = await save(pair_c=both)
        assert [reason.code for reason in refused.reasons] == ["HR2103"], refused
        assert "state has a new initial value" in refused.reasons[0].message
        assert await read() == "limit 5 state 2\n"

    in_session(story, OPS)


def test_what_becomes_of_a_written_value_is_the_kernels(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        hundred = PAIR.replace("state = 1", "state = 100")
        await save(pair_c=hundred)
        assert [await read(), await read()] == ["limit 5 state 100\n", "limit 5 state 101\n"]
        later = await save(pair_c=hundred.replace('"limit', '"Limit'))
        assert later.outcome is Outcome.LIVE
        assert await read() == "Limit 5 state 102\n"
        await save(pair_c=PAIR)
        assert await read() == "limit 5 state 103\n"

    in_session(story, OPS)


WRITE = PAIR.replace(
    "static const struct proc_ops pair_ops = {\n",
    """\
static ssize_t pair_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	limit = 1000;
	return size;
}

static const struct proc_ops pair_ops = {
	.proc_write = pair_write,
""",
)


def test_a_function_is_added_to_a_table_that_the_kernel_holds(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        async def write() -> bool:
            return (await watch.run("echo x >/proc/pair")).status == 0

        assert not await write()
        added = await save(pair_c=WRITE)
        assert added.outcome is Outcome.LIVE, added
        assert any("pair_ops.proc_write" in note for note in added.notes)
        assert await write()
        assert await read() == "limit 1000 state 1\n"
        # The table goes on holding the address of the first version.
        await save(pair_c=WRITE.replace("limit = 1000", "limit = 2000"))
        assert await write()
        assert await read() == "limit 2000 state 2\n"
        await save(pair_c=PAIR.replace('"limit', '"Limit'))
        assert not await write()
        assert await read() == "Limit 2000 state 3\n"

    in_session(story, OPS)


ITEM = (
    MAIN.replace(
        "static int show",
        """\
struct item {
	int first;
};

static struct item *made;

static int show""",
    )
    .replace(
        "\treads++;\n",
        "\treads++;\n\tif (!made)\n\t\tmade = kzalloc(sizeof(*made), GFP_KERNEL);\n\tmade->first++;\n",
    )
    .replace("twice(reads)", "made->first")
    .replace("<linux/module.h>", "<linux/module.h>\n#include <linux/slab.h>")
)


def test_a_struct_that_a_reload_added_cannot_grow_while_objects_of_it_may_be_there(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(main_c=ITEM)
        assert await read() == "hello 1 1\n"
        grown = ITEM.replace("int first;", "long other;\n\tint first;")
        refused = await save(main_c=grown)
        assert [(r.code, r.symbol) for r in refused.reasons] == [("HR2101", "struct item")]
        assert "hotreload undo" in str(refused.reasons[0].hint)
        undo = (sys.executable, "-m", "hotreload", "--guest", str(watch.facts["guest"]), "undo")
        assert (await process.run(undo)).ok
        assert (await watch.next_cycle()).report.outcome is Outcome.UNDONE
        assert (await save(main_c=grown + "\n")).outcome is Outcome.LIVE
        # The old object is nobody's: the variable that pointed at it began anew.
        assert await read() == "hello 2 1\n"

    in_session(story)


CALLED = PAIR.replace("<linux/uaccess.h>", "<linux/uaccess.h>\n#include <hotreload.h>").replace(
    "static int __init pair_init",
    """\
static int before(struct klp_object *obj)
{
	pr_info("pair: before %s\\n", obj->name);
	return limit == 99 ? -EPERM : 0;
}
HOTRELOAD_PRE_PATCH(before);

static void after(struct klp_object *obj)
{
	state = 1000;
}
KLP_POST_PATCH_CALLBACK(after);

static void undone(struct klp_object *obj)
{
	state = 2000;
}
KPATCH_POST_UNPATCH_CALLBACK(undone);

static int __init pair_init""",
)


def test_callbacks_of_the_author_run_with_the_patch_and_may_refuse_it(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        called = await save(pair_c=CALLED)
        assert called.outcome is Outcome.LIVE, called
        assert await read() == "limit 5 state 1000\n"
        assert "pair: before pair" in (await watch.run("dmesg")).text
        assert (await save(pair_c=PAIR)).outcome is Outcome.UNDONE
        assert await read() == "limit 5 state 2000\n"
        await watch.run("echo 99 >/sys/module/pair/parameters/limit")
        refused = await save(pair_c=CALLED)
        assert [reason.code for reason in refused.reasons] == ["HR3103"]
        assert await read() == "limit 99 state 2001\n"

    in_session(story, OPS)


GIVER = (
    FILES["main.c"]
    .replace(
        "static int show",
        """\
int given(int n);
int given(int n)
{
	return n + 1;
}

static int show""",
    )
    .replace("pair.h", "pair_h.h")
    .replace('"hello', '"giver')
)
TAKER = (
    MAIN.replace("pair_", "taker_")
    .replace('"pair"', '"taker"')
    .replace('#include "pair.h"', "int given(int n);")
    .replace("twice(reads)", "0")
)
TWO_MODULES = {
    "Kbuild": "obj-m := giver.o taker.o\n",
    "pair_h.h": "static inline int twice(int n) { return 2 * n; }\n",
    "giver.c": GIVER,
    "taker.c": TAKER,
}


def test_a_new_export_is_used_by_another_module_in_the_same_patch(in_session: Callable[..., None]) -> None:
    async def story(save: Save, _read: Read, watch: Driven) -> None:
        exported = GIVER.replace("\treturn n + 1;\n}\n", "\treturn n + 1;\n}\nEXPORT_SYMBOL_GPL(given);\n")
        used = await save(giver_c=exported, taker_c=TAKER.replace(", reads, 0", ", reads, given(40)"))
        assert used.outcome is Outcome.LIVE, used
        assert any("given is exported now" in note for note in used.notes)
        assert (await watch.run("cat /proc/taker")).text == "hello 1 41\n"
        # The function itself changes, too: one patch over both modules.
        both = await save(giver_c=exported.replace("n + 1", "n + 2"))
        assert both.outcome is Outcome.LIVE, both
        assert (await watch.run("cat /proc/taker")).text == "hello 2 42\n"

    in_session(story, TWO_MODULES)


NUMBERED = MAIN.replace(
    "\treads++;\n", '\treads++;\n\tWARN(reads == 3, "three");\n\tpr_debug("read %d times\\n", reads);\n'
)


def test_lines_that_only_move_change_nothing_and_a_new_line_tells_its_own_number(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        moved = await save(
            main_c=NUMBERED.replace("static int reads;", "/* How often. */\n\nstatic int reads;")
        )
        assert moved.outcome is Outcome.NO_CHANGE, moved
        inside = await save(main_c=NUMBERED.replace("\treads++;", "\t/* once more */\n\treads++;"))
        assert inside.outcome is Outcome.NO_CHANGE, inside
        header = await save(pair_h="/* what main.c and help.c share */\n" + FILES["pair.h"], main_c=NUMBERED)
        assert header.outcome is Outcome.NO_CHANGE, header
        warned = "/* one\n * two\n */\n" + NUMBERED.replace(
            "\treads++;", '\tWARN(reads == 0, "new");\n\treads++;'
        )
        assert (await save(main_c=warned)).outcome is Outcome.LIVE
        await read()
        line = warned[: warned.index('"new"')].count("\n") + 1
        await read()
        assert f"main.c:{line} show+" in (await watch.run("dmesg -c")).text

    in_session(story, {**FILES, "main.c": NUMBERED})


STATIC_CALL = (
    PAIR.replace("<linux/uaccess.h>", "<linux/uaccess.h>\n#include <linux/static_call.h>")
    .replace(
        "static ssize_t pair_read",
        """\
static int five(int n)
{
	return n * 5;
}
DEFINE_STATIC_CALL(times, five);

static ssize_t pair_read""",
    )
    .replace("limit, state)", "static_call(times)(limit), state)")
)
SHADOWED = (
    STATIC_CALL.replace("<linux/uaccess.h>", "<linux/uaccess.h>\n#include <hotreload.h>")
    .replace("static_call(times)(limit), state)", "KLP_STATIC_CALL(times)(limit), ++*seen)")
    .replace(
        "\tchar text[64];\n",
        "\tchar text[64];\n"
        "\tint *seen = klp_shadow_get_or_alloc(&limit, 1, sizeof(*seen), GFP_KERNEL, NULL, NULL);\n",
    )
)


def test_macros_and_shadow_variables_work_in_patched_code(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "limit 25 state 1\n"
        site = await save(pair_c=STATIC_CALL.replace('"limit', '"Limit'))
        assert [reason.code for reason in site.reasons] == ["HR2204"]
        shadowed = await save(pair_c=SHADOWED)
        assert shadowed.outcome is Outcome.LIVE, shadowed
        counts = [int((await read()).split()[3]) for _ in range(2)]
        await save(pair_c=SHADOWED.replace('"limit', '"Limit'))
        text = await read()
        assert text.startswith("Limit 25 ")
        assert int(text.split()[3]) > counts[1] > counts[0] > 0

    in_session(story, {**OPS, "pair.c": STATIC_CALL})


TABLE = MAIN.replace(
    "static int show", "static const int table[] = {10, 20, 30, 40};\n\nstatic int show"
).replace("twice(reads)", "table[reads & 3]")


def test_a_constant_that_a_reload_added_goes_with_its_patch(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(main_c=TABLE)
        assert await read() == "hello 1 20\n"
        for factor in range(3, 6):
            await save(help_c=HELP.replace("2 * n", f"{factor} * n"))
        assert await read() == "hello 2 30\n"
        await asyncio.sleep(1)
        # The last one swept away what nothing is left of.
        loaded = (await watch.run("ls -d /sys/module/hotreload_*")).text.split()
        assert loaded == ["/sys/module/hotreload_4"], loaded
        assert await read() == "hello 3 40\n"

    in_session(story)


REFUSING = PAIR.replace("<linux/uaccess.h>", "<linux/uaccess.h>\n#include <hotreload.h>").replace(
    "static int __init pair_init",
    """\
static int never(struct klp_object *obj)
{
	return -EPERM;
}
HOTRELOAD_PRE_PATCH(never);

static int __init pair_init""",
)


def test_values_go_back_when_an_author_refuses_the_patch(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(pair_c=PAIR.replace("limit = 5", "limit = 6"))
        assert await read() == "limit 6 state 1\n"
        refused = await save(pair_c=REFUSING.replace("limit = 5", "limit = 7"))
        assert refused.outcome is Outcome.REJECTED, refused
        assert await read() == "limit 6 state 2\n"
        assert (await save(pair_c=PAIR)).outcome is Outcome.UNDONE
        assert await read() == "limit 5 state 3\n"

    in_session(story, OPS)
