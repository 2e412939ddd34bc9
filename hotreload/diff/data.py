# SPDX-License-Identifier: MIT
"""Passes over data: the state of the running kernel must keep its place and size."""

from __future__ import annotations

from hotreload.diff.correlate import base_name, is_constant, is_place_static
from hotreload.diff.pair import (
    Pair,
    defined_targets,
    is_bystander,
    is_exit_code,
    is_for_init,
    referrers_of,
)
from hotreload.diff.rewrites import UnwritableError, find_rewrite
from hotreload.diff.special_sections import is_entry_section, is_ordinary
from hotreload.elf.model import ObjectFile, Relocation, Section, StringRef, Symbol, SymbolRef
from hotreload.elf.references import takes_address
from hotreload.elf.value_uses import access_of

# struct kernel_param, one for each module_param() (include/linux/moduleparam.h)
PARAMETERS = "__param"
# Offset of ``ops`` in it. The kernel looks this member up with each access in sysfs (param_attr_show() and
# param_attr_store() of kernel/params.c), and reads all others only at load.
PARAMETER_OPERATIONS = 16
# DEFINE_TRACE() (include/linux/tracepoint.h), and the section where the kernel finds those of a module
TRACEPOINT = "__tracepoint_"
TRACEPOINTS = "__tracepoints"
# DEFINE_PER_CPU() (include/linux/percpu-defs.h)
PER_CPU = ".data..percpu"
SETTLED = "the kernel reads parameters only at load"
# __ro_after_init (include/linux/cache.h)
READ_ONLY_AFTER_INIT = ".data..ro_after_init"


def refuse_changed_common(pair: Pair) -> None:
    """Refuse another size of a variable in common storage (-fcommon). It has a size, but no section yet."""
    sizes = {s.name: s.size for s in pair.original.symbols if not s.is_defined}
    for symbol in pair.patched.symbols:
        if not symbol.is_defined and sizes.get(symbol.name, symbol.size) != symbol.size:
            was = sizes[symbol.name]
            message = f"'{symbol.name}' changed its size from {was} to {symbol.size} bytes"
            pair.refuse("HR2101", symbol.name, message)


def refuse_changed_data(pair: Pair) -> None:
    """Refuse another place or size of data that the running kernel holds. Collect new initial values."""
    for patched, original in pair.correlation.original_of.items():
        if not original.is_object or is_bystander(original):
            continue
        if refusal := _other_storage(original, patched, pair.held.get(original)):
            code, message = refusal
            is_told = original in pair.held or not is_constant(original)
            pair.refuse(
                code, original.name, message if is_told else message + _who_needs_the_old(pair, original)
            )
        elif pair.comparison.same(original, patched):
            continue
        elif is_for_init(original):
            pair.init_changed.append(original.name)
        else:
            _rewrite_or_refuse(pair, original, patched)


def _who_needs_the_old(pair: Pair, constant: Symbol) -> str:
    """Return what continues to use a constant as it was, for a message."""
    users = referrers_of(pair.original)[constant]
    tables = sorted(base_name(user.name) for user in users if user.is_object and not is_bystander(user))
    if tables:
        return f", and '{tables[0]}' points at the old one"
    return ", and code that runs at load has used the old one" if users else ""


def _rewrite_or_refuse(pair: Pair, original: Symbol, patched: Symbol) -> None:
    """Write a new initial value in place if that is possible. Otherwise refuse it."""
    try:
        section = original.section
        assert section is not None
        is_read_later = is_ordinary(section) or section.name == READ_ONLY_AFTER_INIT
        if not is_read_later and not _has_other_operations(pair, original, patched):
            raise UnwritableError(f"the kernel reads {section.name} only when it loads the module")
        is_parameter = original in _parameters(pair.original)
        rewrite = find_rewrite(original, patched, pair.comparison, pair.layouts, is_parameter)
        pair.rewrites.append(rewrite)
    except UnwritableError as why:
        what = _difference(pair, original, patched)
        message = f"the initial value of '{base_name(original.name)}' changed{what}; {why}"
        if original.section is not None and original.section.name == PARAMETERS:
            parameter = original.name.removeprefix("__param_")
            message = f"the mode or type of the module parameter '{parameter}' changed: {SETTLED}"
        pair.refuse("HR2103", original.name, message)


def _has_other_operations(pair: Pair, original: Symbol, patched: Symbol) -> bool:
    """Return whether a module parameter has other operations, and nothing else of it changed."""
    section = original.section
    if section is None or section.name != PARAMETERS or original.content != patched.content:
        return False
    rest = [[r for r in s.relocations if r.offset != PARAMETER_OPERATIONS] for s in (original, patched)]
    return pair.comparison.same_relocations(*rest)


def _parameters(obj: ObjectFile) -> set[Symbol]:
    """Return the variables of module parameters, which may be set by hand.

    Those of arrays and strings are found through the constants that describe them (struct kparam_array,
    struct kparam_string).
    """
    section = obj.section(PARAMETERS)
    found = set(defined_targets(section.relocations)) if section is not None else set()
    return found | {t for s in found if is_constant(s) for t in defined_targets(s.relocations)}


def _other_storage(original: Symbol, patched: Symbol, held: str | None) -> tuple[str, str] | None:
    """Return the (code, message) of why the memory of a variable cannot hold it any more, or None if it can.

    ``held``: who may have the address of a constant.
    """
    name = base_name(original.name)
    more = f", and something may use the old one: {held}" if held else ""
    if _memory(original) != _memory(patched):
        assert original.section is not None
        assert patched.section is not None
        return "HR2105", f"'{name}' moved from {original.section.name} to {patched.section.name}{more}"
    if original.size != patched.size:
        code = "HR2103" if held else "HR2101"
        return code, f"'{name}' changed its size from {original.size} to {patched.size} bytes{more}"
    if _alignment(original) < _alignment(patched):
        return "HR2101", f"'{name}' needs a larger alignment: {_alignment(patched)} bytes{more}"
    return None


def _memory(symbol: Symbol) -> object:
    """Return what kind of memory holds a variable. A special section counts by its name."""
    section = symbol.section
    assert section is not None
    return section.is_writable if is_ordinary(section) else section.name


def _alignment(symbol: Symbol) -> int:
    """Return the alignment of a variable in bytes.

    It is unknown, and taken as 1, for a variable that shares its section.
    """
    section = symbol.section
    return section.align if section is not None and section.symbols == [symbol] else 1


def _difference(pair: Pair, original: Symbol, patched: Symbol) -> str:
    """Return where two objects of the same size first differ, for a message."""
    if original.content != patched.content:
        bytes_of_both = zip(original.content, patched.content, strict=True)
        at = next(i for i, (a, b) in enumerate(bytes_of_both) if a != b)
        start = at - at % 4
        was, now = (int.from_bytes(s.content[start : start + 4], "little") for s in (original, patched))
        return f" at offset {start}: {was:#x} -> {now:#x}"
    for one, other in zip(original.relocations, patched.relocations, strict=False):
        if not pair.comparison.same_relocations([one], [other]):
            return f" at offset {one.offset}: {_described(one)} -> {_described(other)}"
    return ""


def _described(relocation: Relocation) -> str:
    target = relocation.target
    if isinstance(target, SymbolRef):
        return target.symbol.name + (f"+{relocation.addend:#x}" if relocation.addend > 0 else "")
    return repr(target.text.decode(errors="replace")) if isinstance(target, StringRef) else "a constant"


def refuse_data_out_of_place(pair: Pair) -> None:
    """Refuse symbols that entered or left a section that the kernel reads only at load.

    The running kernel would not notice the change.
    """
    sides = (
        (pair.patched, pair.correlation.original_of, "added"),
        (pair.original, pair.correlation.patched_of, "removed"),
    )
    told: set[str] = set()
    for obj, twins, how in sides:
        for symbol in obj.symbols:
            if symbol.name.startswith(TRACEPOINT) and symbol.is_defined and symbol not in twins:
                name = symbol.name.removeprefix(TRACEPOINT)
                told.add(name)
                message = (
                    f"the tracepoint '{name}' was {how}: the kernel learns of tracepoints only"
                    " when it loads a module"
                )
                pair.refuse("HR2105", symbol.name, message)

    def is_told(symbol: Symbol) -> bool:
        """Return whether this symbol is part of a tracepoint that is already refused."""
        return any(symbol.name.endswith(f"_{name}") for name in told)

    for symbol in pair.patched.symbols:
        if symbol in pair.correlation.original_of or is_told(symbol):
            continue
        if not (section := _read_at_load(symbol)):
            continue
        if is_exit_code(symbol):
            continue  # it only matters to its callers, and those are reported
        if is_for_init(symbol):
            pair.init_changed.append(symbol.name)
        else:
            pair.refuse("HR2105", symbol.name, _named_at_load(symbol, section, "added to"))
    for symbol in pair.original.symbols:
        if symbol in pair.correlation.patched_of or is_told(symbol):
            continue
        if not (section := _read_at_load(symbol)):
            continue
        if not is_for_init(symbol):
            pair.refuse("HR2105", symbol.name, _named_at_load(symbol, section, "removed from"))


def _read_at_load(symbol: Symbol) -> Section | None:
    """Return the section of a named symbol if the kernel reads it while it loads a module, else None."""
    section = symbol.section
    if section is None or not symbol.size or symbol.anonymous:
        return None
    return None if is_bystander(symbol) or is_ordinary(section) else section


def refuse_shifted_neighbours(pair: Pair) -> None:
    """Refuse patched code that uses a section whose variables have other neighbours than before.

    Where variables share a section, ``a[-1]`` and the end of ``a`` are addresses in a neighbour. That does
    not matter as long as the neighbours are the same, or if code only reads and writes within variables.
    """
    used = {
        relocation.target.symbol.section
        for symbol in pair.carried
        for relocation in symbol.relocations
        if isinstance(relocation.target, SymbolRef)
        and (takes_address(symbol, relocation) or access_of(symbol, relocation).offset is None)
    }
    for section in pair.patched.sections:
        if section not in used or not section.is_writable or is_entry_section(section):
            continue
        if _has_new_neighbours(pair, section):
            message = f"section {section.name} no longer holds the same variables"
            pair.refuse("HR2105", section.name, message)


def _has_new_neighbours(pair: Pair, section: Section) -> bool:
    original = pair.original.section(section.name)
    after = [s for s in section.symbols if s.is_object]
    before = [s for s in original.symbols if s.is_object] if original is not None else []
    if len(after) < 2 or all(is_place_static(symbol) for symbol in after):
        return False
    twins = pair.correlation.original_of
    # The statics of macros have no twins, and no code computes addresses relative to them.
    ours: list[object] = [base_name(s.name) if is_place_static(s) else s for s in before]
    theirs = [base_name(s.name) if is_place_static(s) else twins.get(s) for s in after]
    places = [s.value for s in before] == [s.value for s in after]
    return bool(before) and not (places and ours == theirs)


def _named_at_load(symbol: Symbol, section: Section, how: str) -> str:
    """Return the message for a symbol that is added to, or removed from, a section that is read at load."""
    if section.name == PARAMETERS:
        parameter = symbol.name.removeprefix("__param_")
        return f"the module parameter '{parameter}' was {how.split()[0]}: {SETTLED}"
    if section.name.startswith(PER_CPU):
        return (
            f"the per-CPU variable '{symbol.name}' was {how.split()[0]}:"
            " the kernel allocates per-CPU data only at load"
        )
    return f"'{symbol.name}' was {how} {section.name}, which the kernel reads only at load"
