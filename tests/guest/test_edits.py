# SPDX-License-Identifier: MIT
"""Edits of a driver of two units in one session: the guest does what the sources say, or is told why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hotreload.demo.driven import Driven
from hotreload.report.outcome import Outcome
from tests.guest.story import FILES, HELP, MAIN, Read, Save


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
        assert report.outcome is Outcome.LIVE, report.reasons
        assert await read() == "hello 1 100\n"

    in_session(story)


def test_a_change_of_init_code_that_may_wait_is_told_with_each_line_until_a_load_takes_it(
    in_session: Callable[..., None],
) -> None:
    async def story(save: Save, read: Read, watch: Driven) -> None:
        other = MAIN.replace("{\n\tproc_create", '{\n\tpr_info("pair is here\\n");\n\tproc_create')
        alone = await save(main_c=other)
        waits = "HR2201 waits for the next load of pair: pair_init"
        assert (alone.outcome, alone.notes) == (Outcome.NO_CHANGE, (waits,))
        elsewhere = await save(help_c=HELP.replace("2 * n", "3 * n"))
        assert (elsewhere.outcome, elsewhere.notes) == (Outcome.LIVE, (waits,))
        # Exit code is the counterpart of the init code that has run.
        both = await save(main_c=other.replace('("pair", NULL);', '("pair", NULL);\n\tpr_info("bye\\n");'))
        assert both.notes == (f"{waits}, pair_exit",), both
        beside = await save(main_c=other.replace('"hello', '"hello!'))
        assert beside.outcome is Outcome.LIVE
        assert any("waits for the next load" in note for note in beside.notes)
        assert await read() == "hello! 1 3\n"
        again = await save(main_c=other.replace('"hello', '"hello!').replace("is here", "is there"))
        assert (again.outcome, again.notes) == (Outcome.NO_CHANGE, (waits,))
        loaded = await watch.request("reload")
        assert (loaded.outcome, loaded.notes) == (Outcome.RELOADED, ()), loaded
        assert "pair is there" in (await watch.run("dmesg")).text
        assert await read() == "hello! 1 3\n"

    in_session(story, options=("--init-changes", "wait"))


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


def test_a_unit_is_not_brought_alone_while_who_calls_it_otherwise_does_not_compile(
    in_session: Callable[..., None],
) -> None:
    """Each of the two declares the function itself, so that no header holds them together."""
    main = MAIN.replace("static int reads;", "static int reads;\nint thrice(int *n);")
    main = main.replace("twice(reads)", "thrice(&reads)")
    by_value = main.replace("int *n", "int n").replace("&reads", "reads")
    thrice = "int thrice(int *n);\nint thrice(int *n)\n{\n\treturn 3 * *n;\n}\n"

    async def story(save: Save, read: Read) -> None:
        added = await save(main_c=by_value, help_c=HELP + thrice.replace("*n)", "n)").replace("* *n", "* n"))
        assert added.outcome is Outcome.LIVE, added
        assert await read() == "hello 1 3\n"
        half = await save(main_c=main.replace("reads++;", "reads++"), help_c=HELP + thrice)
        assert half.outcome is Outcome.COMPILE_ERROR
        assert await read() == "hello 2 6\n"
        whole = await save(main_c=main)
        assert whole.outcome is Outcome.LIVE, whole
        assert await read() == "hello 3 9\n"

    in_session(story)


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
        assert any("given is now exported" in note for note in used.notes)
        assert (await watch.run("cat /proc/taker")).text == "hello 1 41\n"
        # The function itself changes, too: one patch over both modules.
        both = await save(giver_c=exported.replace("n + 1", "n + 2"))
        assert both.outcome is Outcome.LIVE, both
        assert (await watch.run("cat /proc/taker")).text == "hello 2 42\n"

    in_session(story, TWO_MODULES)


def test_an_export_goes_if_no_other_module_has_used_it(in_session: Callable[..., None]) -> None:
    exported = GIVER.replace("\treturn n + 1;\n}\n", "\treturn n + 1;\n}\nEXPORT_SYMBOL_GPL(given);\n")
    other = exported.replace('"giver', '"Giver')

    async def story(save: Save, read: Read) -> None:
        assert (await read()).startswith("giver 1 ")
        gone = await save(giver_c=other.replace("EXPORT_SYMBOL_GPL(given);\n", ""))
        assert gone.outcome is Outcome.LIVE, gone
        assert any("given is no longer exported" in note for note in gone.notes)
        assert (await read()).startswith("Giver 2 ")
        # An edit uses it, and the next one has neither: who knows what the first did with its address.
        used = await save(giver_c=other, taker_c=TAKER.replace(", reads, 0", ", reads, given(4)"))
        assert used.outcome is Outcome.LIVE, used
        both = await save(giver_c=other.replace("EXPORT_SYMBOL_GPL(given);\n", ""), taker_c=TAKER)
        assert [reason.code for reason in both.reasons] == ["HR2105"], both

    in_session(story, TWO_MODULES | {"giver.c": exported})


def test_a_new_export_that_is_all_that_its_module_brings_uses_what_the_module_has(
    in_session: Callable[..., None],
) -> None:
    counted = (
        "int counted(void);\nint counted(void)\n{\n\treturn reads += 10;\n}\nEXPORT_SYMBOL_GPL(counted);\n"
    )

    async def story(save: Save, _read: Read, watch: Driven) -> None:
        assert (await watch.run("cat /proc/pair")).text.startswith("giver 1 ")
        taker = TAKER.replace(", reads, 0", ", reads, counted()").replace("given(int n)", "counted(void)")
        used = await save(giver_c=GIVER + counted, taker_c=taker)
        assert used.outcome is Outcome.LIVE, used
        assert (await watch.run("cat /proc/taker")).text == "hello 1 11\n"
        # The taker has to be loaded anew, and needs what the loader finds only in a new giver.
        grown = await save(taker_c=taker.replace("int reads;", "long reads;").replace(" %d %d", " %ld %d"))
        assert grown.outcome is Outcome.RELOADED, grown
        assert (await watch.run("cat /proc/taker")).text == "hello 1 10\n"

    in_session(story, TWO_MODULES, max_rung="module")


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


def test_a_definition_that_moves_to_another_file_is_the_same_one_or_refused(
    in_session: Callable[..., None],
) -> None:
    """The caller is in a third file, which does not change."""
    twice = HELP.partition("\n\n")[2]
    about = '#include <linux/kernel.h>\n#include "pair.h"\n'
    files = {
        **FILES,
        "Kbuild": "obj-m := pair.o\npair-y := main.o help.o more.o\n",
        "pair.h": "int twice(int n);\nextern int base;\n",
        "main.c": MAIN.replace("twice(reads)", "base + twice(reads)"),
        "help.c": f"{about}int base = 100;\n{twice}",
        "more.c": f"{about}int more(int n);\nint more(int n)\n{{\n\treturn n - 1;\n}}\n",
    }

    async def story(save: Save, read: Read) -> None:
        assert await read() == "hello 1 102\n"
        moved = await save(help_c=f"{about}int base = 100;\n", more_c=files["more.c"] + twice)
        assert (moved.outcome, moved.notes) == (Outcome.NO_CHANGE, ("the code is the same",)), moved
        edited = await save(more_c=files["more.c"] + twice.replace("2 * n", "5 * n"))
        assert (edited.outcome, [one.code for one in edited.reasons]) == (Outcome.REFUSED, ["HR2207"])
        assert await read() == "hello 2 104\n"
        # What else changes goes live, and new code calls the function where the guest has it.
        user = files["more.c"].replace("n - 1", "twice(n) - 1")
        more = await save(more_c=user + twice)
        assert (more.outcome, more.symbols) == (Outcome.LIVE, ("more",)), more
        value = await save(help_c=about, more_c=f"{user}{twice}int base = 200;\n")
        assert (value.outcome, [one.code for one in value.reasons]) == (Outcome.REFUSED, ["HR2104"])
        assert await read() == "hello 3 106\n"
        same = await save(more_c=f"{user}{twice}int base = 100;\n")
        assert (same.outcome, same.reasons) == (Outcome.NO_CHANGE, ()), same
        assert await read() == "hello 4 108\n"

    in_session(story, files)
