# SPDX-License-Identifier: MIT
"""Kernel configurations of ours: what a fragment asks for, merged into a .config, and what came of it. Pure.

A fragment is a list of ``CONFIG_NAME=VALUE`` under comments. The comment right above some settings is the
reason for all of them, up to the next comment or empty line. One that begins with "where offered:" is for
what is asked only of kernels that know it: kconfig writes a line for each option that can be set, no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import hotreload
from hotreload.errors import InputError, KernelUnfitError

# The names that --config knows, and the file that is merged into a .config that is there already.
NAMED = ("minimal", "virtio", "debug")
FRAGMENT = "fragment"
WHERE_OFFERED = "where offered: "


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a fragment. ``name`` without ``CONFIG_``; ``value`` as in a .config, ``n`` for not set.

    ``optional``: a kernel that does not offer it does not need it.
    """

    name: str
    value: str
    reason: str
    optional: bool = False

    @property
    def line(self) -> str:
        """The setting as a .config has it."""
        return f"# CONFIG_{self.name} is not set" if self.value == "n" else f"CONFIG_{self.name}={self.value}"

    def met(self, options: Mapping[str, str]) -> bool:
        """Is it so in ``options``?"""
        return options.get(self.name, self.value if self.optional else "n") == self.value


def config_file(name: str) -> Path:
    """A named configuration, in the installed package or beside it in a checkout; else a file of that name.

    Raises InputError (HR1009) for what is neither.
    """
    package = Path(hotreload.__file__).parent
    ours = name in (*NAMED, FRAGMENT)
    folders = (package / "_vmimages", package.parent / "vmimages")
    candidates = [folder / f"{name}.config" for folder in folders] if ours else [Path(name).expanduser()]
    for file in candidates:
        if file.is_file():
            return file.resolve()
    raise InputError(
        f"there is no kernel configuration {name}", hint=f"--config names {', '.join(NAMED)}, or a file"
    )


def read_text(file: Path) -> str:
    """The text of a configuration. Raises InputError (HR1009) where it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", hint="mend its permissions") from error


def configuration(file: Path) -> str:
    """The text of a configuration, below that of the one beside it that ``# with: NAME`` names: of two lines
    for one option the later one holds.

    Raises InputError (HR1009) where one cannot be read.
    """
    text = read_text(file)
    if named := re.search(r"^# with: (\S+)$", text, re.MULTILINE):
        return configuration(file.with_name(named[1])) + text
    return text


def read_settings(text: str) -> tuple[Setting, ...]:
    """The settings of a fragment, in its order, each with its reason."""
    found: list[Setting] = []
    comment: list[str] = []
    below = False
    for line in map(str.strip, text.splitlines()):
        if setting := re.fullmatch(r"CONFIG_(\w+)=(.+)", line):
            reason = " ".join(comment)
            optional = reason.startswith(WHERE_OFFERED)
            found.append(Setting(setting[1], setting[2], reason.removeprefix(WHERE_OFFERED), optional))
            below = True
            continue
        if below or not line:
            comment, below = [], False
        if line:
            comment.append(line.lstrip("# "))
    return tuple(found)


def options_of(config: str) -> dict[str, str]:
    """The options that a .config sets; of several lines for one option the last one holds, as in kconfig."""
    options: dict[str, str] = {}
    for name, value, unset in re.findall(
        r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", config, re.MULTILINE
    ):
        options[name or unset] = value or "n"
    return options


def merged(config: str, wanted: Iterable[Setting]) -> str:
    """A .config with all that is wanted; the same text where nothing is missing.

    Make olddefconfig afterwards: it takes what follows from these settings, and drops what cannot be had.
    """
    missing = unmet(config, wanted)
    if not missing:
        return config
    names = "|".join(setting.name for setting in missing)
    of_these = re.compile(rf"CONFIG_(?:{names})=.*|# CONFIG_(?:{names}) is not set")
    kept = [line for line in config.splitlines() if not of_these.fullmatch(line)]
    return "\n".join([*kept, *(setting.line for setting in missing)]) + "\n"


def unmet(config: str, wanted: Iterable[Setting]) -> tuple[Setting, ...]:
    """What is wanted and not so in a .config."""
    options = options_of(config)
    return tuple(setting for setting in wanted if not setting.met(options))


def check_taken(config: str, wanted: Iterable[Setting], where: Path) -> None:
    """Raise KernelUnfitError (HR3102) that names each setting that kconfig did not take, and its reason."""
    by_reason: dict[str, list[str]] = {}
    for setting in unmet(config, wanted):
        by_reason.setdefault(setting.reason, []).append(f"{setting.name}={setting.value}")
    if by_reason:
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        raise KernelUnfitError(
            f"the configuration of {where} does not allow {told}",
            hint="make menuconfig, then / and the name, shows what each depends on; or --config minimal",
        )
