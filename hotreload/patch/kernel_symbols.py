# SPDX-License-Identifier: MIT
"""Everything that a patch may refer to: the exports, and the symbols of vmlinux and of each module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload.diff.holders import IsOwn, nothing_own
from hotreload.patch.symbols import VMLINUX, Export, ModuleSymbols, ObjectSymbols, read_symvers
from hotreload.patch.vmlinux_symbols import VmlinuxSymbols


@dataclass(frozen=True, slots=True)
class KernelSymbols:
    """Everything that a patch may refer to: the exports, and the symbols of the modules being patched."""

    exports: Mapping[str, Export]
    modules: Mapping[str, ObjectSymbols]


def read_symbols(symvers: Iterable[Path], modules: Mapping[str, Path]) -> KernelSymbols:
    """Read the exports of the kernel and of modules built outside it.

    ``modules``: the linked files that may be patched, by name. Each is read on demand.
    """
    exports: dict[str, Export] = {}
    for path in symvers:
        exports |= read_symvers(path)
    return KernelSymbols(exports, _ReadWhenAsked(modules))


class _ReadWhenAsked(Mapping[str, ObjectSymbols]):
    """The symbols of each module, read on demand because a kernel has thousands of modules."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._read: dict[str, ObjectSymbols] = {}

    def __getitem__(self, name: str) -> ObjectSymbols:
        if name not in self._read:
            self._read[name] = _read_symbols(name, self._files[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read_symbols(name: str, file: Path) -> ObjectSymbols:
    return VmlinuxSymbols(file) if name == VMLINUX else ModuleSymbols(name, file)


def own_names(symbols: KernelSymbols | None, module: str) -> IsOwn:
    """Return a predicate: whether a module defines a function of that name. It is never true for vmlinux."""
    if symbols is None or module == VMLINUX or module not in symbols.modules:
        return nothing_own
    return lambda name: symbols.modules[module].has_global(name)
