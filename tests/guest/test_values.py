# SPDX-License-Identifier: MIT
"""New initial values, callbacks and macros: what a patch does beside replacing functions."""

from __future__ import annotations

from collections.abc import Callable

from hotreload.demo.driven import Driven
from hotreload.report.outcome import Outcome
from tests.guest.story import MAIN, OPS, PAIR, Read, Save


def test_a_new_initial_value_is_written_while_the_old_one_stands_and_goes_back(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "limit 5 state 1\n"
        six = await save(pair_c=PAIR.replace("limit = 5", "limit = 6"))
        assert (six.outcome, six.symbols) == (Outcome.LIVE, ("limit",)), six
        assert any("written in place: limit, unless the parameter was set" in note for note in six.notes)
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


def test_a_value_that_the_kernel_has_changed_is_loaded_anew_where_that_is_allowed(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        assert await read() == "limit 5 state 1\n"
        anew = await save(pair_c=PAIR.replace("state = 1", "state = 100"))
        assert anew.outcome is Outcome.RELOADED, anew
        assert await read() == "limit 5 state 100\n"

    in_session(story, OPS, max_rung="module")


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


HELD = {
    "Kbuild": "obj-m := pair.o\n",
    "pair.c": """\
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

struct rate { int hz, burst; };
static const struct rate rate = { 10, 1 };
static const struct rate *held;
static u8 mac[6] = { 2, 0, 0, 0, 0, 1 };
static const char *words[] = { "one", "tow" };
static char *name = "eth";
module_param(name, charp, 0644);

static int show(struct seq_file *m, void *v)
{
	seq_printf(m, "%d %d %pM %s %s\\n", held ? held->hz : 0, held == &rate, mac, words[1], name);
	return 0;
}

static int open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static ssize_t write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	held = &rate;
	mac[0] = 0xaa;
	return size;
}

static const struct proc_ops ops = {
	.proc_open = open,
	.proc_read = seq_read,
	.proc_write = write,
	.proc_release = single_release,
};

static int __init pair_init(void)
{
	proc_create("pair", 0666, NULL, &ops);
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


def test_what_somebody_holds_there_is_one_of_and_values_are_written_whole(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        await watch.run("echo x >/proc/pair; printf hand >/sys/module/pair/parameters/name")
        assert await read() == "10 1 aa:00:00:00:00:01 tow hand\n"
        edited = HELD["pair.c"].replace("{ 10, 1 }", "{ 20, 1 }").replace('"tow"', '"two"')
        live = await save(pair_c=edited.replace('"eth"', '"lo"'))
        assert live.outcome is Outcome.LIVE, live
        assert await read() == "20 1 aa:00:00:00:00:01 two hand\n"
        half = await save(pair_c=edited.replace("0, 0, 1 };", "0, 0, 7 };"))
        assert [reason.code for reason in half.reasons] == ["HR2103"], half
        assert await read() == "20 1 aa:00:00:00:00:01 two hand\n"
        longer = edited.replace('"two"', '"three"').replace("{ 20, 1 }", "{ 20, 2 }")
        assert (await save(pair_c=longer)).outcome is Outcome.LIVE
        assert await read() == "20 1 aa:00:00:00:00:01 three hand\n"
        assert (await save(pair_c=HELD["pair.c"])).outcome is Outcome.UNDONE
        assert await read() == "10 1 aa:00:00:00:00:01 tow hand\n"

    in_session(story, HELD)


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
        # The kernel looks at the table with each call, so that nobody else has the function's address.
        gone = await save(pair_c=PAIR.replace('"limit', '"Limit'))
        assert gone.outcome is Outcome.LIVE, gone
        assert not await write()
        assert await read() == "Limit 2000 state 3\n"

    in_session(story, OPS)


CHECKED = PAIR.replace(
    "module_param(limit, int, 0644);\n",
    """\
static int limit_set(const char *text, const struct kernel_param *parameter)
{
	int n;

	return kstrtoint(text, 0, &n) || n < 3 ? -EINVAL : param_set_int(text, parameter);
}
static const struct kernel_param_ops limit_ops = { .set = limit_set, .get = param_get_int };
module_param_cb(limit, &limit_ops, &limit, 0644);
""",
)


def test_the_kernel_finds_the_new_operations_of_a_module_parameter(in_session: Callable[..., None]) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        async def write(number: int) -> bool:
            return (await watch.run(f"echo {number} >/sys/module/pair/parameters/limit")).status == 0

        assert await write(2)
        live = await save(pair_c=CHECKED)
        assert live.outcome is Outcome.LIVE, live
        assert [await write(1), await write(3), await read()] == [False, True, "limit 3 state 1\n"]
        # Who may read and write it is settled when the module is loaded.
        mode = await save(pair_c=CHECKED.replace("&limit, 0644", "&limit, 0444"))
        assert [reason.code for reason in mode.reasons] == ["HR2103"], mode

    in_session(story, OPS)


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


def test_a_variable_that_is_renamed_keeps_its_value_in_the_edits_to_come(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read) -> None:
        assert [await read(), await read()] == ["hello 1 2\n", "hello 2 4\n"]
        renamed = MAIN.replace("reads", "calls")
        assert (await save(main_c=renamed)).outcome is Outcome.NO_CHANGE
        assert await read() == "hello 3 6\n"
        await save(main_c=renamed.replace("calls++", "calls += 5").replace("hello", "hey"))
        assert await read() == "hey 8 16\n"
        await save(main_c=MAIN)
        assert await read() == "hello 9 18\n"

    in_session(story)
