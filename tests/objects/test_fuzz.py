# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Damaged objects: no traceback, no hang, and no difference that an answer passes over in silence.

The examples are the same each time. A longer search: HOTRELOAD_FUZZ=100000 pytest tests/objects/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import parse_object
from hotreload.errors import InputError
from tests.objects import oracle
from tests.objects.compiling import assembled, compiled
from tests.objects.damage import damaged, meant
from tests.objects.test_corpus import CORPUS

LONG: Final = int(os.environ.get("HOTRELOAD_FUZZ", "0"))
# Seconds of the processor for one example: a hang, and nothing else, takes so long.
PATIENCE: Final = 20.0
# Bytes that one example may ask for.
ROOM: Final = 6 << 30


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=LONG or examples,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


UNITS: Final = {
    "plain": """
        static int n = 3, many[4]; static const int table[] = {1, 2, OLD}; void *keep; int open_to_all = 5;
        static noinline int helper(int i) { static int count; return count++ + i * OLD; }
        static void work(void) { printk("work %d", n); }
        int f(int i) { keep = work; printk("text %s", "more"); return helper(i) + table[i & 1]; }
        int g(int i) { many[i & 3] += n; return open_to_all++ + i * 77; }
        int h(int i) { return f(i) + g(i); }
    """,
    "switch": """
        static const char *const words[] = {"zero", "one", "OLD"};
        int f(int i) { switch (i) { case 0: return printk("a"); case 1: return printk("b"); case 2: return 9;
            case 3: return printk("d"); case 4: return i * 77; case 5: return OLD; case 6: return 1; } return 0; }
        const char *g(int i) { return words[i]; }
        struct ops { int (*call)(int); const char *name; }; struct ops ops = {f, "ops"};
    """,
    "special": """
        extern int key;
        void warn(int i) { if (i) __asm__ volatile("1: .byte 0x0f, 0x0b\\n.pushsection __bug_table, \\"aw\\"\\n2: .long 1b - .\\n.long %c0 - .\\n.word OLD\\n.word 2\\n.org 2b + 12\\n.popsection" :: "i"("file.c")); }
        int load(int *p) { int v = 0; __asm__ volatile("1: mov %1, %0\\n2:\\n.pushsection __ex_table, \\"a\\"\\n.balign 4\\n.long 1b - ., 2b - ., OLD\\n.popsection" : "+r"(v) : "m"(*p)); return v; }
        int jump(void) { __asm__ goto("1: nop\\n.pushsection __jump_table, \\"aw\\"\\n.balign 8\\n.long 1b - ., %l[yes] - .\\n.quad %c0 - .\\n.popsection" :: "i"(&key) :: yes); return 1; yes: return OLD; }
        void alt(void) { __asm__ volatile("661: nop\\n nop\\n nop\\n nop\\n nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n.long 661b - ., 663f - .\\n.word OLD\\n.byte 662b - 661b, 664f - 663f\\n.popsection\\n.pushsection .altinstr_replacement, \\"ax\\"\\n663: call printk\\n664:\\n.popsection"); }
        void lock(int *p) { __asm__ volatile(".pushsection .smp_locks, \\"a\\"\\n.balign 4\\n.long 671f - .\\n.popsection\\n671: lock incl %0" : "+m"(*p)); }
        static int __init start(void) { return OLD; } void *started __section(".init.data") = start;
    """,
    "cold": """
        void bad(int) __attribute__((cold, noreturn));
        static notrace noinline int quiet(int i) { return i * OLD; }
        int f(int i) { if (i > 9) { printk("cold %d", i); bad(i); } return quiet(i) + 1; }
        int g(int i) { static int once[2]; return quiet(i) - once[i & 1]++; }
    """,
}  # fmt: skip
ASSEMBLY: Final = """
    .section .rodata.str1.8, "aMS", @progbits, 1
    .balign 8
    .LC0: .string "before"
    .LC1: .string "digits"
    .section .rodata.cst16, "aM", @progbits, 16
    .LC2: .quad 1, 2
    .LC3: .quad OLD, 4
    .text
    .type f, @function
    f: call __fentry__
       movzbl .LC1-1(%rdi), %eax
       movdqa .LC3(%rip), %xmm0
       movb $1, flag(%rip)
       cmpl $OLD, far+4(%rip)
       jmp g
    .size f, .-f
    .type alias, @function
    .set alias, f
    .size alias, 20
    .type g, @function
    g: mov $OLD, %eax
       je f
       ret
    .size g, .-g
    .data
    flag: .byte 1, 2, 3, 4
    .type far, @object
    far: .quad .LC1 + 2, flag + 1
    .size far, .-far
"""

Pair = tuple[bytes, bytes]
_made: dict[str, Pair] = {}


@pytest.fixture(autouse=True, scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small real objects, each before and after an edit."""
    place = tmp_path_factory.mktemp("fuzz")
    flags = {"switch": ["-fjump-tables"], "cold": ["-freorder-blocks-and-partition"], "plain": ["-gdwarf-4"]}
    for name, source in UNITS.items():
        for kind, more in (("", []), ("-whole", ["-fno-function-sections", "-fno-data-sections"])):
            _made[name + kind] = _pair(
                *(
                    compiled(source.replace("OLD", value), place / name / value, *flags.get(name, ()), *more)
                    for value in ("5", "6")
                )
            )
    _made["assembly"] = _pair(
        *(assembled(ASSEMBLY.replace("OLD", value), place / "assembly" / value) for value in ("5", "6"))
    )
    for original in sorted(CORPUS.glob("*.ORIG.o")):
        if original.stat().st_size < 30_000:
            (patched,) = CORPUS.glob(original.name.replace(".ORIG.o", ".PATCHED*.o"))
            _made[original.name] = _pair(original, patched)


def _pair(original: Path, patched: Path) -> Pair:
    return original.read_bytes(), patched.read_bytes()


@pytest.fixture(autouse=True)
def little_room() -> Iterator[None]:
    """An allocation of what a damaged number says fails here, and not on the machine of whoever meets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(soft, limit), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"one example took {PATIENCE} s")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# The corpus is there only when a fixture has compiled it: an index stands for one of its objects.
chosen = st.integers(0, 999).map(lambda number: _made[sorted(_made)[number % len(_made)]])


def answer(original: bytes, patched: bytes) -> ObjectDiff | None:
    """What the differ says; None when one of them is told to be no object."""
    with no_hang():
        try:
            ours, theirs = parse_object(original, "original.o"), parse_object(patched, "patched.o")
        except InputError as error:
            told = str(error)
        else:
            told = ""
            diff = diff_objects(ours, theirs)
            diff_unit(unit_object_of(ours), unit_object_of(theirs), {})
    if told:
        event(told.split(":")[1][:20])
        assert len(told) < 400
        assert "\n" not in told
        return None
    event(diff.verdict)
    return diff


@fuzzed(400)
@given(st.data())
def test_a_damaged_object_is_read_or_told_and_never_fails(data: st.DataObject) -> None:
    original, patched = data.draw(chosen)
    side = data.draw(st.booleans())
    bad = data.draw(damaged(original if side else patched))
    for pair in ((bad, patched), (bad, original), (original, bad)) if side else ((original, bad),):
        answer(*pair)


@fuzzed(700)
@given(st.data())
def test_no_difference_of_a_damaged_object_is_passed_over(data: st.DataObject) -> None:
    original, _ = data.draw(chosen)
    assert unexplained(original, data.draw(damaged(original, 2))) == []


@fuzzed(900)
@given(st.data())
def test_code_or_data_that_says_something_else_is_not_passed_over(data: st.DataObject) -> None:
    original, _ = data.draw(chosen)
    assert unexplained(original, data.draw(meant(original))) == []


@fuzzed(300)
@given(st.data())
def test_beside_a_change_another_one_is_not_passed_over(data: st.DataObject) -> None:
    original, patched = data.draw(chosen)
    both = data.draw(meant(patched))
    assert changed_at_least(original, patched, both) == []


def unexplained(original: bytes, patched: bytes) -> list[str]:
    """The places where two objects of one layout differ, and that an answer other than a refusal passes over."""
    diff = answer(original, patched)
    if diff is None or diff.verdict == "refused":
        return []
    try:
        ours, theirs = oracle.read(original), oracle.read(patched)
    except Exception as error:
        event(f"the oracle cannot read it: {type(error).__name__}")
        return []
    brought = Brought(diff, ours, theirs)
    return [
        f"{diff.verdict}: {(theirs.parts.get(section) or ours.parts[section]).name}+{offset:#x}"
        for section, offset in oracle.differences(ours, theirs)
        if not brought.explains(section, offset)
    ]


class Brought:
    """What an answer says about places: the stretches that a patch carries, and those it replaces or drops."""

    def __init__(self, diff: ObjectDiff, ours: oracle.Read, theirs: oracle.Read) -> None:
        self.ours, self.theirs = ours, theirs
        self.carries = diff.verdict == "patchable"
        self.places = [
            (s.section.index, s.value, s.value + s.size)
            for s in (
                *diff.carried,
                *diff.new_functions,
                *diff.removed_functions,
                *(twins.original for twins in diff.changed),
                *(twins.patched for twins in diff.changed),
            )
            if s.section is not None
        ]
        self.places += [
            (rewrite.patched.section.index, start, start + size)
            for rewrite in diff.rewrites
            if rewrite.patched.section is not None
            for offset, size in rewrite.places
            for start in [rewrite.patched.value + offset]
        ]
        self.waits = {note.symbol for note in diff.notes if note.code == "HR2201"}

    def explains(self, section: int, offset: int) -> bool:
        names = self._names(section)
        if all(name.startswith(oracle.UNSEEN) for name in self._names(section, offset)):
            return True
        if self._goes(section, offset):
            return True
        if names & oracle.ENTRIES and not self._is_read_by_nobody(section, offset):
            return self._is_entry_of_something_that_travels(section, offset)
        return self._is_filling(section, offset) or self._is_read_by_nobody(section, offset)

    def _travels(self, section: int, offset: int) -> bool:
        return any(section == place and start <= offset < end for place, start, end in self.places)

    def _waits(self, section: int, offset: int, names: set[str]) -> bool:
        """Code for loading, of which a note says that it waits."""
        covering = [*self.ours.covering(section, offset), *self.theirs.covering(section, offset)]
        return any(name.name in self.waits for name in covering) or bool(names & self.waits)

    def _is_entry_of_something_that_travels(self, section: int, offset: int) -> bool:
        """An entry counts with its function: a place that it names, or that names it, travels."""
        for read in (self.ours, self.theirs):
            for index, part in read.parts.items():
                for at, meanings in part.relocations.items():
                    for _, *meaning in meanings:
                        if meaning[0] != "place":
                            continue
                        if index == section and abs(at - offset) < 24 and self._goes(*meaning[1:]):
                            return True
                        # A replacement is named by its alternative, which names the code 4 bytes before.
                        before = [m[1:] for _, *m in part.relocations.get(at - 4, []) if m[0] == "place"]
                        points_here = meaning[1] == section and abs(meaning[2] - offset) < 32
                        if points_here and any(self._goes(*place) for place in ((index, at), *before)):
                            return True
        return False

    def _goes(self, section: int, offset: int) -> bool:
        names = self._names(section)
        return self._travels(section, offset) or self._waits(section, offset, names)

    def _is_filling(self, section: int, offset: int) -> bool:
        """Bytes between functions or variables, on both sides what fills."""
        for read in (self.ours, self.theirs):
            part = read.parts.get(section)
            if part is None:
                continue
            if read.covering(section, offset) or offset in part.relocations:
                return False
            if part.data[offset : offset + 1] and part.data[offset] not in (
                oracle.FILLING if part.flags & oracle.EXEC else {0}
            ):
                return False
        return True

    def _is_read_by_nobody(self, section: int, offset: int) -> bool:
        """A constant, or the code of an alternative, to which no relocation leads but of code that waits."""
        named = False
        for read in (self.ours, self.theirs):
            part = read.parts.get(section)
            names = read.covering(section, offset)
            named |= bool(names)
            if part is None or part.name == ".altinstr_replacement":
                continue
            if any(name.binding != "STB_LOCAL" for name in names) or part.flags & (
                oracle.EXEC | oracle.WRITE
            ):
                return False
        readers = list(self._readers(section))
        return all(readers) and (named or bool(readers) or ".altinstr_replacement" in self._names(section))

    def _names(self, section: int, offset: int = -1) -> set[str]:
        """The names of a section on either side, if it has that place."""
        parts = [read.parts[section] for read in (self.ours, self.theirs) if section in read.parts]
        return {part.name for part in parts if part.size > offset}

    def _readers(self, section: int) -> Iterator[bool]:
        """Of each place that refers to a section: whether that waits."""
        for read in (self.ours, self.theirs):
            for part in read.parts.values():
                for at, meanings in part.relocations.items():
                    leads = any(kind == "place" and place[0] == section for _, kind, *place in meanings)
                    if leads and part.index != section:
                        yield self._waits(part.index, at, {part.name})


def changed_at_least(original: bytes, patched: bytes, both: bytes) -> list[str]:
    """The places where the second change differs from the first one alone, and that do not travel with it."""
    diff = answer(original, both)
    if diff is None or diff.verdict == "refused":
        return []
    try:
        ours, theirs = oracle.read(patched), oracle.read(both)
    except Exception as error:
        event(f"the oracle cannot read it: {type(error).__name__}")
        return []
    brought = Brought(diff, theirs, theirs)
    brought.ours = ours
    # Where the second change undid the first, nothing is left to be explained.
    first = oracle.read(original)
    return [
        f"{diff.verdict}: {theirs.parts[section].name}+{offset:#x}"
        for section, offset in oracle.differences(ours, theirs)
        if not brought.explains(section, offset) and not _as_before(first, theirs, section, offset)
    ]


def _as_before(first: oracle.Read, now: oracle.Read, section: int, offset: int) -> bool:
    name = now.parts[section].name
    for part in first.parts.values():
        if part.name == name:
            same = part.data[offset : offset + 1] == now.parts[section].data[offset : offset + 1]
            return same and [m[-1] for m in part.relocations.get(offset, [])] == [
                m[-1] for m in now.parts[section].relocations.get(offset, [])
            ]
    return False


@fuzzed(150)
@given(st.data())
def test_types_that_are_damaged_do_not_fail(data: st.DataObject) -> None:
    # Drawn from the whole file, a byte of the types would come seldom.
    original, patched = _made["plain"]
    debug = parse_object(original, "unit.o").debug
    assert debug is not None
    bad = bytearray(original)
    start = bad.index(debug.abbreviations)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[start + data.draw(st.integers(0, len(debug.abbreviations) - 1))] = data.draw(st.integers(0, 255))
    answer(bytes(bad), patched)
    answer(patched, bytes(bad))


# --- what the search has found ---

THUNK = """
    void f(void) { __asm__ volatile("661: nop\\n nop\\n nop\\n nop\\n nop\\n662:\\n.pushsection .altinstructions, \\"a\\"\\n"
        ".long 661b - ., OLD - .\\n.word 7\\n.byte 662b - 661b, 5\\n.popsection"); }
"""


def test_an_alternative_that_is_another_objects_code_counts_by_its_name(tmp_path: Path) -> None:
    # x86's retpolines from v5.13 to v5.15: the replacement is code of the kernel's, with an undefined symbol.
    one, other = (
        compiled(THUNK.replace("OLD", name), tmp_path / name).read_bytes()
        for name in ("__x86_indirect_alt_call_rax", "__x86_indirect_alt_call_rbx")
    )
    diff = diff_objects(parse_object(one, "one.o"), parse_object(other, "other.o"))
    assert diff.changed_functions == ("f",)
    ((entry,),) = [
        [e for e in entries if e.row.name == ".altinstructions"] for entries in diff.entries.values()
    ]
    assert entry.replacement is None


def test_another_type_of_a_relocation_to_a_replacement_is_a_change(tmp_path: Path) -> None:
    before = parse_object(compiled(UNITS["special"].replace("OLD", "5"), tmp_path).read_bytes(), "before.o")
    after = parse_object((tmp_path / "unit.o").read_bytes(), "after.o")
    section = after.section(".altinstructions")
    assert section is not None
    section.relocations[1] = replace(section.relocations[1], type=24)
    assert diff_objects(before, after).changed_functions == ("alt",)
