# SPDX-License-Identifier: MIT
"""Merge fragments into kernel configurations, and check the result. Pure.

A fragment is a list of ``CONFIG_NAME=VALUE`` lines with comments. A comment directly above some settings is
the reason for all of them, up to the next comment or empty line. Settings whose comment begins with "where
offered:" are only required if the kernel knows them: kconfig writes a line for each option that can be set,
and for no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import hotreload
from hotreload.errors import InputError, KernelUnfitError

# The names that --config accepts, and the fragment that is merged into an existing .config.
NAMED = ("minimal", "virtio", "debug")
FRAGMENT = "fragment"
WHERE_OFFERED = "where offered: "


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a fragment.

    ``name`` is without ``CONFIG_``; ``value`` is as in a .config, ``n`` for not set. ``optional``: not
    required of a kernel that does not offer it.
    """

    name: str
    value: str
    reason: str
    optional: bool = False

    @property
    def line(self) -> str:
        """The setting as a line of a .config."""
        return f"# CONFIG_{self.name} is not set" if self.value == "n" else f"CONFIG_{self.name}={self.value}"

    def met(self, options: Mapping[str, str]) -> bool:
        """Return whether ``options`` satisfies the setting."""
        return options.get(self.name, self.value if self.optional else "n") == self.value


def config_file(name: str) -> Path:
    """Return the file of a named configuration, or else the file with that path.

    The named ones are in the installed package, or next to it in a checkout. Raises InputError (HR1009) if
    there is none.
    """
    package = Path(hotreload.__file__).parent
    ours = name in (*NAMED, FRAGMENT)
    folders = (package / "_vmimages", package.parent / "vmimages")
    candidates = [folder / f"{name}.config" for folder in folders] if ours else [Path(name).expanduser()]
    for file in candidates:
        if file.is_file():
            return file.resolve()
    raise InputError(
        f"there is no kernel configuration {name}", hint=f"--config takes {', '.join(NAMED)}, or a file"
    )


def read_text(file: Path) -> str:
    """Return the text of a configuration. Raises InputError (HR1009) if it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", hint="fix its permissions") from error


def configuration(file: Path) -> str:
    """Return the text of a configuration, including the one that it extends.

    A line ``# with: NAME`` names another configuration in the same folder, whose text comes first. The last
    of several lines for one option wins. Raises InputError (HR1009) if a file cannot be read.
    """
    text = read_text(file)
    if named := re.search(r"^# with: (\S+)$", text, re.MULTILINE):
        return configuration(file.with_name(named[1])) + text
    return text


def read_settings(text: str) -> tuple[Setting, ...]:
    """Return the settings of a fragment, in order, each with its reason."""
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
    """Return the options that a .config sets.

    As in kconfig, the last of several lines for one option wins.
    """
    options: dict[str, str] = {}
    for name, value, unset in re.findall(
        r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", config, re.MULTILINE
    ):
        options[name or unset] = value or "n"
    return options


def merged(config: str, wanted: Iterable[Setting]) -> str:
    """Return a .config that has all wanted settings; the same text if nothing is missing.

    Run `make olddefconfig` afterwards: it adds what follows from these settings, and drops what cannot be
    set.
    """
    missing = unmet(config, wanted)
    if not missing:
        return config
    names = "|".join(setting.name for setting in missing)
    of_these = re.compile(rf"CONFIG_(?:{names})=.*|# CONFIG_(?:{names}) is not set")
    kept = [line for line in config.splitlines() if not of_these.fullmatch(line)]
    return "\n".join([*kept, *(setting.line for setting in missing)]) + "\n"


def unmet(config: str, wanted: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return the wanted settings that a .config does not satisfy."""
    options = options_of(config)
    return tuple(setting for setting in wanted if not setting.met(options))


def check_taken(config: str, wanted: Iterable[Setting], where: Path) -> None:
    """Raise KernelUnfitError (HR3102), naming each setting that kconfig did not accept, with its reason."""
    by_reason: dict[str, list[str]] = {}
    for setting in unmet(config, wanted):
        by_reason.setdefault(setting.reason, []).append(f"{setting.name}={setting.value}")
    if by_reason:
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        raise KernelUnfitError(
            f"the configuration of {where} does not allow {told}",
            hint="search for each with / in make menuconfig to see what it depends on;"
            " or use --config minimal",
        )
