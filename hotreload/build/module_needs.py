# SPDX-License-Identifier: MIT
"""What kbuild runs for a module besides compiler, linker and make: the kernel's configuration says it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from hotreload.build.kernel_tree import KernelTree
from hotreload.errors import EnvironmentFault


@dataclass(frozen=True, slots=True)
class ModuleNeed:
    """``program`` of a Debian ``package`` is run when ``option`` is set, and ``beside`` is in the kernel's
    folder; without the latter kbuild leaves that step out."""

    option: str
    beside: str
    program: str
    package: str

    def is_of(self, tree: KernelTree) -> bool:
        """Do modules of this kernel need it?"""
        return tree.option(self.option) == "y" and (tree.output / self.beside).is_file()


MODULE_NEEDS = (
    # cmd_btf_ko in scripts/Makefile.modfinal, Linux commit 5f9ae91f7c0d ("kbuild: Build kernel module BTFs if
    # BTF is enabled and pahole supports it") (in v5.11). Without vmlinux it says that it skips BTF.
    ModuleNeed("DEBUG_INFO_BTF_MODULES", "vmlinux", "pahole", "pahole"),
)


def missing_for_modules(tree: KernelTree) -> Iterator[ModuleNeed]:
    """What modules of this kernel need, and this machine does not have."""
    return (need for need in MODULE_NEEDS if need.is_of(tree) and shutil.which(need.program) is None)


def require_for_modules(tree: KernelTree) -> None:
    """Raise EnvironmentFault (HR5106) that names the option, the program, and what installs it."""
    for need in missing_for_modules(tree):
        raise EnvironmentFault(
            f"{need.program} is not installed: kernel {tree.release} has {need.option}, so kbuild runs it for"
            " each module",
            code="HR5106",
            hint=f"apt-get install {need.package}  (hotreload doctor --fix does it)",
        )
