# SPDX-License-Identifier: MIT
"""What a reload added or wrote, and the kernel still holds while the sources go on, is not mixed up."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from hotreload import process
from hotreload.demo.driven import Driven
from hotreload.report.outcome import Outcome
from tests.guest.story import FILES, HELP, MAIN, OPS, PAIR, THREAD, Read, Save

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
        assert not any("starts again" in note for note in own.notes)
        retyped = await save(
            main_c=COUNTED.replace("int mine = 10", "long mine = 20").replace("%d\\n", "%ld\\n")
        )
        assert (
            "HR2104 starts again from its initial value, because its type, initial value or function"
            " changed: mine"
        ) in retyped.notes
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
        # Under another name it is the same function.
        renamed = unarmed.replace("beat(", "pulse(").replace("(heart, beat)", "(heart, pulse)")
        await save(main_c=renamed.replace("beats += step();", "beats = -7;"))
        assert await until(read, lambda n: n == -7)
        # Without it the timer would run what no source has.
        gone = await save(main_c=MAIN)
        assert gone.outcome is Outcome.REFUSED, gone
        assert [reason.code for reason in gone.reasons] == ["HR2207"]
        assert await until(read, lambda n: n == -7)

    in_session(story)


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
        # The thread that runs would stay in what no source has.
        gone = await save(main_c=stopped)
        assert (gone.outcome, gone.reasons[0].code) == (Outcome.REFUSED, "HR2207"), gone

    in_session(story)


MADE = (
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
        await save(main_c=MADE)
        assert await read() == "hello 1 1\n"
        grown = MADE.replace("int first;", "long other;\n\tint first;")
        refused = await save(main_c=grown)
        assert [(r.code, r.symbol) for r in refused.reasons] == [("HR2101", "struct item")]
        undo = (sys.executable, "-m", "hotreload", "--guest", str(watch.facts["guest"]), "undo")
        assert (await process.run(undo)).ok
        assert (await watch.next_cycle()).report.outcome is Outcome.UNDONE
        # No undo takes back what code has made: the object is still there, and somebody may find it.
        again = await save(main_c=grown + "\n")
        assert [(r.code, r.symbol) for r in again.reasons] == [("HR2101", "struct item")]

    in_session(story)


SHORT_TABLE = MAIN.replace(
    "static int show", "static const int table[] = {10, 20, 30, 40};\n\nstatic int show"
).replace("twice(reads)", "table[reads & 3]")


def test_a_constant_that_a_reload_added_goes_with_its_patch(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(main_c=SHORT_TABLE)
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


SLAB = "<linux/module.h>\n#include <linux/slab.h>"
TABLE = HELP.replace(
    "int twice", "static const int table[8] = { 11, 22, 33, 44, 55, 66, 77, 88 };\n\nint twice"
).replace("2 * n", "table[n & 7]")


def test_a_constant_that_two_reloads_use_is_there_when_the_first_module_is_gone(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(help_c=TABLE)
        assert await read() == "hello 1 22\n"
        await save(help_c=TABLE.replace("table[n & 7]", "table[n & 7] + 1000"))
        for _ in range(50):
            if "hotreload_1 " not in (await watch.run("lsmod")).text:
                break
            await asyncio.sleep(0.1)
        assert "hotreload_1 " not in (await watch.run("lsmod")).text
        assert await read() == "hello 2 1033\n"

    in_session(story)


NAMED = {
    **FILES,
    "main.c": MAIN.replace("static int reads;", "static int reads;\nextern const char *last;")
    .replace("hello %d %d", "hello %d %s")
    .replace("twice(reads)", 'twice(reads) && last ? last : "none"'),
    "help.c": HELP.replace("int twice", "extern const char *last;\nconst char *last;\n\nint twice"),
}


def test_the_name_of_a_function_that_the_base_has_stored_stays(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "hello 1 none\n"
        await save(help_c=NAMED["help.c"].replace("return 2", "last = __func__;\n\treturn 2"))
        assert await read() == "hello 2 twice\n"
        await save(help_c=NAMED["help.c"].replace("return 2", "return 3"))
        await asyncio.sleep(2)
        assert await read() == "hello 3 twice\n"

    in_session(story, NAMED)


LATE = (
    THREAD.replace("rounds++", "rounds += 2")
    .replace(
        "static int show",
        """\
static void late(struct timer_list *timer)
{
	reads += 1000;
}
static DEFINE_TIMER(alarm_clock, late);

static int show""",
        1,
    )
    .replace("\treads++;\n", "\treads++;\n\tmod_timer(&alarm_clock, jiffies + 10 * HZ);\n")
)


def test_a_timer_that_a_patch_set_before_it_was_taken_back_still_finds_its_function(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=THREAD)
        await read()
        saving = asyncio.ensure_future(save(main_c=LATE))
        # A reader is in no old code: it runs the new one while the thread holds up the transition.
        while not saving.done():
            await read()
            await asyncio.sleep(1)
        assert (await saving).outcome is Outcome.STALLED
        for _ in range(30):
            await asyncio.sleep(1)
            if int((await read()).split()[1]) > 1000:
                return
        raise AssertionError("the timer never came")

    in_session(story, {**FILES, "hotreload.toml": "transition_timeout = 5\n"})


WORK = (
    MAIN.replace("<linux/module.h>", "<linux/module.h>\n#include <linux/workqueue.h>")
    .replace(
        "static int show",
        """\
static int ticks;
static void tick(struct work_struct *work);
static DECLARE_DELAYED_WORK(job, tick);

static void tick(struct work_struct *work)
{
	ticks++;
	schedule_delayed_work(&job, 2);
}

static int show""",
    )
    .replace("\treads++;\n", "\treads++;\n\tif (reads == 1)\n\t\tschedule_delayed_work(&job, 2);\n")
    .replace("twice(reads)", "ticks")
)
CLOCK = (
    MAIN.replace(
        "static int show",
        """\
static int ticks;
static struct {
	int step;
	struct timer_list timer;
} ticker;

static void tick(struct timer_list *timer)
{
	ticks += container_of(timer, typeof(ticker), timer)->step;
	mod_timer(timer, jiffies + 2);
}

static int show""",
    )
    .replace(
        "\treads++;\n",
        """\
	reads++;
	if (!ticker.step) {
		ticker.step = 1;
		timer_setup(&ticker.timer, tick, 0);
		mod_timer(&ticker.timer, jiffies + 2);
	}
""",
    )
    .replace("twice(reads)", "ticks")
)


def test_work_that_waits_does_not_call_the_timer_function_that_has_its_name_now(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=WORK)
        await read()
        # Nor is it left alone with code that no source has.
        other = await save(main_c=CLOCK)
        assert other.outcome is Outcome.REFUSED, other
        assert ("HR2202", "tick") in [(reason.code, reason.symbol) for reason in other.reasons]
        await asyncio.sleep(1)
        assert int((await read()).split()[2]) > 5

    in_session(story)


ARMED = (
    MAIN.replace("<linux/module.h>", SLAB)
    .replace(
        "static int show",
        """\
struct item {
	struct timer_list timer;
	int beats;
};

static struct item *made;
static int strangers;

static void beat(struct timer_list *timer)
{
	struct item *item = from_timer(item, timer, timer);

	item->beats++;
	strangers += item != made;
	mod_timer(timer, jiffies + 5);
}

static int show""",
    )
    .replace(
        "\treads++;\n",
        """\
	reads++;
	if (reads == 1) {
		made = kzalloc(sizeof(*made), GFP_KERNEL);
		timer_setup(&made->timer, beat, 0);
		mod_timer(&made->timer, jiffies + 5);
	}
""",
    )
    .replace("twice(reads)", "strangers")
)


def test_an_undo_that_would_leave_a_timer_with_code_of_no_source_is_refused(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(main_c=ARMED)
        assert await read() == "hello 1 0\n"
        undo = (sys.executable, "-m", "hotreload", "--guest", str(watch.facts["guest"]), "undo")
        refused = await process.run(undo)
        assert (refused.status, "HR2207 beat no longer exists" in refused.complaint) == (4, True)
        assert (await watch.next_cycle()).report.outcome is Outcome.REFUSED
        assert await read() == "hello 2 0\n"
        other = await save(main_c=ARMED.replace('"hello', '"hey'))
        assert (other.outcome, await read()) == (Outcome.LIVE, "hey 3 0\n"), other

    in_session(story)


HUNG = {
    **FILES,
    "main.c": MAIN.replace("<linux/module.h>", SLAB)
    .replace("static int reads;", "static int reads;\nstatic void *slot;")
    .replace("\treads++;\n", "\treads++;\n\tif (reads > 1000)\n\t\tslot = v;\n")
    .replace("twice(reads)", "slot != NULL"),
}
ITEM = (
    HUNG["main.c"]
    .replace("static int show", "struct item {\n\tint first;\n};\n\nstatic int show")
    .replace(
        "\t\tslot = v;\n",
        "\t\tslot = v;\n\tif (!slot)\n\t\tslot = kzalloc(sizeof(struct item), GFP_KERNEL);\n",
    )
    .replace("slot != NULL", "((struct item *)slot)->first")
)


def test_objects_of_a_struct_that_was_away_for_a_save_are_not_taken_for_the_grown_one(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=ITEM)
        assert await read() == "hello 1 0\n"
        await save(main_c=HUNG["main.c"].replace('"hello', '"hi'))
        grown = await save(main_c=ITEM.replace("int first;", "long other[4];\n\tint first;"))
        assert [(r.code, r.symbol) for r in grown.reasons] == [("HR2101", "struct item")], grown

    in_session(story, HUNG)


CONFIGURED = HELP.replace(
    "int twice",
    """\
struct config {
	const int *steps;
	int uses;
};
static const int steps[2] = { 1, 2 };
static struct config config = { steps, 0 };

int twice""",
).replace("return 2 * n;", "config.uses++;\n\treturn config.steps[n & 0];")


def test_a_variable_that_points_at_an_edited_table_points_at_the_new_one(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(help_c=CONFIGURED)
        assert await read() == "hello 1 1\n"
        edited = await save(help_c=CONFIGURED.replace("{ 1, 2 }", "{ 9, 2 }"))
        assert any("starts again" in note and "config" in note for note in edited.notes), edited.reasons
        assert await read() == "hello 2 9\n"

    in_session(story)


COUNTING = MAIN.replace(
    "static int show",
    """\
static int next_id(void)
{
	static int id = 100;

	return ++id;
}

static int show""",
).replace("twice(reads)", "next_id()")
ONCE = '\tstatic int once;\n\n\tif (!once++)\n\t\tpr_info("pair: first time in %s\\n", __func__);\n'
OTHER = MAIN.replace(
    "static int show", "static noinline int other(int n)\n{\n\treturn 3 * n;\n}\n\nstatic int show"
).replace("twice(reads)", "other(reads)")


def test_a_static_local_stays_with_its_function_whoever_calls_it(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(main_c=COUNTING)
        assert await read() == "hello 1 101\n"
        second = "int other(void);\nint other(void)\n{\n\treturn next_id();\n}\n\nstatic int __init"
        await save(main_c=COUNTING.replace("static int __init", second))
        assert await read() == "hello 2 102\n"

    in_session(story)


def test_a_static_local_of_the_same_name_in_another_function_is_another_one(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await save(main_c=OTHER.replace("\treads++;\n", f"{ONCE}\treads++;\n"))
        await read()
        await save(main_c=OTHER.replace("\treturn 3", f"{ONCE}\treturn 3"))
        await read()
        assert "pair: first time in other" in (await watch.run("dmesg")).text

    in_session(story, {**FILES, "main.c": OTHER})


NEW_IN_HELP = HELP + "int calls = 40;\nint thrice(int n)\n{\n\tcalls++;\n\treturn 3 * n;\n}\n"


def test_a_variable_keeps_its_value_when_a_unit_that_was_only_added_to_is_edited(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        await save(
            pair_h=FILES["pair.h"] + "int thrice(int n);\nextern int calls;\n",
            help_c=NEW_IN_HELP,
            main_c=MAIN.replace("twice(reads)", "thrice(0) + calls + twice(0)"),
        )
        assert [await read(), await read()] == ["hello 1 41\n", "hello 2 42\n"]
        edited = await save(help_c=NEW_IN_HELP.replace("return 2 * n", "return 5 * n + 1000"))
        assert not any("starts again" in note for note in edited.notes), edited.reasons
        assert await read() == "hello 3 1043\n"

    in_session(story)


BITS = PAIR.replace(
    "static int state = 1;",
    "struct bits {\n\tint whole;\n\tint low:3, high:5;\n\tlong last;\n};\n"
    "struct bits bits = { 1, 1, 1, 5 };\nstatic int state = 1;",
).replace("limit, state)", "bits.whole * 100 + bits.low, state)")


def test_a_bit_field_and_its_neighbour_are_written_together(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "limit 101 state 1\n"
        both = await save(pair_c=BITS.replace("{ 1, 1, 1, 5 }", "{ 2, 2, 1, 5 }"))
        assert both.outcome is Outcome.LIVE, both
        assert await read() == "limit 202 state 2\n"
        assert (await save(pair_c=BITS)).outcome is Outcome.UNDONE
        assert await read() == "limit 101 state 3\n"

    in_session(story, {**OPS, "pair.c": BITS})


HELD = (
    MAIN.replace(
        "static int show",
        """\
static void beat(struct timer_list *timer) { reads += 100; }
static DEFINE_TIMER(heart, beat);

static int show""",
    )
    .replace("\treads++;\n", "\treads += 1 + timer_pending(&heart);\n")
    .replace("<linux/module.h>", "<linux/module.h>\n#include <linux/timer.h>")
)


def test_what_no_source_has_and_somebody_may_hold_goes_with_its_module(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        # Whoever opens the file gets the function that was given to proc_create() under its old name.
        renamed = await save(
            main_c=MAIN.replace("show(", "display(")
            .replace(", show)", ", display)")
            .replace('"hello', '"hey')
        )
        assert (renamed.outcome, await read()) == (Outcome.LIVE, "hey 1 2\n"), renamed
        assert "display takes the place of show: anything that holds show runs display" in renamed.notes
        await save(main_c=HELD)
        assert await read() == "hello 2 4\n"
        undo = (sys.executable, "-m", "hotreload", "--guest", str(watch.facts["guest"]), "undo")
        done = await process.run(undo)
        assert "HR2207 beat no longer exists" in done.text + done.complaint
        undone = (await watch.next_cycle()).report
        assert (undone.outcome, await read()) == (Outcome.UNDONE, "hey 1 2\n"), undone
        assert "reloaded: pair" in undone.notes

    in_session(story, max_rung="module")
