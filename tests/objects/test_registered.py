# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Tables that the kernel was handed: which slots and values may change in place, and what was asked once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from tests.objects.compiling import compiled

HEADER = """
struct attribute { const char *name; unsigned short mode; };
struct attribute_group { const char *name; unsigned short (*is_visible)(int); struct attribute **attrs; };
struct proc_ops { int (*proc_read)(void); int (*proc_read_iter)(void); int (*proc_write)(void); };
struct file_operations { int (*read)(void); int (*poll)(void); long (*unlocked_ioctl)(void); };
struct bin_attribute { struct attribute attr; int (*read)(void); int (*write)(void); };
struct dev_pm_ops { int (*suspend)(void); int (*resume)(void); };
struct device_driver { const char *name; const struct dev_pm_ops *pm; };
struct platform_driver { int (*probe)(int); int (*remove)(int); struct device_driver driver; };
struct vm_operations_struct { void *open; void *close; int (*fault)(void); };
struct super_operations { void *alloc_inode; void *free_inode; int (*statfs)(void); };
void register_it(const void *); void seq_printf(void *, const char *, ...); void *kmalloc(long); int later(void);
"""
MODULE = """
int init_module(void) __attribute__((alias("start"))); static int __init start(void) { register_it(&table); return 0; }
"""


def diff(tmp_path: Path, before: str, after: str, header: str = "include/linux/all.h") -> ObjectDiff:
    """``header``: the file that defines the structs."""
    original, patched = (
        read_object(compiled(HEADER + source, tmp_path / name, "-g"))
        for name, source in (("before", before), ("after", after))
    )
    sources = {"unit.c": after, header: HEADER}
    return diff_unit(unit_object_of(original), unit_object_of(patched), sources, types_known=True)


def told(found: ObjectDiff) -> list[tuple[str, str]]:
    return [(each.code, each.symbol) for each in found.obstacles]


def table(struct: str, slots: str) -> str:
    return (
        "int f(void) { return 1; } int g(void) { return 2; } unsigned short see(int i) { return i; }"
        f" static {struct} table = {{ {slots} }};" + MODULE
    )


# --- slots ---


@pytest.mark.parametrize(
    ("struct", "was", "now", "is_live"),
    [
        ("struct attribute_group", '"a"', '"a", .is_visible = see', False),
        ("const struct attribute_group", '"a", .is_visible = see', '"a"', False),
        ("struct bin_attribute", ".read = f", ".read = f, .write = g", False),
        ("const struct dev_pm_ops", ".suspend = f", ".suspend = f, .resume = g", False),
        ("const struct proc_ops", ".proc_read = f", ".proc_read_iter = f", False),
        ("const struct proc_ops", ".proc_read = f", ".proc_read = f, .proc_write = g", True),
        ("const struct proc_ops", ".proc_read_iter = f", ".proc_read_iter = g", True),
        ("struct file_operations", ".read = f", ".read = f, .poll = g", True),
        ("const struct file_operations", ".read = f, .unlocked_ioctl = (void *)g", ".read = f", True),
        ("struct vm_operations_struct", ".fault = f", ".fault = f, .close = g", False),
        ("struct super_operations", "0", "g, f", False),
        ("struct super_operations", ".statfs = f", "", True),
        ("struct bin_attribute", ".read = f", ".read = g", True),
        ("struct bin_attribute", ".read = f", ".read = later", True),
        ("struct platform_driver", ".probe = (void *)f", ".probe = (void *)f, .remove = (void *)g", True),
        ("struct platform_driver", ".remove = (void *)f", ".remove = (void *)f, .probe = (void *)g", False),
    ],
)
def test_a_slot_is_filled_or_emptied_in_place_only_where_the_kernel_looks_each_time(
    struct: str, was: str, now: str, is_live: bool, tmp_path: Path
) -> None:
    found = diff(tmp_path, table(struct, was), table(struct, now))
    assert told(found) == ([] if is_live else [("HR2103", "table")])


def test_slots_of_the_drivers_own_structs_are_looked_up_by_the_driver(tmp_path: Path) -> None:
    sources = (
        table("struct bin_attribute", ".read = f"),
        table("struct bin_attribute", ".read = f, .write = g"),
    )
    assert told(diff(tmp_path, *sources, header="drv.h")) == []


# --- values in tables that probe handed on ---

PROBE = """
static struct attribute attr = { "level", MODE }; static struct attribute *attrs[] = { &attr, 0 };
static struct attribute_group group = { .attrs = attrs }; static int limit = LIMIT; static int unused = UNUSED;
static void *buffer;
static int probe(int i) { register_it(&group); buffer = kmalloc(limit); return 0; }
int show(void *m) { seq_printf(m, "%d", limit + unused); return 0; } void set(int v) { limit = v; unused = v; }
static struct platform_driver table = { .probe = probe, .driver = { "drv" } };
"""


def driver(mode: str = "0444", limit: int = 4, unused: int = 1) -> str:
    source = PROBE.replace("MODE", mode).replace("LIMIT", str(limit)).replace("UNUSED", str(unused))
    return source + MODULE


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (driver(mode="0600"), ["attr"]),
        (driver(limit=8), ["limit"]),
        (driver(unused=2), []),
    ],
    ids=["mode", "size", "shown"],
)
def test_probe_has_run_with_the_values_that_it_read(after: str, expected: list[str], tmp_path: Path) -> None:
    assert sorted({symbol for _, symbol in told(diff(tmp_path, driver(), after))}) == expected


def test_a_mode_that_was_handed_on_when_somebody_wrote_is_not_written(tmp_path: Path) -> None:
    before = 'static struct attribute attr = { "level", 0444 }; void write(void) { register_it(&attr); } int read(void) { return attr.mode; }'
    assert told(diff(tmp_path, before, before.replace("0444", "0600"))) == [("HR2103", "attr")]
    own = before.replace("register_it(&attr)", "attr.mode = 1")
    assert told(diff(tmp_path, own, own.replace("0444", "0600"))) == []


# --- functions that were asked ---


def test_another_answer_of_is_visible_comes_too_late(tmp_path: Path) -> None:
    before = (
        "static int level; static unsigned short see(int i) { level++; return 0444; } static struct attribute_group table = { .is_visible = see };"
        + MODULE
    )
    assert told(diff(tmp_path, before, before.replace("0444", "0400"))) == [("HR2201", "see")]


@pytest.mark.parametrize(
    ("was", "now", "is_told"),
    [
        ("kmalloc(4)", "kmalloc(5)", True),
        ("x + 3", "x + 4", False),
        ("register_it(0)", "register_it(&n)", False),
    ],
    ids=["what it made", "what it computes", "what only exit runs"],
)
def test_of_a_helper_that_made_something_at_load_it_is_told(
    was: str, now: str, is_told: bool, tmp_path: Path
) -> None:
    before = "int n; void *p; noinline int make(int x) { p = kmalloc(4); return !p; } noinline void add(int x) { n += x + 3; } int use(int x) { add(x); return make(x); }"
    before += "noinline void end(void) { register_it(0); } void user(void) { end(); } void cleanup_module(void) { end(); }"
    before += MODULE.replace("register_it(&table);", "make(1); add(2);")
    found = diff(tmp_path, before, before.replace(was, now))
    assert told(found) == []
    assert [(note.code, note.symbol) for note in found.notes] == [("HR2201", "make")] * is_told


def test_of_probe_it_is_told_that_it_has_run(tmp_path: Path) -> None:
    found = diff(
        tmp_path, driver(), driver().replace("register_it(&group);", "register_it(&group); later();")
    )
    assert told(found) == []
    assert [(note.code, note.symbol) for note in found.notes] == [("HR2201", "probe")]


def test_of_a_helper_of_probe_it_is_told_that_it_has_run(tmp_path: Path) -> None:
    helper = "noinline int make(void) { return !kmalloc(4); } "
    before = helper + driver().replace("register_it(&group);", "register_it(&group); make();")
    found = diff(tmp_path, before, before.replace("kmalloc(4)", "kmalloc(4) + later()"))
    assert [(note.code, note.symbol) for note in found.notes] == [("HR2201", "make")]


def test_of_what_the_kernel_calls_back_at_once_it_is_told_that_it_has_run(tmp_path: Path) -> None:
    before = "int alloc_netdev_mqs(int, const char *, int, void (*)(void *), int, int); static void setup(void *dev) { register_it(dev); }"
    before += MODULE.replace("register_it(&table);", 'return alloc_netdev_mqs(0, "dummy", 1, setup, 1, 1);')
    found = diff(tmp_path, before, before.replace("register_it(dev);", "register_it(dev); later();"))
    assert told(found) == []
    assert [(note.code, note.symbol) for note in found.notes] == [("HR2201", "setup")]


def test_a_table_that_init_stores_the_address_of_is_only_read_by_who_looks_there(tmp_path: Path) -> None:
    before = "struct box { const struct file_operations *ops; } *box; int f(void) { return 1; } int g(void) { return 2; } static const struct file_operations table = { f };"
    before += "void later_on(int i) { box[i].ops = &table; }"
    before += MODULE.replace("register_it(&table);", "box->ops = &table;")
    assert told(diff(tmp_path, before, before.replace("{ f }", "{ f, g }"))) == []
    read = before.replace("box->ops = &table;", "box->ops = &table; if (table.poll) register_it(0);").replace(
        "static const", "static"
    )
    assert told(diff(tmp_path, read, read.replace("{ f }", "{ f, g }"))) == [("HR2103", "table")]


def test_the_reason_names_the_member_and_who_has_run(tmp_path: Path) -> None:
    before = (
        'static struct device_driver table = { "one" }; void cleanup_module(void) { register_it(&table); }'
        + MODULE
    )
    found = diff(tmp_path, before, before.replace('"one"', '"two"'))
    assert [each.message for each in found.obstacles] == [
        "table.name changed, and start has passed it to the kernel: what was made from the old one stays"
    ]


@pytest.mark.parametrize(
    ("struct", "also", "is_live"),
    [
        ("struct file_operations", "", True),
        ("struct bin_attribute", "", False),
        ("struct file_operations", "void (*held)(void); void hold(void) { held = (void *)gone; }", False),
    ],
    ids=["looked up", "decided once", "held besides"],
)
def test_a_function_that_only_a_looked_up_slot_had_may_go(
    struct: str, also: str, is_live: bool, tmp_path: Path
) -> None:
    slot = ".poll = gone" if "file" in struct else ".write = gone"
    before = (
        "int n; static int gone(void) { return ++n; }" + also + table(f"const {struct}", f".read = f, {slot}")
    )
    after = (
        before.replace(f", {slot}", "")
        .replace("(void *)gone", "0")
        .replace("static int gone(void) { return ++n; }", "")
    )
    assert ("HR2207" not in {code for code, _ in told(diff(tmp_path, before, after))}) == is_live


@pytest.mark.parametrize(
    ("struct", "member", "obstacles", "notes"),
    [
        ("class", "devnode", ["HR2201"], 0),
        ("clk_ops", "recalc_rate", ["HR2201"], 0),
        ("pernet_operations", "init", [], 1),
        ("net_device_ops", "ndo_init", [], 1),
        ("input_handler", "connect", [], 1),
        ("proto_ops", "connect", [], 0),
        ("pernet_operations", "exit", [], 0),
        ("seq_operations", "show", [], 0),
    ],
)
def test_what_the_kernel_has_asked_or_run_at_registration_is_refused_or_told(
    struct: str, member: str, obstacles: list[str], notes: int, tmp_path: Path
) -> None:
    source = (
        f"struct {struct} {{ int a; int (*{member})(int *); }}; int ask(int);"
        f" static int f(int *x) {{ *x = 5; return ask(0); }} struct {struct} table = {{ 1, f }};" + MODULE
    )
    found = diff(tmp_path, source, source.replace("*x = 5", "*x = 6"), "include/linux/x.h")
    assert [each.code for each in found.obstacles] == obstacles
    assert len([each for each in found.notes if each.symbol == "f"]) == notes


def test_what_init_has_sorted_stays_sorted_as_it_was(tmp_path: Path) -> None:
    source = """void sort(void *, long, long, int (*)(const void *, const void *), void *); int vals[4] = { 5, 1, 4, 2 };
        static int cmp(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
        int init_module(void) __attribute__((alias("start")));"""
    at_load = "static int __init start(void) { sort(vals, 4, 4, cmp, 0); return 0; }"
    later = "static int __init start(void) { return 0; } void write(void) { sort(vals, 4, 4, cmp, 0); }"
    for when, obstacles in (at_load, [("HR2201", "cmp")]), (later, []):
        before = source + when
        after = before.replace("*(const int *)a - *(const int *)b", "*(const int *)b - *(const int *)a")
        assert told(diff(tmp_path, before, after)) == obstacles


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("level = 5;", "level = 6;"),
        ("both->a = 5; both->b = 6;", "both->a = 5; both->b = 7;"),
        ('name = "old";', 'name = "new";'),
        ('name = kasprintf(3, "dev%d", level);', 'name = kasprintf(3, "node%d", level);'),
    ],
)
def test_of_a_helper_that_only_sets_something_it_is_told_that_it_has_run_at_load(
    was: str, now: str, tmp_path: Path
) -> None:
    source = """int level; const char *name; struct both { int a, b; } *both; const char *kasprintf(int, const char *, ...);
        noinline void reset(void) { SET } void write(void) { reset(); }
        int init_module(void) __attribute__((alias("start"))); static int __init start(void) { CALL return 0; }"""
    for call, count in ("reset();", 1), ("", 0):
        before, after = (source.replace("CALL", call).replace("SET", sets) for sets in (was, now))
        found = diff(tmp_path, before, after)
        assert (told(found), len(found.notes)) == ([], count)


@pytest.mark.parametrize(
    ("creates", "is_refused"),
    [
        ("void *kmem_cache_create(const char *, int, int, int, void *); void make(void) { kmem_cache_create(0, 8, 0, 0, ctor); }", True),
        ("struct args { long align; void *ctor; }; void *__kmem_cache_create_args(const char *, int, struct args *, int); void make(void) { struct args a = { 8, ctor }; __kmem_cache_create_args(0, 8, &a, 0); }", True),
        ("void make(void) { register_it(ctor); }", False),
    ],
)  # fmt: skip
def test_free_objects_of_a_cache_are_as_the_old_constructor_made_them(
    creates: str, is_refused: bool, tmp_path: Path
) -> None:
    before = "static void ctor(int *p) { *p = 5; }" + creates
    found = diff(tmp_path, before, before.replace("5", "6"))
    assert told(found) == [("HR2201", "ctor")] * is_refused


@pytest.mark.parametrize("made", ["class_create(0)", "kept"])
def test_a_slot_that_code_has_filled_was_asked_too(made: str, tmp_path: Path) -> None:
    before = f"""struct class {{ long id; char *(*devnode)(int *); long other; }}; struct class *class_create(int), *kept;
        static char *node(int *mode) {{ *mode = 0600; return 0; }}
        int make(void) {{ struct class *c = {made}; if (!c) return 1; kept = c; c->devnode = node; return 0; }}"""
    assert told(diff(tmp_path, before, before.replace("0600", "0666"))) == [("HR2201", "node")]
    other = before.replace("c->devnode = node", "c->other = (long)node")
    assert told(diff(tmp_path / "other", other, other.replace("0600", "0666"))) == []
