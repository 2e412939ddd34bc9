# SPDX-License-Identifier: MIT
"""Find the variables that a module's folder expects make to be given, from its Makefile and dkms.conf.

Many Makefiles have two parts: kbuild reads one, and the author's ``make`` uses the other, which calls kbuild
with ``CONFIG_FOO=m``. We call kbuild directly, so we ask make what the author's part would pass to it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotreload import process

# A module, or a source of one, that depends on an option that may be set outside.
CONDITIONAL = re.compile(r"^\s*(?:obj|[\w-]+)-\$[({]\s*(?:CONFIG_)?\w+[)}]|\bCONFIG_\w+", re.MULTILINE)
ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
# A variable in make's database, below the line that says where it comes from.
VARIABLE = re.compile(r"^# (?:makefile|environment under -e) .*\n(CONFIG_\w+) :?= (.*)$", re.MULTILINE)
# Variables that we set ourselves: the kernel, the folder, the number of jobs.
OURS = frozenset(
    "M KDIR KERNELDIR KERNEL_DIR KERNEL_SRC KERNEL_SOURCE KSRC KBUILD KVER KVERSION KERNELRELEASE"
    " KERNELVERSION SUBDIRS CURDIR O V W INSTALL_MOD_PATH INSTALL_MOD_DIR DESTDIR".split()
)
ASK_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class Dkms:
    """The content of a dkms.conf: the installed ``modules``, and the ``variables`` of its MAKE line."""

    modules: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


def environment_in(folder: Path) -> dict[str, str]:
    """Return the environment for make, as a shell in that folder would have it.

    Makefiles use ``$(PWD)``, and a make that started us must not pass on its flags and job slots.
    """
    return {"MAKEFLAGS": "", "MAKELEVEL": "0", "PWD": str(folder)}


async def wanted_variables(folder: Path) -> tuple[str, ...]:
    """Return ``NAME=VALUE`` for make from the folder's Makefile and its dkms.conf, which takes precedence."""
    found = {**await _of_makefile(folder), **_assignments(read_dkms(folder).variables)}
    return tuple(f"{name}={value}" for name, value in found.items())


def read_dkms(folder: Path) -> Dkms:
    """Return what dkms.conf(5) says; empty if there is none. Shell variables are not expanded."""
    try:
        text = (folder / "dkms.conf").read_text(errors="replace")
    except OSError:
        return Dkms()
    lines = text.replace("\\\n", " ").splitlines()
    values = {
        found[1]: _unquoted(found[2])
        for line in lines
        if (found := re.match(r"\s*(MAKE(?:\[0\])?|BUILT_MODULE_NAME\[\d+\])\s*=\s*(.*)", line))
    }
    modules = [value for name, value in values.items() if name.startswith("BUILT") and "$" not in value]
    line = values.get("MAKE[0]") or values.get("MAKE") or ""
    words = _words(line.replace("'", " ") if line.count("'") % 2 else line)
    return Dkms(tuple(each.replace("-", "_") for each in modules if each), tuple(_variables(words)))


async def _of_makefile(folder: Path) -> dict[str, str]:
    """Return the options that the author's part of a Makefile sets, directly or for kbuild."""
    makefile = folder / "Makefile"
    try:
        text = makefile.read_text(errors="replace")
    except OSError:
        return {}
    recipe = (folder / "Kbuild").read_text(errors="replace") if (folder / "Kbuild").is_file() else text
    if not CONDITIONAL.search(recipe) or "CONFIG_" not in text:
        return {}
    # -n runs no recipes, except those that call make again. If these find no kernel, they fail, which does no
    # harm. An empty KERNELRELEASE selects the author's part.
    try:
        asked = await process.run(
            ["make", "-C", folder, "-n", "-p", "--no-print-directory", "KERNELRELEASE="],
            timeout=ASK_LIMIT,
            cwd=folder,
            env=environment_in(folder),
        )
    except TimeoutError:
        return {}
    said = asked.stdout.decode(errors="replace")
    values = {name: value for name, value in VARIABLE.findall(said) if "$" not in value}
    for line in said.splitlines():
        if re.search(r"\s-C\s*\S", line) and re.search(r"\s(?:M|SUBDIRS)=", line):
            values |= _assignments(_variables(_words(line)))
            break
    return values


def _variables(words: list[str]) -> Iterator[str]:
    for word in words:
        found = ASSIGNED.fullmatch(word)
        if found and found[1] not in OURS and "$" not in word:
            yield word


def _assignments(words: tuple[str, ...] | Iterator[str]) -> Mapping[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _unquoted(value: str) -> str:
    value = value.strip()
    quote = value[:1]
    if quote in ("'", '"') and value.find(quote, 1) > 0:
        return value[1 : value.find(quote, 1)]
    return value.split("#")[0].strip()
