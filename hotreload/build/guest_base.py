# SPDX-License-Identifier: MIT
"""The base of one guest, in parts: a module that was reloaded has a later base than the rest.

At first there is one part, what the guest booted. Each module, with its units, belongs to exactly one part. A
header that is used in two parts may have had different contents in each.
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
    """The base of a guest.

    ``build``: what the last kbuild run recorded. ``makefiles``: digests of the Makefiles that it read.
    ``parts``: latest last; no two have a module in common. ``configuration``: see configuration_of.
    """

    build: Build
    makefiles: Mapping[Path, str]
    parts: tuple[Base, ...]
    configuration: str

    @classmethod
    def booted(cls, build: Build, base: Base) -> Self:
        """Return the base of a guest that has just booted."""
        return cls(build, base.makefiles, (base,), configuration_of(build.tree))

    @property
    def tree(self) -> KernelTree:
        return self.build.tree

    @property
    def is_kernel(self) -> bool:
        """Return whether this is a kernel's own tree."""
        return self.build.is_kernel

    @property
    def modules(self) -> tuple[BuiltModule, ...]:
        """The modules that the guest has, in build order."""
        if len(self.parts) == 1:
            return self.parts[0].modules
        held = {built.name: built for part in self.parts for built in part.modules}
        return tuple(held[built.name] for built in self.build.modules)

    @property
    def units(self) -> tuple[TranslationUnit, ...]:
        return tuple(unit for module in self.modules for unit in module.units)

    @property
    def beside_the_tree(self) -> frozenset[str]:
        """Modules of a kernel's tree that were rebuilt outside it.

        The ``.ko`` in the tree is a different one.
        """
        # vmlinux always belongs to the part that was booted.
        later = (part for part in self.parts if part.id != self.parts[0].id) if self.is_kernel else ()
        return frozenset(built.name for part in later for built in part.modules)

    def of(self, unit: TranslationUnit) -> Base:
        """Return the part that a unit belongs to."""
        if len(self.parts) == 1:
            return self.parts[0]
        return next(part for part in self.parts if any(each.name == unit.module for each in part.modules))

    def carried_otherwise(self) -> dict[Path, set[str]]:
        """Return the carried files that have changed, each with the modules that contain it."""
        found: dict[Path, set[str]] = {}
        for part in self.parts:
            for (module, file), digest in part.carried.items():
                if _digest(file, stamp(file)) != digest:
                    found.setdefault(file, set()).add(module)
        return found

    def differing(self) -> tuple[Path, ...]:
        """Return the sources and carried files that differ from what was recorded, for at least one part."""
        files = {file: None for part in self.parts for file in part.digests if not is_stamp(file)}
        now = {file: sha256(file) for file in files}
        differing = (
            file
            for file in files
            if any(part.digests.get(file, now[file]) != now[file] for part in self.parts)
        )
        return (*differing, *self.carried_otherwise())

    def anew_since(self, other: GuestBase) -> frozenset[str]:
        """Return the modules that belong to different parts in the two bases."""
        places = [
            {built.name: part.id for part in base.parts for built in part.modules} for base in (self, other)
        ]
        return frozenset(
            name for name in places[0].keys() | places[1] if places[0].get(name) != places[1].get(name)
        )

    def with_anew(self, build: Build, base: Base, names: Iterable[str]) -> GuestBase:
        """Return a copy in which these modules belong to another base, which was recorded from ``build``."""
        anew = frozenset(names)
        rest = (_only(part, {built.name for built in part.modules} - anew) for part in self.parts)
        parts = (*(part for part in rest if part.modules), _only(base, anew))
        held = tuple(part for part in parts if part.modules)
        return GuestBase(build, base.makefiles, held, self.configuration)


# A prebuilt object may be large, and is checked at each save.
@functools.lru_cache(maxsize=256)
def _digest(file: Path, _seen: Stamp | None) -> str:
    return sha256(file)


def configuration_of(tree: KernelTree) -> str:
    """Return a digest of the kernel's configuration as compiled.

    No list of inputs by kbuild has that file.
    """
    return sha256(tree.output / AUTOCONF)


def _only(base: Base, names: Iterable[str]) -> Base:
    """Return the part of a base that consists of these modules."""
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
