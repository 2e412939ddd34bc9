# SPDX-License-Identifier: MIT
"""Which paths can matter at all. Pure: names in, yes or no out.

What is left after these filters is "a file somebody wrote by hand"; which of those are part of the build
is the build stage's question.
"""

from __future__ import annotations

import re
from pathlib import PurePath

# What kbuild writes next to the sources (scripts/Makefile.build, scripts/Makefile.modpost), compilers'
# and archivers' outputs, and what people leave beside them. Not images and packed files: a driver may include
# one as bytes.
OUTPUT_SUFFIXES = frozenset(
    ".o .a .so .ko .cmd .mod .d .order .symvers .builtin .modinfo .dwo .gcno .gcda .su .i .lst .ll .s "
    ".map .qcow2 .pyc .log .orig .rej .tmp".split()
)
OUTPUT_NAMES = frozenset("vmlinux vmlinuz bzImage tags TAGS cscope.out compile_commands.json".split())

# 4913 and its neighbours are vim's probe for a writable folder: 4913, then 123 more each time it exists.
VIM_PROBE = re.compile(r"\d{4,5}")
# sed -i: sedXXXXXX. GNOME: .goutputstream-XXXXXX. JetBrains: ___jb_tmp___ and ___jb_old___.
SAVE_TEMPORARIES = re.compile(r"sed[A-Za-z0-9]{6}|.*___jb_(tmp|old)___|.*~[0-9a-f]*|.*\.(bak|sw[a-px])")


def folder_matters(name: str) -> bool:
    """Whether sources may be below a folder of this name: not below ``.git`` and its hidden like."""
    return not name.startswith(".") and name not in {"__pycache__", "node_modules"}


def file_matters(name: str) -> bool:
    """Whether a file of this name can be a source: no build output, no editor's temporary file."""
    return not (_is_output(name) or _is_editors(name))


def path_matters(path: PurePath, root: PurePath) -> bool:
    """The same for a whole path; the folders down to ``root`` are not looked at (it may be in ``~/.src``)."""
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
