# SPDX-License-Identifier: MIT
"""Settings: one frozen ``Config``, and the sources of its values, the strongest first.

    flag  >  HOTRELOAD_* in the environment  >  the project's file  >  the user's file  >  the default

The project's file is ``hotreload.toml``, or the table ``[tool.hotreload]`` of ``pyproject.toml``, in the
watched folder or the nearest parent that has one, up to the root of its repository. Each value is checked
where it is read, so that an error can name its place: a file and line, a variable, or a flag.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, NoReturn

from hotreload.errors import InputError
from hotreload.paths import config_file

RUNGS = ("patch", "module", "restore", "reboot")
# What to do with changed code that runs when a module is loaded.
INIT_CHANGES = ("reload", "wait")
# Enough for a header that half of a small kernel uses, which takes minutes to compile on two processors.
MAX_UNITS = 300
PACKAGED_KERNEL = "debian"
# debian:6.12 is the packaged kernel of that series, from linux-image-6.12-cloud-amd64.
_SERIES = re.compile(rf"{PACKAGED_KERNEL}(?::(\d+\.\d+))?")


class _Wrong(Exception):
    """A value that its setting does not accept. The text says what is expected."""


def _word(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Wrong("a string that is not empty")
    return value


def _command(value: object) -> str | None:
    if not isinstance(value, str):
        raise _Wrong("a shell command as a string")
    return value.strip() or None


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):  # from the environment; a module name cannot contain ';'
        value = [word for word in value.split(";") if word.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise _Wrong('a list of strings, like ["foo debug=1", "bar"]')
    return tuple(word.strip() for word in value)


def _variables(value: object) -> tuple[str, ...]:
    words = _words(value)
    if not all(re.match(r"[A-Za-z_]\w*[:+?]?=", word) for word in words):
        raise _Wrong('a list of variables, like ["CONFIG_FOO=m", "DEBUG=1"]')
    return words


def _one_of(*choices: str) -> Callable[[object], str]:
    def convert(value: object) -> str:
        if value not in choices:
            raise _Wrong("one of " + ", ".join(choices))
        return str(value)

    return convert


def _plain(number: float) -> str:
    """Format a bound without a needless decimal point."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _number(kind: type[int] | type[float], low: float, high: float, unit: str) -> Callable[[object], Any]:
    expected = (
        f"{'a whole number' if kind is int else 'a number'} of {unit} from {_plain(low)} to {_plain(high)}"
    )

    def convert(value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | str | kind):
            raise _Wrong(expected)
        try:
            number = kind(value)
        except ValueError:
            raise _Wrong(expected) from None
        if not low <= number <= high:
            raise _Wrong(expected)
        return number

    return convert


def _setting(default: Any, convert: Callable[[object], Any], text: str) -> Any:
    return field(default=default, metadata={"help": text, "convert": convert})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. ``settings()`` returns the help line of each field."""

    kernel: str = _setting(
        PACKAGED_KERNEL,
        _word,
        "kernel: debian or debian:6.12 (packaged), a configured tree, an O= folder or a headers folder",
    )
    guest: str = _setting("default", _word, "name of the guest; each name is a separate machine")
    memory_mb: int = _setting(512, _number(int, 128, 1 << 20, "MiB"), "memory of the guest, in MiB")
    cpus: int = _setting(
        1, _number(int, 1, 64, "CPUs"), "CPUs of the guest; with one, patches are live soonest"
    )
    accel: str = _setting("auto", _one_of("auto", "kvm", "tcg"), "how QEMU runs the guest: auto, kvm or tcg")
    load: tuple[str, ...] = _setting(
        (), _words, "modules to load, in this order, with their parameters; default: all that were built"
    )
    make: tuple[str, ...] = _setting(
        (),
        _variables,
        "variables for make, like CONFIG_FOO=m; those of dkms.conf and of the Makefile come first",
    )
    extra_modules: tuple[str, ...] = _setting(
        (), _words, "files of modules that were built elsewhere, loaded first, with their parameters"
    )
    setup: str | None = _setting(None, _command, "shell command run in the guest once the modules are loaded")
    teardown: str | None = _setting(None, _command, "shell command run in the guest before it is stopped")
    max_rung: str = _setting(
        "module", _one_of(*RUNGS), "highest rung that an edit may take: " + ", ".join(RUNGS)
    )
    init_changes: str = _setting(
        INIT_CHANGES[0],
        _one_of(*INIT_CHANGES),
        "if init code of a module changes: reload the module, or wait for its next load",
    )
    max_units: int = _setting(
        MAX_UNITS, _number(int, 1, 100_000, "units"), "how many units an edit may compile; more are refused"
    )
    checkpoints: str = _setting(
        "on",
        _one_of("on", "off"),
        "on or off: save the guest before each push, and bring it back after a crash",
    )
    vmcore: str = _setting(
        "off",
        _one_of("on", "off"),
        "on or off: keep the memory of a guest that crashed, before it is brought back",
    )
    boot_timeout: float = _setting(
        120.0, _number(float, 1, 3600, "seconds"), "seconds within which the guest must be up"
    )
    transition_timeout: float = _setting(
        15.0, _number(float, 0.1, 3600, "seconds"), "seconds within which every task must leave the old code"
    )
    debounce_ms: int = _setting(
        15,
        _number(int, 0, 10_000, "milliseconds"),
        "quiet time after a save before hotreload acts on it, in ms",
    )
    color: str = _setting(
        "auto", _one_of("auto", "always", "never"), "when to color the output: auto, always or never"
    )


def packaged_flavour(kernel: str) -> str | None:
    """Return the flavour of a packaged kernel, as in linux-image-FLAVOUR, or None for a folder."""
    found = _SERIES.fullmatch(kernel)
    if found is None:
        return None
    return f"{found[1]}-cloud-amd64" if found[1] else "cloud-amd64"


def settings() -> dict[str, str]:
    """Return each key with its help line."""
    return {item.name: item.metadata["help"] for item in fields(Config)}


def load_config(
    folder: Path, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] = os.environ
) -> Config:
    """Return the settings for a project in ``folder``. A flag that is None was not given.

    Raises InputError (HR1008) for a file that is not TOML, an unknown key, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    for source in (config_file(), _project_file(folder)):
        if source is not None:
            values |= _from_file(source)
    values |= _from_environment(environ)
    for key, value in (flags or {}).items():
        if value is not None:
            option = f"--{key.replace('_', '-')}"
            values[key] = _located(key, _converted(key, value, option), Path.cwd())
    return Config(**values)


def wants_color(choice: str, stream: IO[str]) -> bool:
    """Return whether to colour output to ``stream``. ``auto`` means a terminal that is not dumb."""
    if choice == "auto":
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    return choice == "always"


def _project_file(folder: Path) -> Path | None:
    """Return the nearest project file at or above ``folder``. Only look above it inside a git repository."""
    folder = folder.resolve()
    chain = [folder, *folder.parents]
    root = next((number for number, place in enumerate(chain) if (place / ".git").exists()), 0)
    for place in chain[: root + 1]:
        for name in ("hotreload.toml", "pyproject.toml"):
            if (place / name).is_file() and _tables(place / name) is not None:
                return place / name
    return None


def _tables(file: Path) -> dict[str, Any] | None:
    """Return the settings in ``file``, or None for a pyproject.toml without a table of ours."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        if file.name == "pyproject.toml" and "tool.hotreload" not in file.read_text(encoding="utf-8"):
            return None  # no table of ours: do not report its errors
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        said = str(error)[: place.start()] if place else str(error)
        line = f":{place[1]}" if place else ""
        _broken(f"{file}{line}: not TOML: {said[0].lower()}{said[1:]}")
    except (OSError, UnicodeDecodeError) as error:
        _broken(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}")
    if file.name != "pyproject.toml":
        return content
    table = content.get("tool", {}).get("hotreload")
    if table is not None and not isinstance(table, dict):
        _broken(f"{file}: tool.hotreload is not a table")
    return table


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    values = {}
    for key, value in (_tables(file) or {}).items():
        where = f"{file}{_line_of(key, file)}"
        if key not in settings():
            _unknown(key, where)
        values[key] = _located(key, _converted(key, value, f"{where}: {key}"), file.parent)
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {"color": "never"} if environ.get("NO_COLOR") else {}  # https://no-color.org
    for key in settings():
        variable = f"HOTRELOAD_{key.upper()}"
        if environ.get(variable):
            value = _converted(key, environ[variable], variable)
            values[key] = _located(key, value, Path.cwd())
    return values


def _located(key: str, value: Any, base: Path) -> Any:
    """Resolve a path relative to the file that names it, not to the current folder."""
    if key == "extra_modules":
        return tuple(_located_line(line, base) for line in value)
    if key != "kernel" or packaged_flavour(value):
        return value
    return os.path.normpath(base / Path(value).expanduser())


def _located_line(line: str, base: Path) -> str:
    """Resolve the file at the start of a line, and keep the parameters behind it."""
    file, _, rest = line.partition(" ")
    return f"{os.path.normpath(base / Path(file).expanduser())} {rest}".strip()


def _converted(key: str, value: object, where: str) -> Any:
    convert = next(item.metadata["convert"] for item in fields(Config) if item.name == key)
    try:
        return convert(value)
    except _Wrong as wrong:
        _broken(f"{where}: expected {wrong}, not {_shown(value)}", settings()[key])


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _line_of(key: str, file: Path) -> str:
    """Return ``:LINE`` of where ``key`` is set, as compilers write it, or an empty string."""
    pattern = re.compile(rf"""\s*(?:\[.*)?["']?{re.escape(key)}["']?\s*[=\].]""")
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((f":{number}" for number, line in enumerate(lines, 1) if pattern.match(line)), "")


def nearest(word: str, words: Iterable[str]) -> str | None:
    """Return the one of ``words`` that was most likely meant, or None."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)), None)


def _unknown(key: str, where: str) -> NoReturn:
    close = nearest(key.lower().replace("-", "_"), settings())
    _broken(f"{where}: unknown key '{key}'", f"did you mean '{close}'?" if close else _all_keys())


def _all_keys() -> str:
    return "the keys are " + ", ".join(settings())


def _broken(message: str, hint: str | None = None) -> NoReturn:
    raise InputError(message, code="HR1008", hint=hint)
