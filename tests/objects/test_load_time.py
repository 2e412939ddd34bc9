# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Code that runs when a module is loaded or unloaded: what of an edit goes live, and what waits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from hotreload.build.compile import ObjectPair
from hotreload.compared import Compared
from hotreload.diff.init_reads import Use, called_at_load, uses_of_init
from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.elf.constants import R_X86_64_PC8, R_X86_64_PC32
from hotreload.elf.model import Relocation, SymbolRef
from hotreload.elf.reader import read_object
from hotreload.load_time import unloaded_by_the_old
from hotreload.patch.far_jumps import far_jumps
from tests.objects.compiling import compiled, difference, object_of

if TYPE_CHECKING:
    from hotreload.build.cmd_files import TranslationUnit
    from hotreload.compared import Original

HEAD = """
#define __exit __section(".exit.text") notrace
#define MODULE int init_module(void) __attribute__((alias("start"))); void cleanup_module(void) __attribute__((alias("stop")));
void *kmalloc(long); void register_it(void *); void cancel(void *); int _printk(const char *, ...);
"""
DRIVER = (
    HEAD
    + "int f(void) { return 1; } static int __init start(void) { INIT; return 0; } static void __exit stop(void) { EXIT; } MODULE"
)


def told(diff: ObjectDiff) -> list[tuple[str, str]]:
    return [(each.code, each.symbol) for each in (*diff.obstacles, *diff.notes)]


def driver(init: str = "", exit: str = "", before: str = "") -> str:
    return before + DRIVER.replace("INIT", init).replace("EXIT", exit)


# --- exit code ---


def test_another_exit_function_travels_and_the_kernel_is_pointed_at_it(tmp_path: Path) -> None:
    diff = difference(tmp_path, driver(), driver(exit="cancel(f)"))
    assert (diff.verdict, told(diff), diff.changed_functions) == ("patchable", [], ("stop",))
    assert diff.exit is not None
    assert diff.exit.patched in diff.carried


def edited(tmp_path: Path, source: str) -> dict[Path, Compared]:
    unit = cast("TranslationUnit", SimpleNamespace(source=Path("a.c"), module="drv"))
    diff = difference(tmp_path, driver(), source)
    return {Path("a.o"): Compared(ObjectPair(unit, Path(), Path()), cast("Original", None), diff)}


@pytest.mark.parametrize(
    ("live", "pending", "names"),
    [
        pytest.param("", 'register_it("new")', "stop", id="new"),
        pytest.param('register_it("old")', 'register_it("new")', "stop", id="another string"),
        pytest.param('register_it("old")', "", "stop", id="taken back"),
        pytest.param('register_it("old")', 'register_it("old")', "", id="live already"),
        pytest.param("", "", "", id="not changed"),
    ],
)
def test_it_is_told_that_a_module_is_unloaded_by_the_exit_code_of_before(
    live: str, pending: str, names: str, tmp_path: Path
) -> None:
    edits = [edited(tmp_path / str(n), driver(exit=code)) for n, code in enumerate((live, pending))]
    notes = list(unloaded_by_the_old(*edits, {"drv"}))
    said = f"HR2201 drv is unloaded by its exit code from before this edit, which changed {names}"
    assert notes == ([said] if names else [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("cancel(1);", "cancel(2);", id="changed"),
        pytest.param("", "cancel(2); cancel(3);", id="grown"),
    ],
)
def test_what_exit_alone_calls_travels_with_it(before: str, after: str, tmp_path: Path) -> None:
    helper = "void cancel(); static noinline void __attribute__((section('.exit.text'), no_instrument_function)) more(void) { BODY }"
    helper = helper.replace("'", '"')
    sources = [driver(exit="more(); cancel(0)", before=helper.replace("BODY", b)) for b in (before, after)]
    diff = difference(tmp_path, *(s.replace("void cancel(void *);", "") for s in sources))
    assert (diff.verdict, told(diff)) == ("patchable", [])
    assert diff.exit is not None
    assert {symbol.name for symbol in diff.carried} == {diff.exit.patched.name, "more"}


def test_beside_another_init_code_exit_code_waits_with_it(tmp_path: Path) -> None:
    diff = difference(tmp_path, driver(), driver("register_it(f)", "cancel(f)"))
    assert (diff.exit, sorted(diff.init_changed)) == (None, ["start", "stop"])
    assert told(diff) == [("HR2201", "start"), ("HR2201", "stop")]


def test_exit_code_that_others_hold_waits(tmp_path: Path) -> None:
    held = " int tail; void (*remove)(void) = stop;"
    diff = difference(tmp_path, driver() + held, driver(exit="cancel(f)") + held)
    assert (diff.exit, diff.init_changed) == (None, ("stop",))


def test_built_in_exit_code_is_never_run(tmp_path: Path) -> None:
    sources = [driver(exit=exit).removesuffix("MODULE") for exit in ("", "cancel(f)")]
    assert difference(tmp_path, *sources).exit is None


def test_a_short_jump_to_a_neighbour_becomes_a_long_one_behind_the_code(tmp_path: Path) -> None:
    more = 'static noinline __attribute__((section(".exit.text"), no_instrument_function)) void more(int n) { while (n--) cancel(f); }'
    source = driver(exit="more(7)").replace("static void __exit", f"{more} static void __exit")
    stop = object_of(source, tmp_path).symbol("stop")
    assert stop is not None
    (short,) = [r for r in stop.relocations if r.type == R_X86_64_PC8]
    code, own, behind = far_jumps(stop)
    assert short not in own
    at = short.offset + 1 + code[short.offset]
    assert code[at] == 0xE9
    assert behind == (Relocation(at + 1, R_X86_64_PC32, short.target, short.addend - 3),)
    assert isinstance(short.target, SymbolRef)


# --- initial values that init has read ---

COUNT = "static int nr = COUNT; static int n[8]; int g(void) { int i, s = 0; for (i = 0; i < nr; i++) s += n[i]; return s; } void set(int v) { nr = v; }"


@pytest.mark.parametrize(
    ("init", "exit", "is_tied"),
    [
        ("n[0] = (long) kmalloc(nr)", "", True),
        ("", "n[1] = nr", True),
        ("if (nr > 2) register_it(f)", "", True),
        ("register_it(&nr)", "", True),
        ('_printk("%d", nr)', "", False),
        # A driver's own function, or another one of the kernel's, is no printing one for its name.
        ("_dev_set_label(nr)", "", True),
        ('_dev_info("%d", nr)', "", False),
        ('if (nr) _printk("many")', "", False),
        ('if (nr > 3) _printk("%d", nr); register_it(f)', 'if (!nr) _printk("no")', False),
        ('if (nr) { _printk("many"); register_it(f); }', "", True),
        ('int n = 0; if (nr) n = -1; _printk("x"); return n', "", True),
        ('_printk("%d things", nr)', '_printk("bye %d", nr)', False),
        ("nr = 6", "", False),
        ("", "", False),
    ],
)
def test_a_value_that_init_or_exit_has_used_is_not_written(
    init: str, exit: str, is_tied: bool, tmp_path: Path
) -> None:
    sources = [
        driver(init, exit).replace("int f(void)", COUNT.replace("COUNT", count) + "int f(void)")
        for count in "45"
    ]
    diff = difference(tmp_path, *sources)
    assert told(diff) == ([("HR2103", "nr")] if is_tied else [])


def test_what_a_helper_of_init_reads_counts_and_what_others_read_does_not(tmp_path: Path) -> None:
    helper = "static int a = 1, b = 2; static noinline int used(void) { return a; } int other(void) { return b; } void set(int v) { a = v; b = v; }"
    source = driver("register_it((void *)(long) used())").replace("int f(void)", helper + "int f(void)")
    a, b = (
        difference(tmp_path / n, source, source.replace(*pair))
        for n, pair in zip("ab", (("a = 1", "a = 3"), ("b = 2", "b = 3")), strict=True)
    )
    assert (told(a), told(b)) == ([("HR2103", "a")], [])


@pytest.mark.parametrize(
    ("change", "is_tied"),
    [
        pytest.param(("one, 7", "two, 7"), False, id="a function"),
        pytest.param(("one, 7", "0, 7"), False, id="no function any more"),
        pytest.param(("one, 7", "one, 9"), True, id="a number"),
        pytest.param(("inner = 3", "inner = 4"), True, id="a number that it points at"),
    ],
)
def test_of_a_table_that_init_has_registered_functions_may_be_exchanged(
    change: tuple[str, str], is_tied: bool, tmp_path: Path
) -> None:
    table = "int one(void) { return 1; } int two(void) { return 2; } int inner = 3; struct { int (*call)(void); long mode; int *to; } ops = { one, 7, &inner };"
    source = driver("register_it(&ops)").replace("int f(void)", table + "int f(void)")
    diff = difference(tmp_path, source, source.replace(*change))
    assert [code for code, _ in told(diff)] == (["HR2103"] if is_tied else [])


POINTED = "struct variant { int (*call)(int); int size; }; static int one(int n) { return n; } static int two(int n) { return n + 1; } "
POINTED += "int other(void) { return one(1) + two(2); } static noinline void more(void) { register_it(two); register_it(one); } void use(void) { more(); } "
POINTED += "static const struct variant wide = { one, 5 }; static const struct variant *variant = &wide; "
POINTED += "static struct { const struct variant *variant; int n; } dev = { &wide, 1 }; void set(const struct variant *v) { variant = v; dev.variant = v; dev.n++; } "
POINTED += "static __attribute__((__noinline__, noclone)) void make(typeof(&dev) d) { d->n++; register_it(kmalloc(d->variant->size)); register_it(d->variant->call); } "


@pytest.mark.parametrize(
    ("init", "ties_size", "ties_function"),
    [
        pytest.param("register_it(kmalloc(variant->size))", True, True, id="read through a pointer"),
        pytest.param("register_it(kmalloc(dev.variant->size))", True, True, id="through a member"),
        pytest.param("register_it(kmalloc(dev.n))", False, False, id="another member"),
        pytest.param("make(&dev)", True, True, id="by a function of the module's own"),
        pytest.param("register_it(&dev)", True, False, id="handed to the kernel"),
        pytest.param("register_it((void *) variant)", True, False, id="the pointer handed to the kernel"),
        pytest.param("register_it(f)", False, False, id="not at all"),
    ],
)
def test_what_init_finds_through_a_pointer_in_a_variable_is_used(
    init: str, ties_size: bool, ties_function: bool, tmp_path: Path
) -> None:
    source = driver(init).replace("int f(void)", POINTED + "int f(void)")
    size, function = (
        difference(tmp_path / name, source, source.replace("wide = { one, 5 }", f"wide = {{ {row} }}"))
        for name, row in (("size", "one, 6"), ("function", "two, 5"))
    )
    assert told(size) == ([("HR2103", "wide")] if ties_size else [])
    assert [code for code, _ in told(function)] == (["HR2103"] if ties_function else [])


def test_members_of_a_variable_count_apart(tmp_path: Path) -> None:
    config = "static struct { long size; long delay; } config = { 4, 5 }; int g(void) { return config.delay; } void set(int v) { config.delay = v; config.size = v; }"
    source = driver("register_it(kmalloc(config.size))").replace("int f(void)", config + "int f(void)")
    size, delay = (
        difference(tmp_path / new[2], source, source.replace("4, 5", new)) for new in ("6, 5", "4, 7")
    )
    assert (told(size), told(delay)) == ([("HR2103", "config")], [])


def test_init_code_of_one_unit_uses_a_variable_of_another(tmp_path: Path) -> None:
    main = object_of(
        driver("more()", before="int more(void);"),
        tmp_path / "a",
    )
    more = object_of(
        "int nr = 3; static int hidden = 4; int more(void) { return nr + hidden; } void set(int v) { nr = v; hidden = v; }",
        tmp_path / "b",
    )
    uses = uses_of_init({"main": main, "more": more})
    assert uses == {("more", "nr"): [Use("more", 0, 4)], ("more", "hidden"): [Use("more", 0, 4)]}


@pytest.mark.parametrize(
    ("before", "after", "is_tied"),
    [
        pytest.param("return 4;", "return 400;", True, id="a number"),
        pytest.param("return x > 4 ? 4 : x;", "return x > 9 ? 9 : x;", True, id="a bound"),
        pytest.param(
            '_printk("%d", 4); return 4;', '_printk("%d", 6); return 6;', True, id="a number that is told"
        ),
        pytest.param(
            '_printk("%d", 4); return 4;', '_printk("now %d", 4); return 4;', False, id="how it is told"
        ),
        pytest.param("return base(x) * 2;", "return base(x) * 4;", True, id="of another one"),
        pytest.param(
            "mutex_lock(&kept); x *= 2; mutex_unlock(&kept); return x;",
            "mutex_lock(&kept); x *= 3; mutex_unlock(&kept); return x;",
            True,
            id="under a lock",
        ),
        pytest.param(
            "register_it(f); return 4;", "register_it(f); return 5;", False, id="and something else"
        ),
        pytest.param('return (long) "one";', 'return (long) "two";', True, id="a string"),
        pytest.param("return strlen(name) + 4;", "return strlen(name) + 5;", True, id="of a string"),
        pytest.param("kept += x; return 0;", "kept += 2 * x; return 0;", False, id="what has made something"),
        pytest.param("", "kept = 1;", False, id="no value"),
    ],
)
def test_a_value_that_init_has_asked_for_is_tied_to_it(
    before: str, after: str, is_tied: bool, tmp_path: Path
) -> None:
    head = "int _printk(const char *, ...); void register_it(void *); int kept; const char *name; unsigned long strlen(const char *); int f(void); void mutex_lock(int *); void mutex_unlock(int *); noinline int base(int x) { return x + 3; } noinline long count(int x) { BODY } int user(int x) { return count(x) + 1; } "
    source = driver("register_it((void *)(long) count(7))", before=head)
    diff = difference(tmp_path, source.replace("BODY", before), source.replace("BODY", after))
    assert [(o.code, o.symbol) for o in diff.obstacles] == ([("HR2201", "count")] if is_tied else [])


@pytest.mark.parametrize(
    ("was", "now", "is_tied"),
    [("8, 16", "64, 256", True), ("8, 16 }", "8, 16, 32 }", False)],
    ids=["number", "grown"],
)
def test_a_number_in_a_table_that_a_helper_of_init_has_read_is_tied_to_it(
    was: str, now: str, is_tied: bool, tmp_path: Path
) -> None:
    head = """static const int sizes[] = { 8, 16 }; void *bufs[2], *kmalloc(long);
    noinline int make(int i) { bufs[i] = kmalloc(sizes[i]); return 0; }
    int show(int i) { make(i); return sizes[i]; }"""
    source = driver("make(0); make(1)", before=head)
    diff = difference(tmp_path, source, source.replace(was, now))
    assert [(o.code, o.symbol) for o in diff.obstacles] == ([("HR2103", "sizes")] if is_tied else [])


def test_a_value_that_init_of_another_unit_has_asked_for_is_tied_to_it(tmp_path: Path) -> None:
    main = object_of(driver("register_it((void *)(long) count())", before="int count(void);"), tmp_path / "a")
    more = object_of("int count(void) { return 4; } int other(void) { return 5; }", tmp_path / "b")
    called = {(unit, function.name) for unit, function in called_at_load({"main": main, "more": more})}
    assert ("more", "count") in called
    assert ("more", "other") not in called


def test_init_code_of_a_module_uses_what_another_exports_and_not_its_namesakes(tmp_path: Path) -> None:
    main = object_of(
        driver("more() + own()", before="int more(void); int own(void);"),
        tmp_path / "a",
    )
    own = object_of("int nr = 3; int own(void) { return nr; }", tmp_path / "b")
    more = object_of(
        "int nr = 3, rate = 4; int own(void) { return nr; } int more(void) { return rate; }", tmp_path / "c"
    )
    objects = {"main": main, "own": own, "more": more}
    modules = {"main": "user", "own": "user", "more": "provider"}
    assert uses_of_init(objects, modules) == {
        ("more", "rate"): [Use("more", 0, 4)],
        ("own", "nr"): [Use("own", 0, 4)],
    }
    called = {(unit, function.name) for unit, function in called_at_load(objects, modules)}
    assert called >= {("more", "more"), ("own", "own")}
    assert ("more", "own") not in called


def test_a_change_of_init_code_is_judged_elsewhere_if_so_asked(tmp_path: Path) -> None:
    before, after = (
        read_object(compiled(driver(init), tmp_path / name))
        for name, init in (("a", ""), ("b", "register_it(f)"))
    )
    diff = diff_objects(before, after, judge_init=False)
    assert (diff.verdict, diff.init_changed, told(diff)) == ("unchanged", ("start",), [])


INFO = '__attribute__((section(".modinfo"), used)) static const char __UNIQUE_ID_NAME[] = "TEXT";'


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("version=1.0", "version=1.1", "version=1.1"),
        ("parm=a:some", "description=other", "description=other, no parm=a:some"),
        ("version=1.0", "version=1.0", ""),
    ],
)
def test_what_a_module_says_of_itself_is_told_to_wait(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    license = INFO.replace("NAME", "license233").replace("TEXT", "license=GPL")
    sources = [
        driver() + " " + license + INFO.replace("NAME", "x234").replace("TEXT", text)
        for text in (before, after)
    ]
    diff = difference(tmp_path, *sources)
    told = [note.message for note in diff.notes]
    assert (diff.verdict, told) == (
        "unchanged",
        [f"what modinfo shows waits for the next load: {message}"] if message else [],
    )


def test_a_parameter_that_somebody_has_set_stays_as_set(tmp_path: Path) -> None:
    param = '__attribute__((section("__param"), used)) static struct { void *to; } __param_nr = { &nr };'
    source = COUNT + param + DRIVER.replace("INIT", "").replace("EXIT", "")
    diffs = [
        difference(tmp_path / str(n), text.replace("COUNT", "4"), text.replace("COUNT", "5"))
        for n, text in enumerate((source, source.replace("&nr }", "n }")))
    ]
    assert [[rewrite.is_parameter for rewrite in diff.rewrites] for diff in diffs] == [[True], [False]]


OPS = """struct ops { int (*count)(void); int (*rate)(void); }; static int count(void) { return 4; } static int rate(void) { return 8; }
    static struct ops ops = { count, rate }; struct ops *current = &ops; void *buf, *kmalloc(long); void set(void *p) { ops.count = ops.rate = p; }
    noinline int make(int (*how)(void)) { buf = kmalloc(how()); return 0; } noinline int make_of(struct ops *o) { buf = kmalloc(o->count()); return 0; }
    void again(void *p) { make(p); make_of(p); ops.rate(); }"""


@pytest.mark.parametrize(
    "flags", [[], ["-mindirect-branch=thunk-extern", "-mindirect-branch-register"]], ids=["plain", "thunks"]
)
@pytest.mark.parametrize(
    ("init", "changed", "is_tied"),
    [
        ("buf = kmalloc(ops.count())", "4", True),
        ("buf = kmalloc(ops.count())", "8", False),
        ("buf = kmalloc(current->count())", "4", True),
        ("make_of(&ops)", "4", True),
        ("make(count)", "4", True),
        ("make(count)", "8", False),
        ("register_it(&ops)", "4", False),
        ("register_it(count)", "4", False),
    ],
)
def test_a_value_that_init_has_asked_for_by_a_pointer_is_tied_to_it(
    init: str, changed: str, is_tied: bool, flags: list[str], tmp_path: Path
) -> None:
    source = driver(init, before=OPS)
    diff = difference(tmp_path, source, source.replace(f"return {changed};", f"return {changed}0;"), *flags)
    name = "count" if changed == "4" else "rate"
    assert [(o.code, o.symbol) for o in diff.obstacles] == ([("HR2201", name)] if is_tied else [])
