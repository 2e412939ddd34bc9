# SPDX-License-Identifier: MIT
"""Decide by name which paths can matter. Pure: names in, yes or no out.

What passes these filters is probably written by hand. The build stage decides whether it is part of the
build.
"""

from __future__ import annotations

import re
from pathlib import PurePath

# What kbuild writes next to the sources (scripts/Makefile.build, scripts/Makefile.modpost), outputs of
# compilers and archivers, and what people leave there. Images and packed files are not listed, because a
# driver may include their bytes.
OUTPUT_SUFFIXES = frozenset(
    ".o .a .so .ko .cmd .mod .d .order .symvers .builtin .modinfo .dwo .gcno .gcda .su .i .lst .ll .s "
    ".map .qcow2 .pyc .log .orig .rej .tmp".split()
)
OUTPUT_NAMES = frozenset("vmlinux vmlinuz bzImage tags TAGS cscope.out compile_commands.json".split())

# vim creates 4913 to test whether a folder is writable; if that exists, it adds 123 until the name is free.
VIM_PROBE = re.compile(r"\d{4,5}")
# sed -i: sedXXXXXX. GNOME: .goutputstream-XXXXXX. JetBrains: ___jb_tmp___ and ___jb_old___.
SAVE_TEMPORARIES = re.compile(r"sed[A-Za-z0-9]{6}|.*___jb_(tmp|old)___|.*~[0-9a-f]*|.*\.(bak|sw[a-px])")


def folder_matters(name: str) -> bool:
    """Return whether a folder of this name may contain sources; ``.git`` and other hidden folders do not."""
    return not name.startswith(".") and name not in {"__pycache__", "node_modules"}


def file_matters(name: str) -> bool:
    """Return whether a file of this name can be a source: no build output, no editor's temporary file."""
    return not (_is_output(name) or _is_editors(name))


def path_matters(path: PurePath, root: PurePath) -> bool:
    """Return the same for a whole path. Folders above ``root`` are not checked (it may be in ``~/.src``)."""
    below = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]
    return bool(below) and all(map(folder_matters, below[:-1])) and file_matters(below[-1])


def _is_output(name: str) -> bool:
    return (
        PurePath(name).suffix in OUTPUT_SUFFIXES
        or name.endswith(".mod.c")
        or name in OUTPUT_NAMES
        or name.startswith(".tmp_")
    )


def _is_editors(name: str) -> bool:
    return (
        name.startswith((".", "#"))  # .foo.c.swp, .#foo.c, #foo.c#, .goutputstream-1234; no source is hidden
        or VIM_PROBE.fullmatch(name) is not None
        or SAVE_TEMPORARIES.fullmatch(name) is not None
    )
