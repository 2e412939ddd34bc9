# SPDX-License-Identifier: MIT
"""A kernel's tree in miniature: sources, and what kbuild leaves of a build, made by gcc, ar and ld."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

from hotreload.build.cmd_files import parse_dependency_file
from hotreload.build.kernel_tree import KernelTree
from tests.objects.compiling import FLAGS, run

SCRIPT = (
    "SECTIONS { . = 0xffffffff81000000; .text : { *(.text .text.*) } .data : { *(.data .data.* .bss*) } }"
)
PLAIN = [word for word in FLAGS if not word.endswith("-sections")]


class Miniature:
    """``sources``: path below the tree to text; each ``.c`` below mod/ is a module, the rest is vmlinux."""

    def __init__(self, folder: Path, sources: Mapping[str, str]) -> None:
        self.source, self.output = folder / "linux", folder / "linux"
        files = {
            "Kconfig": "",
            "Makefile": "",
            "init/main.c": "int main_thing;",
            ".config": "CONFIG_X86_64=y\n",
        }
        for name, text in {**files, **sources}.items():
            self.write(name, text)
        self.units = [name for name in sources if name.endswith(".c")]
        self.build()

    @property
    def tree(self) -> KernelTree:
        out = self.output
        config, image = out / ".config", out / "arch/x86/boot/bzImage"
        return KernelTree("6.1.0", "x86_64", self.source, out, image, out, config, out / "System.map")

    def write(self, name: str, text: str) -> Path:
        file = self.source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def build(self) -> None:
        """Compile and link everything, and leave the notes that kbuild leaves."""
        time.sleep(0.02)  # later than what was saved, also by a clock that ticks slowly
        for name in self.units:
            self._compile(name)
        in_vmlinux = [f"{name[:-2]}.o" for name in self.units if not name.startswith("mod/")]
        (self.output / "vmlinux.a").unlink(missing_ok=True)
        run(["ar", "cDPrST", "vmlinux.a", *in_vmlinux], self.output)
        (self.output / "script").write_text(SCRIPT)
        words = ["ld", "-T", "script", "--build-id=sha1", "--unresolved-symbols=ignore-all", "-o", "vmlinux"]
        run([*words, *in_vmlinux], self.output)
        modules = [name[:-2] for name in self.units if name.startswith("mod/")]
        for stem in modules:
            run(["ld", "-r", "-o", f"{stem}.ko", f"{stem}.o"], self.output)
            (self.output / f"{stem}.mod").write_text(f"{stem}.o\n")
        (self.output / "modules.order").write_text("".join(f"kernel/{stem}.ko\n" for stem in modules))

    def _compile(self, name: str) -> None:
        target = f"{name[:-2]}.o"
        notes = Path(self.output, target).with_suffix(".d")
        command = ["gcc", "-I./include", *PLAIN, "-c", "-o", target, name]
        run([*command, "-MD", "-MF", str(notes)], self.output)
        files = [file for file in parse_dependency_file(notes.read_text()) if not os.path.isabs(file)]
        notes.unlink()
        place = Path(self.output, target)
        place.with_name(f".{place.name}.cmd").write_text(
            f"cmd_{target} := {shlex.join(command)}\n\nsource_{target} := {name}\n\n"
            f"deps_{target} := \\\n    $(wildcard include/config/SMP) \\\n"
            + "".join(f"  {file} \\\n" for file in files[1:])
        )
