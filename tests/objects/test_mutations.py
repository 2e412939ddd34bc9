# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Defects that are put into the emitter on purpose: each is caught by the oracle of meaning.py."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from hotreload.build.kernel_tree import KernelTree
from hotreload.diff.object_diff import diff_objects
from hotreload.diff.running_code import match_running
from hotreload.elf.reader import read_object
from hotreload.elf.writer import OutputSymbol
from hotreload.patch import module as module_writer
from hotreload.patch.glue import build_glue
from hotreload.patch.kernel_symbols import KernelSymbols
from hotreload.patch.model import UnitDiff
from hotreload.patch.module import ModuleGlue, write_module
from hotreload.patch.plan import plan_patch
from hotreload.patch.symbols import VMLINUX, Export, ModuleSymbols, SymbolPosition
from tests.conftest import require
from tests.objects.compiling import compiled, linked
from tests.objects.defects import DEFECTS, Defect, Sections
from tests.objects.meaning import complaints
from tests.objects.test_corpus import CORPUS, NAMES, sides

Units = Mapping[str, tuple[str, str]]

EXPORTS: Final = {
    name: Export(0x1000 + number, VMLINUX)
    for number, name in enumerate(("printk", "__fentry__", "later", "key", "bad", "memcpy"))
}


def edit(source: str) -> tuple[str, str]:
    return source.replace("OLD", "1"), source.replace("OLD", "2")


SAME: Final = """
    static int n = 5; static noinline int same(int i) { static int count; return n += i + OLD + count++; }
    int NAME(int i) { return same(i) + same(i + 1); }
"""
PAIRS: Final[dict[str, Units]] = {
    "calls": {
        "unit.c": edit("""
            static int n = 3, many[4]; int open_to_all = 5; int *keep_data;
            static noinline int first(int i) { printk("first %d", i); return i * OLD; }
            static noinline int second(int i) { printk("second %d", i); return i + OLD; }
            int f(int i) { keep_data = &many[2]; return first(i) + second(i) + many[i & 3] + n++ + OLD; }
            int g(int i) { return f(i) - open_to_all; }
        """)
    },
    "constants": {
        "unit.c": edit("""
            struct names { const char *a, *b; };
            static const struct names table[] = {{"zero", "a text that is long enough to be aligned to eight bytes, for speed"}, {"one", "OLD"}};
            static const unsigned char odd[3] = {7, 8, 9}; static const long even[2] = {OLD, 11};
            const char *f(int i) { printk("text"); printk("text that goes on"); return table[i & 1].b + odd[i & 1] + even[i & 1]; }
        """)
    },
    "new": {
        "unit.c": (
            "static int old = 4; void *keep; int f(int i) { return old + i; }",
            """static int old = 4; static int fresh = 77; static long more[8] = {1, 2, 3}; void *keep; static char room[64] __attribute__((aligned(32)));
            static noinline int added(int i) { printk("added"); return fresh++ + more[i & 7]; }
            int f(int i) { static int once = 9; room[i & 63]++; keep = &fresh; return old + added(i) + once++; }""",
        )
    },
    "addresses": {
        "unit.c": edit("""
            void later(void *); static void work(void *p) { printk("OLD %p", p); later(work); }
            int f(void) { later(work); work(0); return OLD; }
        """)
    },
    "callers": {
        "unit.c": edit("""
            static notrace noinline int deep(int i) { return i * 77 + OLD; }
            static notrace noinline int middle(int i) { return deep(i) + 5; }
            int f(int i) { printk("f"); return middle(i) + 1; } int g(int i) { printk("g"); return middle(i) + 2; }
        """)
    },
    "ranks": {"one.c": edit(SAME.replace("NAME", "one")), "two.c": edit(SAME.replace("NAME", "two"))},
    "siblings": {
        "one.c": edit("int helper(int i) { return i * 3 + OLD; }"),
        "two.c": edit("int helper(int); int f(int i) { return helper(i) + OLD; }"),
    },
    "switch": {
        "unit.c": edit("""
            int f(int i) { switch (i) { case 0: return printk("a"); case 1: return printk("b"); case 2: return 9;
            case 3: return printk("d"); case 4: return i * 77; case 5: return OLD; case 6: return 1; } return 0; }
        """)
    },
    "entries": {
        "unit.c": edit("""
            extern int key;
            static void slow(void) { printk("slow"); }
            int f(int i, int *p) {
                int v = 0;
                if (i) __asm__ volatile("1: .byte 0x0f, 0x0b\\n.pushsection __bug_table, \\"aw\\"\\n2: .long 1b - .\\n.long %c0 - .\\n.word 5\\n.word 2\\n.org 2b + 12\\n.popsection" :: "i"("file.c"));
                __asm__ volatile("1: mov %1, %0\\n2:\\n.pushsection __ex_table, \\"a\\"\\n.balign 4\\n.long 1b - ., 2b - ., 3\\n.popsection" : "+r"(v) : "m"(*p));
                __asm__ volatile("661: nop\\n nop\\n nop\\n nop\\n nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n.long 661b - ., 663f - .\\n.word 7\\n.byte 662b - 661b, 664f - 663f\\n.popsection\\n.pushsection .altinstr_replacement, \\"ax\\"\\n663: call printk\\n664:\\n.popsection");
                __asm__ volatile("661: nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n.long 661b - ., 663f - .\\n.word 8\\n.byte 662b - 661b, 664f - 663f\\n.popsection\\n.pushsection .altinstr_replacement, \\"ax\\"\\n663: cli\\n664:\\n.popsection");
                __asm__ volatile("661: nop\\n nop\\n nop\\n nop\\n nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n.long 661b - ., later - .\\n.word 9\\n.byte 662b - 661b, 5\\n.popsection");
                __asm__ volatile(".pushsection .smp_locks, \\"a\\"\\n.balign 4\\n.long 671f - .\\n.popsection\\n671: lock incl %0" : "+m"(*p));
                slow();
                __asm__ goto("1: nop\\n.pushsection __jump_table, \\"aw\\"\\n.balign 8\\n.long 1b - ., %l[yes] - .\\n.quad %c0 - .\\n.popsection" :: "i"(&key) :: yes);
                return v + 4;
                yes: return OLD;
            }
            int other(int *p) { __asm__ volatile(".pushsection .smp_locks, \\"a\\"\\n.balign 4\\n.long 671f - .\\n.popsection\\n671: lock decl %0" : "+m"(*p)); return 3; }
        """)
    },
    "cold": {
        "unit.c": edit("""
            void bad(const char *) __attribute__((cold));
            int f(int *p) { if (!p) { bad("no p"); return OLD; } return *p; }
        """)
    },
}  # fmt: skip
FLAGS: Final = {"switch": ("-fjump-tables",)}


@dataclass(frozen=True)
class Made:
    """Everything that a patch is made of, and that the oracle asks for."""

    running: Path
    objects: tuple[tuple[str, Path, Path], ...]
    units: tuple[UnitDiff, ...]
    symbols: KernelSymbols


@pytest.fixture(scope="module")
def glue(debian_kernel: KernelTree) -> ModuleGlue:
    require(shutil.which("make"), "make", "apt-get install make")
    template = asyncio.run(build_glue(debian_kernel)).read_bytes()
    work, transition = (
        SymbolPosition(VMLINUX, n, 1) for n in ("klp_transition_work", "klp_transition_patch")
    )
    return ModuleGlue(template, work, transition)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in known:
            known[name] = _made(PAIRS[name], tmp_path_factory.mktemp(name), FLAGS.get(name, ()))
        return known[name]

    return make


def _made(units: Units, place: Path, flags: tuple[str, ...]) -> Made:
    whole = ("-fno-function-sections", "-fno-data-sections")
    plain = {
        name: compiled(old, place / "plain", *whole, *flags, name=name) for name, (old, _) in units.items()
    }
    running = linked(place, *plain.values(), name="drv.ko")
    symbols = ModuleSymbols("drv", running)
    objects, diffs = [], []
    for name, (old, new) in units.items():
        base = compiled(old, place / "base", *flags, name=name)
        patched = compiled(new, place / "patched", *flags, name=name)
        objects.append((name, base, patched))
        original = read_object(base)
        diff = diff_objects(original, read_object(patched))
        assert diff.obstacles == ()
        match = match_running(read_object(plain[name]), original)
        diffs.append(UnitDiff("drv", name, symbols.block_of(name, 0), diff, match))
    return Made(running, tuple(objects), tuple(diffs), KernelSymbols(EXPORTS, {"drv": symbols}))


def verdict(made: Made, glue: ModuleGlue, defect: Defect | None = None) -> list[str]:
    """The oracle's complaints about the module that is written, with a defect in its making."""
    defect = defect or Defect("", "")
    plan = defect.in_plan(plan_patch(defect.in_diff(made.units), made.symbols))
    with pytest.MonkeyPatch.context() as patch:
        real = module_writer.write_object

        def write(sections: Sections, symbols: list[OutputSymbol]) -> bytes:
            defect.in_file(sections, symbols)
            image = bytearray(real(sections, symbols))
            defect.in_image(image)
            return bytes(image)

        patch.setattr(module_writer, "write_object", write)
        image = write_module(plan, "hotreload_7", glue).module
    exports = {name: export.crc for name, export in made.symbols.exports.items()}
    (module,) = made.symbols.modules
    return complaints(module, made.running, made.objects, exports, glue.template, image)


@pytest.mark.parametrize("name", PAIRS)
def test_a_module_means_what_the_patched_objects_mean(
    name: str, made: Callable[[str], Made], glue: ModuleGlue
) -> None:
    assert verdict(made(name), glue) == []


@pytest.mark.skipif(not NAMES, reason="the kernel objects (../shared/corpus) are not beside this checkout")
@pytest.mark.parametrize("name", NAMES)
def test_a_module_of_a_kernel_unit_means_what_its_patched_object_means(name: str, glue: ModuleGlue) -> None:
    original, patched = sides(name)
    diff = diff_objects(original, patched)
    if diff.verdict != "patchable":
        return
    base = CORPUS / f"{name}.ORIG.o"
    (after,) = CORPUS.glob(f"{name}.PATCHED*.o")
    # What these units import is exported here, whatever it was in the kernel they come from.
    exports = {s.name: Export(7, VMLINUX) for s in patched.symbols if not s.is_defined}
    symbols = ModuleSymbols(VMLINUX, base)
    (source,) = original.files
    unit = UnitDiff(VMLINUX, source, symbols.block_of(source, 0), diff, match_running(original, original))
    whole = Made(base, ((source, base, after),), (unit,), KernelSymbols(exports, {VMLINUX: symbols}))
    assert verdict(whole, glue) == []


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_of_the_emitter_is_caught(name: str, made: Callable[[str], Made], glue: ModuleGlue) -> None:
    defect = DEFECTS[name]
    found = verdict(made(defect.pair), glue, defect)
    checks = names_of(found)
    print(f"{name}: caught by {', '.join(checks)}")
    assert defect.caught_by in checks, found


def names_of(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(complaint.partition(":")[0] for complaint in found))
