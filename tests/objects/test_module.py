# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""From two versions of units to a patch module: what is planned, and what readelf finds in the file."""

from __future__ import annotations

import asyncio
import shutil
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.diff.object_diff import diff_objects
from hotreload.diff.obstacles import NotPatchableError
from hotreload.diff.running_code import match_running
from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.constants import SHF_RELA_LIVEPATCH, SHN_LIVEPATCH
from hotreload.elf.model import StringRef, SymbolRef, Target
from hotreload.elf.reader import parse_object, read_object
from hotreload.patch.glue import TABLE_SECTION, build_glue
from hotreload.patch.homes import reasons_to_stay, settle
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import Import, PatchPlan, Piece, PieceRef, PlannedTarget, UnitDiff
from hotreload.patch.module import LivePatch, ModuleGlue, write_module
from hotreload.patch.plan import plan_patch
from hotreload.patch.symbols import VMLINUX, Export, ModuleSymbols, SymbolPosition
from tests.conftest import require
from tests.objects.compiling import assembled, compiled, linked, run

EXPORTS = {
    "printk": Export(0x1234, VMLINUX),
    "__fentry__": Export(0x5678, VMLINUX),
    "other_call": Export(0, "other"),
    "spaced": Export(0x9ABC, VMLINUX, "SPACE"),
}


def planned(tmp_path: Path, units: Mapping[str, tuple[str, str]], *flags: str) -> PatchPlan:
    """The plan for module ``drv``, of units by the names of their files, each before and after."""
    plain = {
        name: compiled(
            before, tmp_path / "plain", "-fno-function-sections", "-fno-data-sections", *flags, name=name
        )
        for name, (before, _) in units.items()
    }
    symbols = ModuleSymbols("drv", linked(tmp_path, *plain.values(), name="drv.ko"))
    diffs = []
    for name, (before, after) in units.items():
        base = read_object(compiled(before, tmp_path / "base", *flags, name=name))
        patched = read_object(compiled(after, tmp_path / "patched", *flags, name=name))
        if "-g" in flags:
            diff = diff_unit(unit_object_of(base), unit_object_of(patched), {}, types_known=True)
        else:
            diff = diff_objects(base, patched)
        assert diff.obstacles == ()
        running = match_running(read_object(plain[name]), base)
        diffs.append(UnitDiff("drv", name, symbols.block_of(name, 0), diff, running))
    return plan_patch([d for d in diffs if d.diff.brings], KernelSymbols(EXPORTS, {"drv": symbols}))


def refusal(tmp_path: Path, units: Mapping[str, tuple[str, str]], *flags: str) -> list[str]:
    with pytest.raises(NotPatchableError) as caught:
        planned(tmp_path, units, *flags)
    return sorted({obstacle.code for obstacle in caught.value.obstacles})


def piece(plan: PatchPlan, name: str) -> Piece:
    (found,) = [piece for piece in plan.pieces if piece.name == name]
    return found


def targets(plan: PatchPlan, name: str) -> list[PlannedTarget]:
    """What a piece refers to, but for the call of __fentry__."""
    return [r.target for r in piece(plan, name).relocations if r.target != Import("__fentry__", 0x5678)]


def number(plan: PatchPlan, name: str) -> PieceRef:
    return PieceRef([piece.name for piece in plan.pieces].index(name))


def kept(plan: PatchPlan) -> tuple[str, ...]:
    """Why the first module of this plan has to stay."""
    return reasons_to_stay(plan, settle(plan, {}, "hotreload_1"))


def edit(source: str, old: str = "OLD", before: str = "1", after: str = "2") -> tuple[str, str]:
    return source.replace(old, before), source.replace(old, after)


def test_what_the_module_has_is_referred_to_and_what_is_exported_is_imported(tmp_path: Path) -> None:
    source = (
        'void other_call(void); static int n; int f(void) { printk("text"); other_call(); return n += OLD; }'
    )
    plan = planned(tmp_path, {"unit.c": edit(source)})
    assert set(targets(plan, "f")) == {
        StringRef(b"text"),
        Import("printk", 0x1234),
        SymbolPosition("other", "other_call", 0),
        SymbolPosition("drv", "n", 1),
    }
    ((func,),) = [obj.funcs for obj in plan.objects]
    assert (func.old_name, func.old_sympos, PieceRef(func.new_func)) == ("f", 1, number(plan, "f"))


SAME = "static int n = 5; static noinline int same(int i) { return n += i + OLD; } int NAME(int i) { return same(i) + 1; }"


@pytest.mark.parametrize(("edited", "sympos"), [("one.c", 1), ("two.c", 2)])
def test_a_name_that_two_units_have_is_told_apart_by_its_rank(
    edited: str, sympos: int, tmp_path: Path
) -> None:
    units = {}
    for name in ("one.c", "two.c"):
        source = SAME.replace("NAME", name[:3])
        units[name] = edit(source) if name == edited else edit(source, after="1")
    plan = planned(tmp_path, units)
    ((func,),) = [obj.funcs for obj in plan.objects]
    assert (func.old_name, func.old_sympos) == ("same", sympos)
    assert set(targets(plan, "same")) == {SymbolPosition("drv", "n", sympos)}


def test_a_static_function_is_not_taken_for_the_global_one_of_another_unit(tmp_path: Path) -> None:
    private = "static noinline int same(int i) { return i * OLD; } int f(int i) { return same(i) + 1; }"
    public = "int same(int i) { return i * 1; }"
    symbols = ModuleSymbols("drv", linked(tmp_path, compiled(private.replace("OLD", "1"), tmp_path / "1", name="a.c"), compiled(public, tmp_path / "2", name="b.c")))  # fmt: skip
    at, everywhere = symbols.position("same", symbols.block_of("a.c", 0)), symbols.position("same", None)
    assert at is not None
    assert everywhere is not None
    assert {at.sympos, everywhere.sympos} == {1, 2}
    assert symbols.position("same", symbols.block_of("b.c", 0)) is None


def test_another_size_in_the_guest_is_refused(tmp_path: Path) -> None:
    ko = compiled("int f(int i) { return i * 77 + 5; }", tmp_path / "ko")
    symbols = ModuleSymbols("drv", ko)
    size = read_object(ko).functions[0].size
    assert symbols.position("f", None, size) == SymbolPosition("drv", "f", 1)
    assert symbols.position("f", None, size + 1) is None


def test_a_guest_with_another_build_is_refused(tmp_path: Path) -> None:
    old, new = edit("int f(int i) { return i * 77 + OLD; }")
    base = read_object(compiled(old, tmp_path / "base"))
    diff = diff_objects(base, read_object(compiled(new, tmp_path / "new")))
    other = compiled("int f(int i) { return i * 78 + i / 3; }", tmp_path / "other")
    unit = UnitDiff("drv", "drv.c", 0, diff, match_running(read_object(other), base))
    with pytest.raises(NotPatchableError) as caught:
        plan_patch([unit], KernelSymbols(EXPORTS, {"drv": ModuleSymbols("drv", other)}))
    assert {obstacle.code for obstacle in caught.value.obstacles} == {"HR3101"}


def test_a_module_whose_function_has_another_size_is_refused(tmp_path: Path) -> None:
    old, new = edit("int f(int i) { return i * 77 + OLD; }")
    base = read_object(compiled(old, tmp_path / "base"))
    unit = UnitDiff("drv", "drv.c", 0, diff_objects(base, read_object(compiled(new, tmp_path / "new"))), match_running(base, base))  # fmt: skip
    loaded = ModuleSymbols("drv", compiled("int f(int i) { return i * 78 + i / 3; }", tmp_path / "loaded"))
    with pytest.raises(NotPatchableError) as caught:
        plan_patch([unit], KernelSymbols(EXPORTS, {"drv": loaded}))
    assert {obstacle.code for obstacle in caught.value.obstacles} == {"HR3101"}


CALLBACK = """
    void later(void *);
    static noinline void work(int i) { printk("OLD %d", i); }
    int f(void) { work(1); later(work); return OLD; }
"""


def test_a_changed_function_is_called_directly_but_its_address_stays_the_originals(tmp_path: Path) -> None:
    source = CALLBACK.replace("later(work)", "keep = work").replace("void later(void *);", "void *keep;")
    plan = planned(tmp_path, {"unit.c": edit(source)})
    found = targets(plan, "f")
    assert number(plan, "work") in found
    assert SymbolPosition("drv", "work", 1) in found
    assert kept(plan) == ()


def test_a_function_that_stores_its_own_address_stores_the_originals(tmp_path: Path) -> None:
    # A work that queues itself again: the address would outlive the patch.
    plan = planned(tmp_path, {"unit.c": edit('void *keep; void f(void) { printk("OLD"); keep = f; }')})
    assert SymbolPosition("drv", "f", 1) in targets(plan, "f")
    assert number(plan, "f") not in targets(plan, "f")


def test_a_switch_table_that_travels_points_into_the_function_that_travels(tmp_path: Path) -> None:
    case = 'int f(int i) { switch (i) { case 0: return printk("a"); case 1: return printk("b"); case 2: return 9;'
    case += ' case 3: return printk("d"); case 4: return i * 77; case 5: return OLD; case 6: return 1; } return 0; }'
    plan = planned(tmp_path, {"unit.c": edit(case)}, "-fjump-tables")
    assert set(targets(plan, ".rodata.f")) == {number(plan, "f")}


def test_places_of_a_computed_goto_are_those_of_the_function_that_travels(tmp_path: Path) -> None:
    source = "int f(int i) { static const void *const t[] = {&&a, &&b}; goto *t[i]; a: return i * 3; b: return OLD; }"
    plan = planned(tmp_path, {"unit.c": edit(source)})
    assert set(targets(plan, "t.0")) == {number(plan, "f")}


def test_a_new_function_whose_address_is_taken_keeps_the_patch_loaded(tmp_path: Path) -> None:
    before = "void *keep; int f(void) { return 1; }"
    after = 'void *keep; static void fresh(void) { printk("x"); } int f(void) { keep = fresh; return 1; }'
    plan = planned(tmp_path, {"unit.c": (before, after)})
    assert kept(plan) == ("fresh",)
    assert PieceRef(number(plan, "fresh").number, kept=True) in targets(plan, "f")


def test_a_new_function_that_is_only_called_does_not_keep_the_patch_loaded(tmp_path: Path) -> None:
    before = "int f(int i) { return 1; }"
    after = 'static noinline int fresh(int i) { return printk("x"); } int f(int i) { return fresh(i) + 2; }'
    assert kept(planned(tmp_path, {"unit.c": (before, after)})) == ()


def test_a_change_in_one_unit_calls_the_changed_function_of_another(tmp_path: Path) -> None:
    one = edit("int helper(int i) { return i * OLD; }", before="3", after="5")
    two = edit("int helper(int); int f(int i) { return helper(i) + OLD; }")
    plan = planned(tmp_path, {"one.c": one, "two.c": two})
    assert targets(plan, "f") == [number(plan, "helper")]


def test_a_new_function_and_variable_of_another_unit_travel_with_the_change_that_uses_them(
    tmp_path: Path,
) -> None:
    units = {
        "main.c": (
            "int f(void) { return 1; }",
            "int help(int); extern int level; int f(void) { return help(level); }",
        ),
        "util.c": (
            "int g(void) { return 2; }",
            "int level = 3; int help(int a) { return a * 2; } int g(void) { return 2; }",
        ),
    }
    plan = planned(tmp_path, units)
    assert set(targets(plan, "f")) == {number(plan, "help"), number(plan, "level")}
    assert [[func.old_name for func in obj.funcs] for obj in plan.objects] == [["f"]]


def test_a_static_that_becomes_global_is_used_where_it_is(tmp_path: Path) -> None:
    owner = (
        "STATIC int level; STATIC noinline int step(void) { return ++level; } int f(void) { return step(); }"
    )
    units = {
        "owner.c": (owner.replace("STATIC", "static"), owner.replace("STATIC", "")),
        "user.c": (
            "int g(void) { return 1; }",
            "extern int level; int step(void); int g(void) { return step() + level; }",
        ),
    }
    plan = planned(tmp_path, units)
    assert "step" not in {each.name for each in plan.pieces}
    assert {type(t) for t in targets(plan, "g")} == {SymbolPosition}
    assert {t.name for t in targets(plan, "g") if isinstance(t, SymbolPosition)} == {"step", "level"}


def test_a_string_that_is_stored_keeps_the_patch_loaded_and_one_that_is_printed_does_not(
    tmp_path: Path,
) -> None:
    before = "const char *name; void f(void) { name = 0; }"
    stored = planned(tmp_path / "1", {"a.c": (before, 'const char *name; void f(void) { name = "new"; }')})
    printed = planned(
        tmp_path / "2", {"a.c": (before, 'const char *name; void f(void) { name = 0; printk("new"); }')}
    )
    assert (kept(stored), kept(printed)) == (("a string of f",), ())


def test_a_lock_class_keeps_the_patch_loaded(tmp_path: Path) -> None:
    one = """struct { void *key; const char *name; } lock; void f(void) { static struct { long subkeys[2]; } __key;
        printk("x"); lock.key = &__key; lock.name = "&lock"; }"""
    plan = planned(tmp_path, {"a.c": (one.replace('printk("x")', 'printk("y")'), one)})
    assert [each.partition(".")[0] for each in kept(plan)] == ["__key", "a string of f"]


def test_two_definitions_of_one_name_are_refused_as_a_linker_would(tmp_path: Path) -> None:
    header = (
        "extern int calls; int NAME(void) { return 1; }",
        "int calls = 3; int NAME(void) { return calls; }",
    )
    units = {name: tuple(s.replace("NAME", name[0]) for s in header) for name in ("a.c", "b.c")}
    assert refusal(tmp_path, units) == ["HR2208"]  # type: ignore[arg-type]


def test_a_module_of_which_only_something_new_travels_is_an_object_of_the_patch(tmp_path: Path) -> None:
    """Or the kernel would not let what is new there refer to what the module has."""
    total = "static int total; int add(int v) { total += v; return total; } "
    show = "int add(int v); int twice(int v); int show(void) { return NAME(1); }"
    texts = {
        "prov": (total, total + "int twice(int v) { total += 2 * v; return total; }"),
        "user": (show.replace("NAME", "add"), show.replace("NAME", "twice")),
    }
    units, symbols = [], {}
    for module, (before, after) in texts.items():
        name = f"{module}.c"
        plain = compiled(
            before, tmp_path / "plain", "-fno-function-sections", "-fno-data-sections", name=name
        )
        symbols[module] = ModuleSymbols(module, linked(tmp_path, plain, name=f"{module}.ko"))
        base = read_object(compiled(before, tmp_path / "base", name=name))
        diff = diff_objects(base, read_object(compiled(after, tmp_path / "patched", name=name)))
        diff = replace(diff, new_exports=frozenset({"twice"} if module == "prov" else ()))
        block = symbols[module].block_of(name, 0)
        units.append(UnitDiff(module, name, block, diff, match_running(read_object(plain), base)))
    plan = plan_patch(units, KernelSymbols(EXPORTS, symbols))
    assert SymbolPosition("prov", "total", 1) in targets(plan, "twice")
    found = {obj.name: [func.old_name for func in obj.funcs] for obj in plan.objects}
    assert found == {"prov": [], "user": ["show"]}


def test_what_is_not_exported_is_refused(tmp_path: Path) -> None:
    plain = ("int f(void) { return 1; }", "int secret(void); int f(void) { return secret() + 1; }")
    assert refusal(tmp_path, {"unit.c": plain}) == ["HR2209"]


JUMP = """
    KEY int key;
    int f(void) {
        __asm__ goto("1: nop\\n.pushsection __jump_table, \\"aw\\"\\n.long 1b - ., %l[yes] - .\\n.quad %c0 - .\\n.popsection"
            :: "i"(&key) :: yes);
        return 1;
    yes: return OLD;
    }
"""


def test_a_jump_label_with_a_key_of_the_patched_module_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"unit.c": edit(JUMP.replace("KEY", "static"), before="5", after="6")}) == [
        "HR2204"
    ]


ALTERNATIVE = """
    static noinline void slow(void) { printk("slow"); }
    int f(void) {
        __asm__ volatile("661: nop\\n nop\\n nop\\n nop\\n nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n"
            ".long 661b - ., 663f - .\\n.word 12\\n.byte 662b - 661b, 664f - 663f\\n.popsection\\n"
            ".pushsection .altinstr_replacement, \\"ax\\"\\n663: call printk\\n664:\\n.popsection");
        slow();
        return OLD;
    }
    int g(void) {
        __asm__ volatile("661: nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n"
            ".long 661b - ., 663f - .\\n.word 13\\n.byte 662b - 661b, 664f - 663f\\n.popsection\\n"
            ".pushsection .altinstr_replacement, \\"ax\\"\\n663: cli\\n664:\\n.popsection");
        return OLD;
    }
"""


def test_an_alternative_points_at_its_own_replacement_wherever_that_stood(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"unit.c": edit(ALTERNATIVE)})
    found = [(p.content, p.relocations) for p in plan.pieces if p.section == ".altinstr_replacement"]
    assert [content for content, _ in found] == [b"\xe8" + bytes(4), b"\xfa"]
    assert [[(r.offset, r.target, r.addend) for r in moved] for _, moved in found] == [
        [(1, Import("printk", 0x1234), -4)],
        [],
    ]
    for entry in (p for p in plan.pieces if p.section == ".altinstructions"):
        code, replacement = entry.relocations
        assert isinstance(code.target, PieceRef)
        assert isinstance(replacement.target, PieceRef)
        assert plan.pieces[code.target.number].name == ("f" if entry.content[8] == 12 else "g")
        assert plan.pieces[replacement.target.number].section == ".altinstr_replacement"
        assert len(plan.pieces[replacement.target.number].content) == entry.content[11]
        assert (replacement.offset, replacement.addend) == (4, 0)


def test_a_variable_that_moved_from_another_file_is_refused(tmp_path: Path) -> None:
    one = ("int shared = 4; int f(void) { return 1; }", "int f(void) { return 2; }")
    two = (
        "extern int shared; int g(void) { return shared; }",
        "int shared = 4; int g(void) { return shared + 1; }",
    )
    assert refusal(tmp_path, {"one.c": one, "two.c": two}) == ["HR2104"]


def test_a_function_that_moved_from_another_file_is_refused(tmp_path: Path) -> None:
    one = ("int shared(int i) { return i / 3; } int f(void) { return 1; }", "int f(void) { return 2; }")
    two = ("int shared(int); int g(void) { return shared(1) + 1; }", "noinline int shared(int i) { return i / 3; } int g(void) { return shared(1) + 2; }")  # fmt: skip
    assert refusal(tmp_path, {"one.c": one, "two.c": two}) == ["HR2207"]


# --- the file ---


@pytest.fixture(scope="module")
def glue(debian_kernel: KernelTree) -> ModuleGlue:
    require(shutil.which("make"), "make", "apt-get install make")
    template = asyncio.run(build_glue(debian_kernel)).read_bytes()
    work, transition = (
        SymbolPosition(VMLINUX, n, 1) for n in ("klp_transition_work", "klp_transition_patch")
    )
    return ModuleGlue(template, work, transition)


@pytest.fixture
def made(glue: ModuleGlue, tmp_path: Path) -> LivePatch:
    source = """
        static int n = 3;
        static const char *const words[] = {"zero", "OLD"};
        int f(int i) { static int count; printk("text %s", words[i]); return n += count++; }
    """
    plan = planned(tmp_path, {"unit.c": edit(source)})
    return write_module(plan, "hotreload_7", glue)


@pytest.fixture
def patch(made: LivePatch, tmp_path: Path) -> Path:
    file = tmp_path / "hotreload_7.ko"
    file.write_bytes(made.module)
    return file


def readelf(file: Path, *options: str) -> str:
    return run(["readelf", "-W", *options, str(file)], file.parent)


def test_readelf_has_nothing_to_complain_about(patch: Path) -> None:
    everything = run(["sh", "-c", f"readelf -aW {patch} 2>&1 >/dev/null"], patch.parent)
    assert everything == ""


def test_livepatch_sections_have_the_flags_and_links_that_the_kernel_asks_for(patch: Path) -> None:
    from elftools.elf.elffile import ELFFile

    with patch.open("rb") as stream:
        elf = ELFFile(stream)
        found = {s.name: s for s in elf.iter_sections() if s.name.startswith(".klp.rela.")}
        assert set(found) == {".klp.rela.drv..text", f".klp.rela.vmlinux.{TABLE_SECTION}"}
        for name, section in found.items():
            target = elf.get_section(section["sh_info"])
            assert name.endswith("." + target.name)
            assert section["sh_flags"] == SHF_RELA_LIVEPATCH | 0x2 | 0x40
            assert (section["sh_entsize"], section["sh_addralign"]) == (24, 8)
            assert elf.get_section(section["sh_link"]).name == ".symtab"
            assert {
                elf.get_section(section["sh_link"]).get_symbol(r["r_info_sym"])["st_shndx"]
                for r in section.iter_relocations()
            } == {SHN_LIVEPATCH}


def test_symbols_stand_local_before_global_and_livepatch_ones_by_object_name_and_rank(patch: Path) -> None:
    rows = [line.split() for line in readelf(patch, "-s").splitlines()]
    rows = [row for row in rows if len(row) >= 7 and row[0].rstrip(":").isdigit()]
    bindings = [row[4] for row in rows]
    first_global = bindings.index("GLOBAL")
    assert "LOCAL" not in bindings[first_global:]
    (symtab,) = [
        line.split("]", 1)[1].split() for line in readelf(patch, "-S").splitlines() if ".symtab" in line
    ]
    assert int(symtab[-2]) == first_global
    names = [row[-1] for row in rows if row[-1].startswith(".klp.sym.")]
    assert sorted(names) == [
        ".klp.sym.drv.count.0,1",
        ".klp.sym.drv.n,1",
        ".klp.sym.vmlinux.klp_transition_patch,1",
        ".klp.sym.vmlinux.klp_transition_work,1",
    ]


def test_places_that_a_relocation_will_write_are_zero(patch: Path) -> None:
    # "x86/modules: Skipping invalid relocation target, existing value is nonzero" would refuse the module.
    obj = read_object(patch)
    for section in obj.sections:
        for relocation in section.relocations:
            size = 8 if relocation.type in (1, 24) else 4
            if section.data and not section.name.startswith(".note"):
                assert not any(section.data[relocation.offset : relocation.offset + size]), section.name


def test_the_kernel_looks_for_each_livepatch_relocation_and_each_function(
    made: LivePatch, patch: Path
) -> None:
    relocations = [
        relocation
        for section in readelf(patch, "-r").split("Relocation section ")
        if section.startswith("'.klp.rela.")
        for relocation in section.splitlines()[2:]
        if relocation
    ]
    assert made.lookups == len(relocations) + 1


def test_no_place_has_two_relocations(patch: Path) -> None:
    for section in read_object(patch).sections:
        places = [relocation.offset for relocation in section.relocations if relocation.type]
        assert len(places) == len(set(places)), section.name


def place(target: Target) -> int:
    assert isinstance(target, SymbolRef)
    return target.symbol.value


def test_the_table_tells_the_function_its_object_and_its_replacement(patch: Path) -> None:
    obj = read_object(patch)
    table, funcs = obj.section(TABLE_SECTION), obj.section(".hotreload.funcs")
    assert table is not None
    assert funcs is not None
    assert struct.unpack_from("<Q", table.data, 8) == (1,)
    assert struct.unpack_from("<Q", funcs.data, 24) == (1,)  # old_sympos
    rodata = obj.section(".rodata")
    assert rodata is not None
    texts = []
    for relocation in funcs.relocations[:2]:
        start = place(relocation.target) + relocation.addend
        texts.append(rodata.data[start : rodata.data.index(b"\0", start)])
    assert texts == [b"drv", b"f"]
    replacement = funcs.relocations[2].target
    assert isinstance(replacement, SymbolRef)
    assert replacement.symbol.name == "f"


def test_the_module_is_called_as_asked_in_both_places_and_is_a_livepatch(patch: Path) -> None:
    obj = read_object(patch)
    info, this = obj.section(".modinfo"), obj.section(".gnu.linkonce.this_module")
    assert info is not None
    assert this is not None
    assert {b"name=hotreload_7", b"livepatch=Y", b"license=GPL"} <= set(info.data.split(b"\0"))
    assert b"hotreload_7\0" in this.data
    assert b"name=hotreload_template" not in info.data


def test_a_name_that_is_too_long_for_the_kernel_is_refused(glue: ModuleGlue) -> None:
    with pytest.raises(ValueError, match="at most 55"):
        write_module(PatchPlan((), ()), "x" * 56, glue)


def test_one_plan_makes_one_file_and_another_name_another(glue: ModuleGlue, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"unit.c": edit("int f(void) { return OLD; }")})
    first = write_module(plan, "hotreload_1", glue).module
    assert write_module(plan, "hotreload_1", glue).module == first
    assert write_module(plan, "hotreload_2", glue).module != first


def test_a_string_keeps_the_alignment_of_its_section(glue: ModuleGlue, tmp_path: Path) -> None:
    long = "a text that is long enough to be put where strings are aligned to eight bytes for speed"
    source = f'int f(void) {{ printk("x"); printk("{long}"); return OLD; }}'
    plan = planned(tmp_path, {"unit.c": edit(source)})
    data = parse_object(write_module(plan, "hotreload_1", glue).module, "patch").section(".rodata")
    assert data is not None
    assert data.data.index(long.encode()) % 8 == 0


def test_assembly_has_no_place_to_hide_a_relocation_the_loader_does_not_know(tmp_path: Path) -> None:
    text = """
        .section .text.f, "ax"
        .globl f
        .type f, @function
        f: call __fentry__
           mov $VALUE, %eax
           .byte 0xeb
           .byte target - . - 1
        .size f, .-f
    """
    old, new = (assembled(text.replace("VALUE", v), tmp_path / v) for v in ("1", "2"))
    base = read_object(old)
    unit = UnitDiff("drv", "drv.c", None, diff_objects(base, read_object(new)), match_running(base, base))
    exports = {**EXPORTS, "target": Export(0, VMLINUX)}
    with pytest.raises(NotPatchableError) as caught:
        plan_patch([unit], KernelSymbols(exports, {"drv": ModuleSymbols("drv", old)}))
    assert [o.code for o in caught.value.obstacles] == ["HR2208"]


def test_the_namespace_of_an_export_is_imported_once(glue: ModuleGlue, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"unit.c": edit("void spaced(int); void f(void) { spaced(OLD); spaced(3); }")})
    info = parse_object(write_module(plan, "hotreload_1", glue).module, "patch").section(".modinfo")
    assert info is not None
    assert [text for text in info.data.split(b"\0") if text.startswith(b"import_ns=")] == [b"import_ns=SPACE"]
