# SPDX-License-Identifier: MIT
"""Parse what kbuild recorded: ``.foo.o.cmd``, ``foo.mod`` and ``modules.order``. Pure: texts in, values out.

A ``.cmd`` file is a makefile written by scripts/basic/fixdep::

    cmd_foo.o := gcc ... -c -o foo.o foo.c ; ./tools/objtool/objtool ... foo.o
    source_foo.o := foo.c
    deps_foo.o := \\
      include/linux/module.h \\
        $(wildcard include/config/SMP) \\

(``savedcmd_`` since Linux commit 92215e7a801d in v6.3.) The command is a shell line in which make's own
``$$`` and ``$(pound)`` stand for ``$`` and ``#``. The command is split into words and never given to a shell.
A command that is not understood is refused, because an object made without one of its steps would differ
from kbuild's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hotreload.errors import InputError

COMPILERS = re.compile(r"(?:[\w.]+-)*(?:gcc|cc)(?:-[\d.]+)?")
OPTION = re.compile(r"\$\(wildcard include/config/(\S+?)\)")
LINKERS = re.compile(r"(?:[\w.]+-)*ld(?:\.bfd)?")
# Flags of modpost that take a file name (scripts/Makefile.modpost).
MODPOST_FILES = frozenset(("-i", "-o", "-T", "-d", "-u"))
WRAPPERS = ("ccache", "sccache", "distcc")
UNREADABLE_HINT = "hotreload replays gcc followed by objtool; please report this command"


@dataclass(frozen=True, slots=True)
class TranslationUnit:
    """One source that is compiled to one object of one module.

    Paths are absolute. ``command`` is the command that kbuild recorded (with make's escapes undone), to be
    run in ``cwd``. ``module`` is the module's name as the kernel knows it, with ``_``. ``late``: the objtool
    calls that kbuild makes after linking the module, rewritten for this object alone; usually empty.
    """

    source: Path
    object: Path
    command: str
    cwd: Path
    module: str
    late: str = ""

    @property
    def is_assembly(self) -> bool:
        """Return whether the source is assembly rather than C."""
        return self.source.suffix == ".S"


@dataclass(frozen=True, slots=True)
class CmdFile:
    """The content of a ``.cmd`` file.

    Paths are as recorded; ``source`` is None if nothing is compiled (a link). ``options``: the configuration
    options that the files mention; make compares a time stamp of each.
    """

    target: str
    command: str
    source: str | None
    dependencies: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordedCommand:
    """A compile command as argument lists: the compiler call, and the steps that follow on the object."""

    compile: tuple[str, ...]
    after: tuple[tuple[str, ...], ...]


def parse_cmd_file(text: str) -> CmdFile:
    """Parse a ``.cmd`` file. Raises InputError (HR1009) if it contains no command."""
    text = text.replace("\\\n", " ")
    found = re.search(r"^(?:saved)?cmd_(\S+) := *(.*)$", text, re.MULTILINE)
    if not found:
        raise InputError("not a kbuild .cmd file: it has no cmd_ line", hint="build the module again")
    source = re.search(r"^source_\S+ := *(\S+)\s*$", text, re.MULTILINE)
    deps = re.search(r"^deps_\S+ := *(.*)$", text, re.MULTILINE)
    return CmdFile(
        target=_unescaped(found[1]),
        command=_unescaped(found[2]).strip(),
        source=_unescaped(source[1]) if source else None,
        dependencies=_dependencies(deps[1]) if deps else (),
        options=tuple(OPTION.findall(deps[1])) if deps else (),
    )


def _unescaped(text: str) -> str:
    if "$" not in text and "\\" not in text:  # true for nearly all of a kernel's million strings
        return text
    return text.replace("$(pound)", "#").replace("\\#", "#").replace("$$", "$")


def _dependencies(text: str) -> tuple[str, ...]:
    files = re.sub(r"\$\(wildcard [^)]*\)", " ", text).split()
    return tuple(dict.fromkeys(_unescaped(file) for file in files))


def parse_dependency_file(text: str) -> tuple[str, ...]:
    """Return the prerequisites in a ``.d`` file written by gcc's -MD/-MMD, in order, the source first."""
    _target, _colon, files = text.replace("\\\n", " ").partition(":")
    words = re.findall(r"(?:\\.|\S)+", files)
    return tuple(dict.fromkeys(_unescaped(re.sub(r"\\([ \\:])", r"\1", word)) for word in words))


def dependency_file(target: str, files: Iterable[str]) -> str:
    """Return the text of a ``.d`` file that parse_dependency_file can read."""
    names = (re.sub(r"([ \\:#])", r"\\\1", file).replace("$", "$$") for file in files)
    return f"{target}: " + " \\\n ".join(names) + "\n"


def split_command(command: str) -> RecordedCommand:
    """Split a recorded command into argument lists.

    Raises InputError (HR1009) for anything but one compiler call followed by objtool calls.
    """
    steps = _steps(command)
    if not steps or not _is_compile(steps[0]):
        raise _refusal("it does not begin with gcc", command)
    for step in steps[1:]:
        if step[0].rpartition("/")[2] != "objtool":
            raise _refusal(f"it continues with {step[0]}", command)
    # Drop ccache and the like: their caches have none of our objects, and flags that are inserted after the
    # first word would be taken for theirs.
    is_wrapped = steps[0][0].rpartition("/")[2] in WRAPPERS
    return RecordedCommand(steps[0][is_wrapped:], steps[1:])


def late_steps(link: str, target: str) -> str:
    """Return the objtool calls that follow the link of a module, applied to the object ``target`` instead.

    With IBT (or LTO) kbuild runs objtool on linked modules, not on each object: delay-objtool in
    scripts/Makefile.lib, Linux commit 753da4179d08 (in v5.19). Raises InputError (HR1009).
    """
    steps = [step for step in _steps(link)[1:] if step[0].rpartition("/")[2] == "objtool"]
    return " ; ".join(shlex.join((*step[:-1], target)) for step in steps)


def split_late(late: str) -> tuple[tuple[str, ...], ...]:
    """Split a result of late_steps() into argument lists."""
    return _steps(late) if late else ()


def split_link(command: str) -> tuple[tuple[str, ...], ...]:
    """Split the link command of a module into argument lists: ld, then objtool if kbuild runs it there.

    Raises InputError (HR1009) for anything else.
    """
    steps = tuple(step for step in _steps(command) if step != ("true",))
    programs = [step[0].rpartition("/")[2] for step in steps]
    if not steps or not LINKERS.fullmatch(programs[0]) or set(programs[1:]) - {"objtool"}:
        raise _refusal("it is not a link command", command)
    return steps


def modpost_flags(command: str) -> tuple[str, ...]:
    """Return the flags with which kbuild calls modpost, without those that name files.

    ``command``: the recorded command of Module.symvers. Raises InputError (HR1009) if it does not call
    modpost.
    """
    # Up to v6.2, the list of modules comes through a pipe.
    program, *words = shlex.split(command.rpartition("|")[2]) or [""]
    if program.rpartition("/")[2] != "modpost":
        raise _refusal("it does not call modpost", command)
    kept, rest = [], iter(words)
    for word in rest:
        if word in MODPOST_FILES:
            next(rest, None)
        elif word.startswith("-") and word != "-t":  # do not trim symbols that only other modules use
            kept.append(word)
    return tuple(kept)


def is_compile(command: str) -> bool:
    """Return whether this command compiles a source (rather than linking, copying or generating)."""
    words = command.split()
    return bool(words) and _is_compile(tuple(words))


def _is_compile(words: tuple[str, ...]) -> bool:
    programs = [word.rpartition("/")[2] for word in words[:2]]
    program = programs[1] if programs[0] in WRAPPERS and len(programs) > 1 else programs[0]
    return bool(COMPILERS.fullmatch(program)) and "-c" in words


def _steps(command: str) -> tuple[tuple[str, ...], ...]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise _refusal(f"its quotes do not match ({error})", command) from error
    steps: list[list[str]] = [[]]
    for word in words:
        if word in (";", "&&"):
            steps.append([])
        elif set(word) <= set(";&|<>()") or "`" in word or "$(" in word:
            raise _refusal(f"it needs a shell for {word!r}", command)
        else:
            steps[-1].append(word)
    return tuple(tuple(step) for step in steps if step)


def _refusal(why: str, command: str) -> InputError:
    shown = command if len(command) < 200 else f"{command[:120]} ... {command[-70:]}"
    return InputError(
        f"the recorded build command is not understood, because {why}: {shown}", hint=UNREADABLE_HINT
    )


def parse_mod_file(text: str) -> tuple[str, ...]:
    """Return the objects that a ``foo.mod`` lists: one per line (since v5.19) or all on the first line."""
    return tuple(dict.fromkeys(word for word in text.split() if word.endswith(".o")))


def parse_modules_order(text: str) -> tuple[str, ...]:
    """Return the modules in ``modules.order``, without suffix: ``.ko`` up to v6.2, ``.o`` since v6.3."""
    return tuple(dict.fromkeys(re.sub(r"\.k?o$", "", line) for line in text.split()))
