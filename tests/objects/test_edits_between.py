# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""What an edit did that the next one takes back: the base tells nothing of it, and the guest has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.unit_diff import UnitContext, diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from hotreload.patch.homes import continued, settle
from hotreload.patch.left_behind import left_behind, renamed
from tests.objects.compiling import compiled
from tests.objects.test_homes import settled
from tests.objects.test_module import planned


def diffs(tmp_path: Path, *sources: str) -> list[ObjectDiff]:
    """Of each source with the first one, in the guest that the ones between have made."""
    base, *later = (
        unit_object_of(read_object(compiled(source, tmp_path / str(number), "-g")))
        for number, source in enumerate(sources)
    )
    found: list[ObjectDiff] = []
    for each in later:
        handed = frozenset(name for diff in found for name in diff.handed)
        context = UnitContext(handed=handed, live=found[-1] if found else None)
        found.append(diff_unit(base, each, {}, types_known=True, context=context))
    return found


def told(found: ObjectDiff) -> list[tuple[str, str]]:
    return [(each.code, each.symbol) for each in found.obstacles]


def written(found: ObjectDiff) -> list[str]:
    return [rewrite.original.name for rewrite in found.rewrites]


TABLE = """
    struct mode { int rate; int burst; }; const struct mode *cur; int idx;
    static const struct mode modes[] = { { 1, 2 }, { 10, 20 } };
    int show(void) { return modes[idx].rate + (cur ? cur->rate : 0); }
    void write(int c) { idx = c & 1; }
"""
STORES = TABLE.replace("idx = c & 1;", "idx = c & 1; cur = &modes[idx];")


def test_a_table_that_an_edit_handed_on_is_written_where_it_is_though_no_code_does_so_any_more(
    tmp_path: Path,
) -> None:
    changed = TABLE.replace("10, 20", "30, 20")
    between, after = diffs(tmp_path, TABLE, STORES, changed)
    assert (between.handed, told(after), written(after)) == ({"modes"}, [], ["modes"])
    (alone,) = diffs(tmp_path / "alone", TABLE, changed)
    assert (alone.handed, written(alone)) == (frozenset(), [])


def test_a_table_that_an_edit_handed_on_may_not_go_or_grow(tmp_path: Path) -> None:
    grown = TABLE.replace("{ 10, 20 }", "{ 10, 20 }, { 7, 7 }")
    gone = TABLE.replace("static const struct mode modes[] = { { 1, 2 }, { 10, 20 } };", "").replace(
        "modes[idx].rate", "idx"
    )
    assert told(diffs(tmp_path / "1", TABLE, STORES, grown)[-1]) == [("HR2103", "modes")]
    assert told(diffs(tmp_path / "2", TABLE, STORES, gone)[-1]) == [("HR2103", "modes")]
    assert told(diffs(tmp_path / "3", TABLE, grown)[-1]) == []


CALLED = """
    int (*cb)(int); int n; static noinline int twice(int x) { return 2 * x; }
    int show(void) { return twice(n) + (cb ? cb(n) : 0); } void write(void) { cb = 0; }
"""
HELD = CALLED.replace("cb = 0", "cb = twice")


@pytest.mark.parametrize(
    "after",
    [
        CALLED.replace("twice", "thrice").replace("2 *", "3 *"),
        CALLED.replace("twice(int x)", "twice(int x, int y)").replace("twice(n)", "twice(n, 1)").replace("x;", "x + y;"),
    ],
    ids=["gone", "other parameters"],
)  # fmt: skip
def test_a_function_that_an_edit_handed_on_may_be_called(after: str, tmp_path: Path) -> None:
    between, last = diffs(tmp_path, CALLED, HELD, after)
    assert (between.handed, told(last)) == ({"twice"}, [("HR2207", "twice")])
    assert told(diffs(tmp_path / "alone", CALLED, after)[-1]) == []


def test_a_function_that_an_edit_handed_on_is_redirected_when_it_changes(tmp_path: Path) -> None:
    last = diffs(tmp_path, CALLED, HELD, CALLED.replace("2 *", "5 *"))[-1]
    assert (told(last), [twins.original.name for twins in last.changed]) == ([], ["twice"])


ADDED = """
    void *__kmalloc(unsigned long, int); void fill(void *, long); char *vals;
    void write(int c) { if (!vals) vals = __kmalloc(SIZE, 3); fill(vals, SIZE); }
"""


def test_what_an_edit_allocated_keeps_its_size(tmp_path: Path) -> None:
    base = "char *vals; void write(int c) { vals = 0; } void *__kmalloc(unsigned long, int); void fill(void *, long);"
    last = diffs(tmp_path, base, ADDED.replace("SIZE", "16"), ADDED.replace("SIZE", "1600"))[-1]
    assert told(last) == [("HR2101", "write")]
    same = ADDED.replace("SIZE", "16").replace("fill(vals", "if (c) fill(vals")
    assert told(diffs(tmp_path / "same", base, ADDED.replace("SIZE", "16"), same)[-1]) == []


# --- what an edit added, and the next one changes ---

BEFORE = "void *keep; int f(int i) { return i; } void show(int);"


@pytest.mark.parametrize(
    ("variable", "use", "was", "now", "is_refused"),
    [
        ("static const int tab[] = { 1, 2 };", "keep = (void *)tab;", "{ 1, 2 }", "{ 1, 5 }", True),
        ("static int tab[4];", "keep = tab;", "[4]", "[8]", True),
        ("static int tab = 4;", "keep = &tab;", "= 4", "= 5", True),
        ("static int tab = 4;", "keep = &tab;", "int tab", "unsigned char tab", True),
        ("static const int tab[] = { 1, 2 };", "i = tab[i];", "{ 1, 2 }", "{ 1, 5 }", False),
        ("static int tab = 4;", "i += tab++;", "= 4", "= 5", False),
        ("static int tab[4];", "tab[i]++;", "[4]", "[8]", False),
    ],
)
def test_an_added_variable_that_somebody_holds_may_not_become_another_one(
    variable: str, use: str, was: str, now: str, is_refused: bool, tmp_path: Path
) -> None:
    source = f"{BEFORE.replace('return i', use + ' return i')}".replace("int f", variable + " int f")
    first, second = (
        planned(tmp_path / name, {"unit.c": (BEFORE, text)})
        for name, text in (("1", source), ("2", source.replace(was, now)))
    )
    _, homes = settled(first, "hotreload_1", {})
    known = renamed(first, second).homes(continued(homes, first))
    left = left_behind(first, homes, second, known, settle(second, known, "hotreload_2"))
    assert [(o.code, o.symbol) for _, o in left.obstacles] == ([("HR2103", "tab")] if is_refused else [])


OPS = """
    struct file_operations { int (*read)(void); int (*write)(void); }; struct chip { int (*start)(void); };
    int (*stored)(void); static int other(void) { return 1; }
    struct file_operations fops = { .read = other }; struct chip chip = { other }; int f(int i) { return i; }
"""
WRITER = "int n; static int writer(void) { return ++n; } "


@pytest.mark.parametrize(
    ("was", "now", "is_refused"),
    [
        (".read = other", ".read = other, .write = writer", False),
        (".read = other", ".read = writer", False),
        ("chip = { other }", "chip = { writer }", True),
        ("return i;", "stored = writer; return i;", True),
    ],
)
def test_a_function_that_only_a_table_had_which_is_looked_up_each_time_may_go(
    was: str, now: str, is_refused: bool, tmp_path: Path
) -> None:
    added = OPS.replace("struct file_operations fops", WRITER + "struct file_operations fops")
    assert was in OPS
    first, second = (
        planned(tmp_path / name, {"unit.c": (OPS, text)}, "-g")
        for name, text in (("1", added.replace(was, now)), ("2", added.replace("i; }", "i + 1; }")))
    )
    _, homes = settled(first, "hotreload_1", {})
    known = renamed(first, second).homes(continued(homes, first))
    left = left_behind(first, homes, second, known, settle(second, known, "hotreload_2"))
    assert [(o.code, o.symbol) for _, o in left.obstacles] == ([("HR2207", "writer")] if is_refused else [])


LISTED = """
    struct list_head { struct list_head *next, *prev; }; struct item { struct list_head a; int n; struct list_head b; };
    struct timer { void (*fn)(struct timer *); }; struct dev { struct timer a; int n; struct timer b; };
    struct item *alloc(int); struct dev *find(int); void setup(struct timer *, void (*)(struct timer *)); void show(int);
"""
ADDS = """
    static struct list_head items = { &items, &items };
    static inline void link(struct list_head *new, struct list_head *prev, struct list_head *next) { next->prev = new; new->next = next; new->prev = prev; prev->next = new; }
    void write(int c) { struct item *i = alloc(c); if (i) { i->n = c; link(&i->A, items.prev, &items); } }
"""
STARTS = """
    static void tick(struct timer *t) { struct dev *d = (struct dev *)((char *)t - __builtin_offsetof(struct dev, A)); d->n++; }
    void write(int c) { struct dev *d = find(c); if (d) setup(&d->A, tick); }
"""


@pytest.mark.parametrize(
    ("adds", "code", "symbol"), [(ADDS, "HR2101", "write"), (STARTS, "HR2207", "tick")], ids=["list", "timer"]
)
def test_what_an_edit_linked_or_registered_is_that_member_for_the_next_one(
    adds: str, code: str, symbol: str, tmp_path: Path
) -> None:
    base = LISTED + "void write(int c) { show(c); }"
    by_a, by_b = (LISTED + adds.replace("A", member) for member in "ab")
    assert told(diffs(tmp_path, base, by_a, by_b)[-1]) == [(code, symbol)]
    other = by_a.replace("d->n++", "d->n += 2").replace("i->n = c", "i->n = c + 1")
    assert told(diffs(tmp_path / "other", base, by_a, other)[-1]) == []
