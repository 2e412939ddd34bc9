# SPDX-License-Identifier: MIT
"""The base of one guest, in parts: a module that was loaded anew has a later base than the rest.

At first there is one part, what the guest booted. Each module belongs to one part, and so do its units; a
header that two parts were made of may have had other contents for each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from hotreload.build.base import Base
from hotreload.build.built import Build, BuiltModule, Stamp, UnitInputs, is_stamp, sha256
from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.kernel_sources import AUTOCONF
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.other_files import stamp


@dataclass(frozen=True, slots=True)
class GuestBase:
    """``build``: what kbuild noted when it ran last; ``makefiles``: the digests of those that it read then.

    ``parts``: the latest one last; no two have a module in common. ``configuration``: see configuration_of.
    """

    build: Build
    makefiles: Mapping[Path, str]
    parts: tuple[Base, ...]
    configuration: str

    @classmethod
    def booted(cls, build: Build, base: Base) -> Self:
        """That of a guest that has just booted."""
        return cls(build, base.makefiles, (base,), configuration_of(build.tree))

    @property
    def tree(self) -> KernelTree:
        return self.build.tree

    @property
    def is_kernel(self) -> bool:
        """Is this a kernel's own tree?"""
        return self.build.is_kernel

    @property
    def modules(self) -> tuple[BuiltModule, ...]:
        """As the guest has them, in the order in which they were built."""
        if len(self.parts) == 1:
            return self.parts[0].modules
        held = {built.name: built for part in self.parts for built in part.modules}
        return tuple(held[built.name] for built in self.build.modules)

    @property
    def units(self) -> tuple[TranslationUnit, ...]:
        return tuple(unit for module in self.modules for unit in module.units)

    @property
    def beside_the_tree(self) -> frozenset[str]:
        """Modules of a kernel's tree that were built anew: whoever loads the tree's file loads another."""
        # vmlinux is always of the part that was booted.
        later = (part for part in self.parts if part.id != self.parts[0].id) if self.is_kernel else ()
        return frozenset(built.name for part in later for built in part.modules)

    def of(self, unit: TranslationUnit) -> Base:
        """The part that a unit belongs to."""
        if len(self.parts) == 1:
            return self.parts[0]
        return next(part for part in self.parts if any(each.name == unit.module for each in part.modules))

    def carried_otherwise(self) -> dict[Path, set[str]]:
        """The files that are in modules as they are, and are not as they were; each with these modules."""
        found: dict[Path, set[str]] = {}
        for part in self.parts:
            for (module, file), digest in part.carried.items():
                if _digest(file, stamp(file)) != digest:
                    found.setdefault(file, set()).add(module)
        return found

    def differing(self) -> tuple[Path, ...]:
        """The sources, and what is in modules as it is, that are not as they were for one of the parts."""
        files = {file: None for part in self.parts for file in part.digests if not is_stamp(file)}
        now = {file: sha256(file) for file in files}
        differing = (
            file
            for file in files
            if any(part.digests.get(file, now[file]) != now[file] for part in self.parts)
        )
        return (*differing, *self.carried_otherwise())

    def anew_since(self, other: GuestBase) -> frozenset[str]:
        """The modules that are not of the same part in both."""
        places = [
            {built.name: part.id for part in base.parts for built in part.modules} for base in (self, other)
        ]
        return frozenset(
            name for name in places[0].keys() | places[1] if places[0].get(name) != places[1].get(name)
        )

    def with_anew(self, build: Build, base: Base, names: Iterable[str]) -> GuestBase:
        """The same, but that these modules are now those of another base, recorded of ``build``."""
        anew = frozenset(names)
        rest = (_only(part, {built.name for built in part.modules} - anew) for part in self.parts)
        parts = (*(part for part in rest if part.modules), _only(base, anew))
        held = tuple(part for part in parts if part.modules)
        return GuestBase(build, base.makefiles, held, self.configuration)


# An object that was built elsewhere may be large, and is looked at with each save.
@functools.lru_cache(maxsize=256)
def _digest(file: Path, _seen: Stamp | None) -> str:
    return sha256(file)


def configuration_of(tree: KernelTree) -> str:
    """A digest of what is compiled as the kernel's configuration; kbuild names it in no list of inputs."""
    return sha256(tree.output / AUTOCONF)


def _only(base: Base, names: Iterable[str]) -> Base:
    """The part of a base that these modules are."""
    wanted = frozenset(names)
    modules = tuple(built for built in base.modules if built.name in wanted)
    if len(modules) == len(base.modules):
        return base
    objects = dict.fromkeys(unit.object for built in modules for unit in built.units)
    inputs = UnitInputs({target: base.inputs[target] for target in objects})
    digests = {file: base.digests[file] for file in inputs.files}
    carried = {(name, file): digest for (name, file), digest in base.carried.items() if name in wanted}
    made = {target: digest for target, digest in base.objects.items() if target in objects}
    return replace(base, modules=modules, inputs=inputs, digests=digests, carried=carried, objects=made)
