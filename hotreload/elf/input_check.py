# SPDX-License-Identifier: MIT
"""Check that a file is a readable object, and that two objects are of one unit.

A file that the user names by mistake (an archive, a program, an object without symbols) is recognized and
named for what it is, before the reader looks at any table. The limits are sizes that no compiler or kernel
exceeds. They keep the reader from believing the numbers in a damaged file.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from hotreload.elf.constants import (
    EM_X86_64,
    ET_REL,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_MERGE,
    SHF_STRINGS,
    SHT_NOBITS,
    SHT_RELA,
    SHT_SYMTAB,
)
from hotreload.elf.model import ObjectFile, Symbol
from hotreload.errors import InputError

# KERNEL_IMAGE_SIZE of arch/x86/include/asm/page_64_types.h: nothing in a kernel or module is larger.
_MOST_BYTES: Final = 1 << 30
# MAX_OFILE_ALIGNMENT of gcc for ELF.
_MOST_ALIGNMENT: Final = 1 << 28

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
_ROW: Final = 24  # the size of both Elf64_Sym and Elf64_Rela
_TYPES: Final = {2: "a linked program", 3: "a shared library or program", 4: "a core dump"}
_MACHINES: Final = {
    3: "i386", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64", 22: "S390", 40: "ARM",
    183: "AArch64", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
# Other files that lie beside objects in a build, recognized by their first bytes.
_BEGINNINGS: Final = (
    (b"!<arch>\n", "an archive of objects", "extract one of the objects: ar x FILE.a NAME.o"),
    (b"!<thin>\n", "an archive of objects", "name one of the objects: ar t FILE.a lists them"),
    (b"BC\xc0\xde", "LLVM bitcode, without machine code", "compile it without -flto"),
)
_WANTED: Final = "name an object that gcc compiled for x86-64: FILE.o or MODULE.ko"
_NAME_ONE: Final = "name an object file (.o or .ko)"
_AGAIN: Final = "compile it again"


class DamagedError(ValueError):
    """A table of an object says something that cannot be. The reader turns this into an InputError."""


def read_image(path: Path) -> bytes:
    """Return the bytes of a file that begins like an object. Raises InputError (HR1009)."""
    try:
        with FileIO(path, opener=_open) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: a device, pipe or socket, not an object file", hint=_NAME_ONE)
            return _read_whole(stream, status.st_size, str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: {reason}", hint=_NAME_ONE) from error


def _open(path: str, flags: int) -> int:
    # A pipe without a writer would let an ordinary open wait for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _read_whole(stream: FileIO, size: int, name: str) -> bytes:
    # Check the header first, so that a large file that is not an object is not read to its end.
    start = stream.read(_HEADER.size)
    check_header(start, size, name)
    if size > _MOST_BYTES:
        raise InputError(f"{name}: {size >> 20} MB is too large for the object of a unit", hint=_WANTED)
    return start + stream.readall()


def check_header(start: bytes, size: int, name: str) -> None:
    """Check that a file of ``size`` bytes that starts with ``start`` is a relocatable x86-64 object.

    Raises InputError.
    """
    if not size:
        raise InputError(f"{name}: an empty file", hint=_AGAIN)
    for beginning, what, hint in _BEGINNINGS:
        if start.startswith(beginning):
            raise InputError(f"{name}: {what}, not an object file", hint=hint)
    if not start.startswith(b"\x7fELF"):
        raise InputError(f"{name}: not an object file (no ELF header)", hint=_WANTED)
    if len(start) < _HEADER.size:
        raise InputError(f"{name}: truncated in its ELF header, after {len(start)} bytes", hint=_AGAIN)
    identity, kind, machine, *_ = _HEADER.unpack_from(start)
    if identity[5] == 2:
        raise InputError(f"{name}: an object for a big-endian machine, not for x86-64", hint=_WANTED)
    if machine != EM_X86_64:
        what = _MACHINES.get(machine, f"machine {machine}")
        raise InputError(f"{name}: an object for {what}, not for x86-64", hint=_WANTED)
    if identity[4] != 2 or identity[5] != 1:
        raise InputError(f"{name}: a 32-bit object, not a 64-bit one", hint="compile it with -m64")
    if kind != ET_REL:
        what = _TYPES.get(kind, f"an ELF file of type {kind}")
        raise InputError(f"{name}: {what}, not a relocatable object", hint=_WANTED)
    _check_end(start, size, name)


def _check_end(start: bytes, size: int, name: str) -> None:
    header = _HEADER.unpack_from(start)
    table, width, count = header[6], header[11], header[12]
    if not table:
        raise InputError(f"{name}: an object without sections", hint=_AGAIN)
    if width != _SECTION_HEADER.size:
        raise InputError(f"{name}: damaged: section headers of {width} bytes", hint=_AGAIN)
    # With more than 0xff00 sections, the count here is 0 and the first section header has it (gABI).
    end = table + width * max(count, 1)
    if end > size:
        raise InputError(f"{name}: truncated: its header says {end} bytes, but it has {size}", hint=_AGAIN)


def check_sections(headers: Sequence[tuple[int, ...]], names: Iterable[str], size: int, name: str) -> None:
    """Check that the section headers of a file of ``size`` bytes are plausible. Raises InputError.

    ``headers`` are the fields of each Elf64_Shdr, ``names`` the names of the sections.
    """
    in_file = zeros = 0
    for header, section in zip(headers, names, strict=True):
        _, kind, flags, _, start, length, _, _, align, width = header
        if section.startswith(".gnu.lto_"):
            raise InputError(
                f"{name}: compiled with -flto: its code is generated only when it is linked",
                hint="compile the unit without -flto, or with -fno-lto after it",
            )
        if not kind:
            continue
        if kind in (SHT_SYMTAB, SHT_RELA) and width != _ROW:
            raise InputError(f"{name}: damaged: {section} has entries of {width} bytes", hint=_AGAIN)
        if align & (align - 1) or align > _MOST_ALIGNMENT:
            raise InputError(f"{name}: damaged: {section} is aligned to {align} bytes", hint=_AGAIN)
        if kind == SHT_NOBITS:
            zeros += length
            if zeros > _MOST_BYTES:
                raise InputError(f"{name}: damaged: {section} has {length} bytes of zeros", hint=_AGAIN)
        elif start + length > size:
            raise InputError(f"{name}: truncated in section {section}", hint=_AGAIN)
        else:
            in_file += length
        if flags & SHF_EXECINSTR and flags & (SHF_MERGE | SHF_STRINGS):
            raise InputError(f"{name}: damaged: {section} is both code and strings", hint=_AGAIN)
        if flags & SHF_ALLOC and not section:
            raise InputError(f"{name}: damaged: a section of code or data has no name", hint=_AGAIN)
    if in_file > size:
        raise InputError(f"{name}: damaged: its sections overlap", hint=_AGAIN)


def no_symbols(headers: Sequence[tuple[int, ...]], name: str) -> InputError:
    """Return the error for an object without a symbol table. Without one, nothing says what its bytes are."""
    if not any(header[2] & SHF_ALLOC and header[5] for header in headers):
        return InputError(f"{name}: an object with neither code nor data", hint=_AGAIN)
    return InputError(
        f"{name}: stripped: it has no symbols", hint="use the object from before it was stripped"
    )


def check_pair(original: ObjectFile, patched: ObjectFile) -> None:
    """Check that two objects can be of one unit, before and after an edit. Raises InputError.

    This is for objects that the user names; a session knows what it compiled.
    """
    for obj in (original, patched):
        _check_unit(obj)
    files = set(original.files), set(patched.files)
    if all(files) and files[0].isdisjoint(files[1]):
        ours, theirs = (", ".join(sorted(names)[:3]) for names in files)
        raise _strangers(original, patched, f"the first was compiled from {ours}, the second from {theirs}")
    if _defined(original).isdisjoint(_defined(patched)):
        raise _strangers(original, patched, "they have no function and no variable in common")


def _check_unit(obj: ObjectFile) -> None:
    if not any(
        section.is_allocated and section.size and not _is_note(section.name) for section in obj.sections
    ):
        raise InputError(f"{obj.name}: an object with neither code nor data", hint=_AGAIN)
    # gcc puts the name of the source into each object, and a symbol for each function and variable. `strip
    # -g` removes the former, `strip --strip-unneeded` the static symbols, too. Then the values of static
    # variables would be lost unnoticed.
    comment = obj.section(".comment")
    by_gcc = comment is not None and b"GCC:" in comment.data
    if by_gcc and not obj.files and any(_is_nameless(symbol) for symbol in obj.symbols):
        raise InputError(
            f"{obj.name}: stripped: it lacks the names of its static functions and variables",
            hint="use the object from before it was stripped; strip -g is fine",
        )


def _is_nameless(symbol: Symbol) -> bool:
    section = symbol.section
    return symbol.anonymous and section is not None and section.name.startswith((".text", ".data", ".bss"))


def _is_note(section: str) -> bool:
    return section.startswith((".note", ".comment"))


def _defined(obj: ObjectFile) -> set[str]:
    return {
        name
        for symbol in obj.symbols
        if symbol.is_defined and not symbol.anonymous and (symbol.is_function or symbol.is_object)
        for name in (symbol.name, *symbol.aliases)
    }


def _strangers(original: ObjectFile, patched: ObjectFile, why: str) -> InputError:
    return InputError(
        f"{original.name} and {patched.name} are objects of two different units: {why}",
        hint="name the objects of one source file, before and after an edit",
    )
