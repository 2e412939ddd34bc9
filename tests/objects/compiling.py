# SPDX-License-Identifier: MIT
"""C and assembly, compiled as kbuild compiles a module's unit, so that a test shows its input in itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from hotreload.diff.object_diff import ObjectDiff, diff_objects
from hotreload.elf.model import ObjectFile
from hotreload.elf.reader import read_object

# The flags of a 6.1 kernel that shape an object, and the two of hotreload/build/replay.py.
FLAGS: Final = """-std=gnu11 -O2 -mcmodel=kernel -fno-PIE -fno-strict-aliasing -fno-common -fshort-wchar
    -mno-red-zone -mno-sse -mno-80387 -mpreferred-stack-boundary=3 -fno-jump-tables
    -fno-asynchronous-unwind-tables -fcf-protection=none -pg -mrecord-mcount -mfentry
    -fno-delete-null-pointer-checks -fno-strict-overflow
    -fno-allow-store-data-races -falign-jumps=1 -falign-loops=1 -fno-stack-protector
    -ffunction-sections -fdata-sections -w""".split()

# What inline C needs of the kernel's headers.
HEAD: Final = """
#define noinline __attribute__((noinline))
#define notrace __attribute__((no_instrument_function))
#define __section(name) __attribute__((section(name)))
#define __init __section(".init.text") notrace
int printk(const char *, ...);
"""


def compiled(source: str, into: Path, *flags: str, name: str = "unit.c") -> Path:
    """The object of C source. The file has the same name each time, as an edited file does."""
    into.mkdir(parents=True, exist_ok=True)
    (into / name).write_text(HEAD + source)
    return _made(["gcc", *FLAGS, *flags, "-c", name, "-o", f"{Path(name).stem}.o"], into, name)


def assembled(source: str, into: Path, name: str = "unit.s") -> Path:
    """The object of assembly source."""
    into.mkdir(parents=True, exist_ok=True)
    (into / name).write_text(source)
    return _made(["as", name, "-o", f"{Path(name).stem}.o"], into, name)


def linked(into: Path, *objects: Path, name: str = "module.ko") -> Path:
    """One relocatable file of several, as kbuild links a module."""
    run(["ld", "-r", "-o", name, *map(str, objects)], into)
    return into / name


def difference(tmp_path: Path, before: str, after: str, *flags: str) -> ObjectDiff:
    """Compile both sources and compare what comes out."""
    return diff_objects(
        read_object(compiled(before, tmp_path / "before", *flags)),
        read_object(compiled(after, tmp_path / "after", *flags)),
    )


def object_of(source: str, tmp_path: Path, *flags: str) -> ObjectFile:
    return read_object(compiled(source, tmp_path, *flags))


def run(command: list[str], cwd: Path) -> str:
    """Run a program of binutils or gcc; its standard output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def missing_tools() -> list[str]:
    return [tool for tool in ("gcc", "as", "ld", "objdump", "readelf") if shutil.which(tool) is None]


def _made(command: list[str], folder: Path, name: str) -> Path:
    run(command, folder)
    return folder / f"{Path(name).stem}.o"
