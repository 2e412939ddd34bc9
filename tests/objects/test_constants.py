# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Constants that live objects point at: which one is which after an edit, and what of one that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.object_diff import ObjectDiff
from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from tests.objects.compiling import compiled


def diff(tmp_path: Path, before: str, after: str) -> ObjectDiff:
    original = read_object(compiled(before, tmp_path / "before", "-g"))
    patched = read_object(compiled(after, tmp_path / "after", "-g"))
    return diff_unit(unit_object_of(original), unit_object_of(patched), {}, types_known=True)


def codes(found: ObjectDiff) -> list[tuple[str, str]]:
    return [(obstacle.code, obstacle.symbol) for obstacle in found.obstacles]


def written(found: ObjectDiff) -> list[str]:
    return [rewrite.original.name for rewrite in found.rewrites]


HELD = """
    struct cfg { int rate; int burst; };
    struct obj { const struct cfg *cfg; const int *max; } *obj;
    static const struct cfg slow = { 1, 2 }, fast = { 10, 20 };
    int show(void) { return obj->cfg->rate; }
    void write(int c) { obj->cfg = c ? &fast : &slow; }
"""


@pytest.mark.parametrize(
    ("was", "now"),
    [("slow = { 1, 2 }, ", ""), ("c ? &fast : &slow", "&fast")],
    ids=["gone", "unused"],
)
def test_a_held_constant_that_is_gone_is_refused_and_one_that_nothing_uses_is_not(
    was: str, now: str, tmp_path: Path
) -> None:
    after = HELD.replace("c ? &fast : &slow", "&fast").replace(was, now)
    assert codes(diff(tmp_path, HELD, after)) == ([("HR2103", "slow")] if "slow" not in after else [])


TABLE = """
    static const int tab[] = { 1, 2, 3, 4 }; const int *keep; void *list[4]; struct pair { const int *p; long n; } *obj; void show(int);
    int once(const int *p); int op(const int *p) __asm__("__SCT__op"); static int reads(const int *p) { show(*p); return 0; }
    __asm__(".pushsection .static_call.text, \\"ax\\"; .globl __SCT__op; .type __SCT__op, @function; __SCT__op: jmp reads; .size __SCT__op, . - __SCT__op; .popsection");
    int (*held)(const int *) = reads; void read(int c) { show(tab[c & 3] + sizeof(tab)); }
"""


@pytest.mark.parametrize(
    "how",
    [
        "const int *v[3] = { tab, 0, tab + 1 }; for (int i = 0; i < 3; i++) list[i] = (void *)v[(i + c) % 3];",
        "struct pair v[3] = { { tab, c }, { 0, 1 }, { tab + 1, 2 } }; *obj = v[c & 1];",
        "op(tab);",
    ],
    ids=["from an array on the stack", "from structs on the stack", "by a static call"],
)
def test_an_address_that_gets_away_by_a_detour_is_held(how: str, tmp_path: Path) -> None:
    before = TABLE + f"void write(int c) {{ {how} }}"
    changed = diff(tmp_path / "1", before, before.replace("3, 4", "9, 4"))
    assert (written(changed), [s.name for s in changed.new_data]) == (["tab"], [])
    assert codes(diff(tmp_path / "2", before, before.replace("3, 4", "3, 4, 5"))) == [("HR2103", "tab")]


def test_a_held_constant_that_is_renamed_is_the_same_one_unless_it_changes(tmp_path: Path) -> None:
    after = HELD.replace("slow", "lazy")
    assert diff(tmp_path, HELD, after).verdict == "unchanged"
    assert codes(diff(tmp_path, HELD, after.replace("1, 2", "1, 3"))) == [("HR2103", "slow")]


def test_a_constant_that_nobody_holds_goes_silently(tmp_path: Path) -> None:
    before = "static const int gains[] = { 1, 2, 4 }; int f(int i) { return gains[i]; }"
    found = diff(tmp_path, before, before.replace("gains", "steps").replace("4 }", "8 }"))
    assert (found.verdict, codes(found)) == ("patchable", [])


def test_a_held_table_that_moves_out_of_its_function_is_written_where_it_is(tmp_path: Path) -> None:
    table = "static const int tab[] = { 1, 2, 3 };"
    before = (
        f"const int *held; int show(void) {{ return held[1]; }} void write(void) {{ {table} held = tab; }}"
    )
    after = table + before.replace(table, "")
    found = diff(tmp_path, before, after.replace("2, 3", "5, 3"))
    assert (found.verdict, written(found)) == ("patchable", ["tab.0"])


LITERALS = """
    struct cfg { int rate; int burst; };
    const struct cfg *held;
    static const struct cfg *const presets[] = { &(const struct cfg){ 1, 2 }, &(const struct cfg){ 3, 4 } };
    int show(void) { return held->rate + (held == presets[0]); }
    void write(int c) { held = presets[c]; }
"""
FIRST = "&(const struct cfg){ 1, 2 }"


def test_a_literal_that_changed_is_written_where_it_is(tmp_path: Path) -> None:
    found = diff(tmp_path, LITERALS, LITERALS.replace("{ 1, 2 }", "{ 1, 5 }"))
    assert (found.verdict, written(found)) == ("patchable", ["__compound_literal.0"])


def test_literals_are_known_by_their_contents_though_another_comes_before_them(tmp_path: Path) -> None:
    found = diff(tmp_path, LITERALS, LITERALS.replace(FIRST, "&(const struct cfg){ 7, 7 }, " + FIRST))
    assert (found.verdict, written(found)) == ("patchable", [])


def test_a_literal_that_changed_while_another_came_is_a_doubt(tmp_path: Path) -> None:
    after = LITERALS.replace(FIRST, "&(const struct cfg){ 7, 7 }, &(const struct cfg){ 1, 5 }")
    assert [code for code, _ in codes(diff(tmp_path, LITERALS, after))] == ["HR2103"]


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ('return held == "fast";', True),
        ("return held == name(1);", True),
        ('printk(held ? held : "none"); return 1;', False),
        ('return held == (void *)0 ? 0 : printk("held %s", held);', False),
    ],
)
def test_a_changed_function_that_knows_a_string_by_its_address_is_refused(
    body: str, is_refused: bool, tmp_path: Path
) -> None:
    # A patch has a string of its own, and live objects have the driver's.
    before = f'const char *held; static noinline const char *name(int i) {{ return i > 4 ? "fast" : "slow"; }} int f(int i) {{ {body} }} void g(int i) {{ held = name(i); }}'
    after = before.replace("{ " + body, "{ if (i > 9) return 7; " + body).replace("i > 4", "i > 5")
    assert [code for code, _ in codes(diff(tmp_path, before, after))][:1] == ["HR2103"] * is_refused


def test_what_a_void_function_leaves_in_a_register_is_no_result(tmp_path: Path) -> None:
    before = """
    struct stat { char name[16]; int offset; };
    static const struct stat stats[] = { { "rx", 0 }, { "tx", 4 }, { "drops", 8 }, { "errors", 12 }, { "x", 8 } };
    static void fill(long *to, const char *from) { for (int i = 0; i < sizeof(stats) / sizeof(*stats); i++) to[i] = from[stats[i].offset]; }
    void (*const ops[])(long *, const char *) = { fill };
    """
    more = diff(tmp_path, before, before.replace('{ "x"', '{ "y", 4 }, { "x"'))
    assert (more.verdict, codes(more)) == ("patchable", [])
    kept = (
        before.replace("static void", "static const void *")
        .replace("offset]; }", "offset]; return stats; }")
        .replace("void (*const", "const void *(*const")
    )
    assert codes(diff(tmp_path, kept, kept.replace('{ "x"', '{ "y", 4 }, { "x"'))) == [("HR2103", "stats")]


GROWS = """
    static const int rates[] = { 1, 2, 3 }; struct mode { long id; const int *rates; int n; }; void show(int);
    static const struct mode modes[] = { { 1, rates, NR }, { 2 } }; struct part { const struct mode *mode; }; static const struct part part = { modes };
    struct dev { long id; const struct mode *mode; const int *rates; const struct part *part; } *dev; const struct mode *current = modes; const int *kept;
    void choose(int c) { dev->mode = &modes[c]; dev->part = &part; current = c ? modes : 0; }
    void walk(int c) { for (int i = 0; i < dev->mode->n; i++) show(dev->mode->rates[i] + c); }
"""


@pytest.mark.parametrize(
    ("copies", "is_copied"),
    [
        ("dev->rates = dev->mode->rates;", True),
        ("kept = current->rates;", True),
        ("dev->rates = dev->part->mode->rates;", True),
        ("kept = kept ? kept + 1 : dev->mode->rates;", True),
        ("show(current->rates[c]);", False),
        ("dev->rates = dev->rates + 1; kept = dev->rates;", False),
        ("dev->id = dev->mode->id;", False),
    ],
)
def test_a_table_grows_unless_somebody_has_copied_the_pointer_to_it(
    copies: str, is_copied: bool, tmp_path: Path
) -> None:
    before = GROWS.replace("NR", "3") + f"void use(int c) {{ {copies} }}"
    after = before.replace("1, 2, 3 }", "1, 2, 3, 4 }").replace("rates, 3", "rates, 4")
    assert codes(diff(tmp_path, before, after)) == [("HR2103", "rates")] * is_copied
