# SPDX-License-Identifier: MIT
"""The programs that kbuild runs for a module, depending on the kernel's configuration.

The compiler, the linker and make are not listed here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from hotreload.build.kernel_tree import KernelTree
from hotreload.errors import EnvironmentFault


@dataclass(frozen=True, slots=True)
class ModuleNeed:
    """A program that kbuild runs for each module.

    ``program``, of the Debian ``package``, is run if ``option`` is set and the file ``beside`` is in the
    kernel's folder. Without that file, kbuild skips the step.
    """

    option: str
    beside: str
    program: str
    package: str

    def is_of(self, tree: KernelTree) -> bool:
        """Return whether building modules for this kernel needs it."""
        return tree.option(self.option) == "y" and (tree.output / self.beside).is_file()


MODULE_NEEDS = (
    # cmd_btf_ko in scripts/Makefile.modfinal, Linux commit 5f9ae91f7c0d ("kbuild: Build kernel module BTFs if
    # BTF is enabled and pahole supports it") (in v5.11). Without vmlinux kbuild reports that it skips BTF.
    ModuleNeed("DEBUG_INFO_BTF_MODULES", "vmlinux", "pahole", "pahole"),
)


def missing_for_modules(tree: KernelTree) -> Iterator[ModuleNeed]:
    """Yield what modules of this kernel need and this machine does not have."""
    return (need for need in MODULE_NEEDS if need.is_of(tree) and shutil.which(need.program) is None)


def require_for_modules(tree: KernelTree) -> None:
    """Raise EnvironmentFault (HR5106), naming the option, the program, and what installs it."""
    for need in missing_for_modules(tree):
        raise EnvironmentFault(
            f"{need.program} is not installed: kernel {tree.release} has {need.option}, so kbuild runs it for"
            " each module",
            code="HR5106",
            hint=f"apt-get install {need.package}  (hotreload doctor --fix does it)",
        )
