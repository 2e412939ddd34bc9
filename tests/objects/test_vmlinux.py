# SPDX-License-Identifier: MIT
"""Patches of vmlinux: which of several symbols of one name is meant, and what may not be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hotreload.deploy.verify import addresses_in_vmlinux
from hotreload.diff.object_diff import diff_objects
from hotreload.diff.obstacles import NotPatchableError
from hotreload.diff.running_code import match_running
from hotreload.elf.reader import read_object
from hotreload.errors import InputError
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import Import, PatchPlan, UnitDiff
from hotreload.patch.plan import plan_patch
from hotreload.patch.symbols import VMLINUX, Export, SymbolPosition
from hotreload.patch.vmlinux_symbols import VmlinuxSymbols
from tests.objects.compiling import compiled, object_of, run

pytestmark = pytest.mark.objects

# As the kernel's own linker script: code of one kind stands together, whatever unit it is from.
SCRIPT = """SECTIONS {
  . = 0xffffffff81000000;
  .text : { *(.sched.text) *(.text.unlikely*) *(.text .text.*) }
  __init_begin = .;
  .init : { *(.init.*) }
  __init_end = .;
  .data : { *(.data .data.* .bss .bss.*) }
}"""
EXPORTS = {name: Export(0x1234, VMLINUX) for name in ("__fentry__", "printk", "shown")}
SCHED = '__attribute__((section(".sched.text")))'


def vmlinux(folder: Path, units: Mapping[str, str]) -> VmlinuxSymbols:
    """Units, compiled as kbuild compiles them and linked as a kernel is, in this order."""
    plain = ("-fno-function-sections", "-fno-data-sections")
    objects = [compiled(text, folder / name[:-2], *plain, name=name) for name, text in units.items()]
    return link(folder, *map(str, objects))


def link(folder: Path, *objects: str) -> VmlinuxSymbols:
    (folder / "script").write_text(SCRIPT)
    run(["ld", "-T", "script", "--unresolved-symbols=ignore-all", "-o", "vmlinux", *objects], folder)
    return VmlinuxSymbols(folder / "vmlinux")


def planned(folder: Path, units: Mapping[str, str], name: str, edited: str) -> PatchPlan:
    """The plan for an edit of one of the units of a vmlinux."""
    symbols = vmlinux(folder, units)
    base = object_of(units[name], folder / "base")
    plain = read_object(folder / name[:-2] / f"{name[:-2]}.o")
    diff = diff_objects(base, object_of(edited, folder / "patched"))
    unit = UnitDiff(VMLINUX, name, symbols.block_of(name, 0), diff, match_running(plain, base))
    return plan_patch([unit], KernelSymbols(EXPORTS, {VMLINUX: symbols}))


CALLER = "int {0}(int x) {{ return helper(x) + x; }}"
HELPER = 'static noinline {0} int helper(int x) {{ printk("{1}"); return x * {2}; }}\n'


def test_a_name_that_several_units_have_is_counted_by_address_and_not_by_the_order_of_the_link(
    tmp_path: Path,
) -> None:
    one = HELPER.format("", "one", 3) + CALLER.format("one")
    two = HELPER.format(SCHED, "two", 5) + CALLER.format("two")
    plan = planned(tmp_path, {"one.c": one, "two.c": two}, "one.c", one.replace("* 3", "* 4"))
    (obj,) = plan.objects
    assert obj.name is None
    assert [(func.old_name, func.old_sympos) for func in obj.funcs] == [("helper", 2)]


def test_what_kallsyms_shows_is_counted_also_where_it_is_data_or_global(tmp_path: Path) -> None:
    local = 'static noinline int state(int x) { printk("a"); return x; } int a(int x) { return state(x); }'
    symbols = vmlinux(
        tmp_path,
        {
            "a.c": local,
            "b.c": "int state = 7;",
            "c.c": "static int state __attribute__((used)) = 8;",
        },
    )
    where = [(found.block, found.address) for found in symbols.named("state")]
    assert [block for block, _ in where] == [0, -1, 2]
    assert sorted(address for _, address in where) == [address for _, address in where]
    assert symbols.position("state", 2) == SymbolPosition(VMLINUX, "state", 3)
    assert symbols.position("state", None) == SymbolPosition(VMLINUX, "state", 2)
    assert symbols.position("state", 1) is None


def test_units_of_one_file_name_are_told_apart_by_the_order_of_the_link(tmp_path: Path) -> None:
    for folder, value in (("x", 3), ("y", 5)):
        compiled(HELPER.format("", folder, value) + CALLER.format(folder), tmp_path / folder, name="inode.c")
    symbols = link(tmp_path, "x/inode.o", "y/inode.o")
    blocks = [symbols.block_of("inode.c", nth) for nth in (0, 1, 2)]
    assert blocks == [0, 1, None]
    found = [symbols.find("helper", block) for block in blocks[:2]]
    ends = [symbols.find(name, None) for name in ("x", "y")]
    assert [a.address < b.address for a, b in zip(found, ends, strict=True) if a and b] == [True, True]
    assert found[0] != found[1]


def test_an_export_of_vmlinux_is_imported_and_what_is_not_exported_is_found_by_the_livepatch_core(
    tmp_path: Path,
) -> None:
    other = "int shown; int hidden;"
    source = "extern int shown, hidden; int fn(int x) { return shown + hidden + x + 1; }"
    plan = planned(tmp_path, {"fn.c": source, "other.c": other}, "fn.c", source.replace("+ 1", "+ 2"))
    targets = {r.target for piece in plan.pieces for r in piece.relocations}
    assert Import("shown", 0x1234) in targets
    assert SymbolPosition(VMLINUX, "hidden", 1) in targets


def test_what_some_task_never_leaves_is_refused(tmp_path: Path) -> None:
    source = "int schedule(int x) { return x + 1; } int wake(int x) { return x + 1; }"
    with pytest.raises(NotPatchableError) as refused:
        planned(tmp_path, {"core.c": source}, "core.c", source.replace("x + 1", "x + 2"))
    (obstacle,) = refused.value.obstacles
    assert (obstacle.code, obstacle.symbol) == ("HR2210", "schedule")
    assert "every sleeping task is in it" in obstacle.message


WEAK = "__attribute__((weak))"


def test_who_calls_a_weak_function_of_its_file_means_the_one_that_the_linker_took(tmp_path: Path) -> None:
    source = f"{WEAK} noinline int arch(int x) {{ return x; }} int fn(int x) {{ return arch(x) + 1; }}"
    strong = 'int arch(int x) { printk("longer"); return x * 7 + 5; }'
    plan = planned(tmp_path, {"fn.c": source, "strong.c": strong}, "fn.c", source.replace("+ 1", "+ 2"))
    targets = {r.target for piece in plan.pieces for r in piece.relocations}
    assert SymbolPosition(VMLINUX, "arch", 1) in targets


WEAK_STEP = f"""
    int other(int x) {{ return x; }} {WEAK} int step(int x) {{ return x + 1; }}
    int f(int x) {{ return step(x); }}
"""


def test_a_weak_function_that_the_linker_took_is_replaced(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"fn.c": WEAK_STEP}, "fn.c", WEAK_STEP.replace("x + 1", "x + 2"))
    assert "step" in [func.old_name for of in plan.objects for func in of.funcs]


@pytest.mark.parametrize("other", ["int step(int x) { return x + 9; }", "int step(int x) { return x + 1; }"])
def test_one_in_whose_place_another_files_runs_is_not(other: str, tmp_path: Path) -> None:
    units = {"fn.c": WEAK_STEP, "strong.c": f"{other} int g(int x) {{ return step(x) * 2; }}"}
    with pytest.raises(NotPatchableError) as refused:
        planned(tmp_path, units, "fn.c", WEAK_STEP.replace("x + 1", "x + 2"))
    assert "HR2202" in {obstacle.code for obstacle in refused.value.obstacles}


def test_one_that_becomes_weak_may_have_lost_its_place(tmp_path: Path) -> None:
    strong = WEAK_STEP.replace(f"{WEAK} ", "")
    with pytest.raises(NotPatchableError) as refused:
        planned(tmp_path, {"fn.c": strong}, "fn.c", WEAK_STEP.replace("x + 1", "x + 2"))
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["HR2202"]


def test_the_value_of_a_weak_variable_is_nobodys_to_write(tmp_path: Path) -> None:
    source = f"{WEAK} int knob = 5; int fn(void) {{ return knob; }}"
    with pytest.raises(NotPatchableError) as refused:
        planned(tmp_path, {"fn.c": source, "strong.c": "int knob = 5;"}, "fn.c", source.replace("5", "6"))
    assert "HR2103" in {obstacle.code for obstacle in refused.value.obstacles}


def test_a_new_reference_to_what_is_freed_after_boot_is_refused_and_an_old_one_is_not(tmp_path: Path) -> None:
    data = '__attribute__((section(".init.data")))'
    source = f"{data} int once = 4; int old(void) {{ return once + 1; }} int fn(void) {{ return 1; }}"
    units = {"fn.c": source}
    assert planned(tmp_path / "old", units, "fn.c", source.replace("once + 1", "once + 2")).objects
    with pytest.raises(NotPatchableError) as refused:
        planned(tmp_path / "new", units, "fn.c", source.replace("return 1;", "return once;"))
    assert [obstacle.code for obstacle in refused.value.obstacles] == ["HR2201"]
    assert "fn refers to once, whose memory was freed after boot" in refused.value.obstacles[0].message


def test_a_function_is_found_by_where_it_starts(tmp_path: Path) -> None:
    symbols = vmlinux(tmp_path, {"a.c": "int a(int x) { return x; }"})
    found = symbols.find("a", None)
    assert found is not None
    assert (symbols.function_at(found.address), symbols.function_at(found.address + 1)) == ("a", None)


def test_a_weak_reference_to_a_table_that_kallsyms_hides_is_to_that_table(tmp_path: Path) -> None:
    user = """
        extern char kallsyms_names[] __attribute__((weak)), nowhere[] __attribute__((weak));
        int f(int i) { return nowhere ? nowhere[i] : kallsyms_names[i]; }
    """
    symbols = vmlinux(tmp_path, {"user.c": user, "tables.c": "char shown[8] = {1}, kallsyms_names[8] = {2};"})
    address_of = addresses_in_vmlinux(symbols, None)
    targets = {symbol.name: symbol for symbol in object_of(user, tmp_path / "object").symbols}
    shown = symbols.find("shown", None)
    assert shown is not None
    assert abs((address_of(targets["kallsyms_names"]) or 0) - shown.address) == 8
    assert address_of(targets["nowhere"]) == 0
    assert symbols.named("kallsyms_names") == []


def test_a_patch_that_needs_what_kallsyms_hides_is_refused(tmp_path: Path) -> None:
    user = "extern char kallsyms_names[]; int f(int i) { return i ? kallsyms_names[i] : 1; }"
    units = {"user.c": user, "tables.c": "char kallsyms_names[8] = {2};"}
    with pytest.raises(NotPatchableError) as refused:
        planned(tmp_path, units, "user.c", user.replace(": 1", ": 2"))
    assert refused.value.code == "HR2209"


def test_what_is_no_linked_kernel_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a linked kernel"):
        VmlinuxSymbols(compiled("int a;", tmp_path))
