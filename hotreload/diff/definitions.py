# SPDX-License-Identifier: MIT
"""Find where the source defines what an obstacle names. This searches the text and does not parse it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from hotreload.diff.type_pair import LayoutDiff

_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", re.DOTALL)


# The kernel's own headers: its include/, and those of architectures.
KERNEL_HEADER: Final = re.compile(r"(^|/)include/\w+/")


def authors_files(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the texts that do not belong to the kernel's headers."""
    return {file: text for file, text in sources.items() if not KERNEL_HEADER.search(str(file))}


def is_gone(name: str, sources: Mapping[str, str]) -> bool:
    """Return whether a word occurs in none of the author's files, comments apart.

    False if there are no such files, because then nobody can tell.
    """
    own = authors_files(sources)
    word = re.compile(rf"(?<![.>\w]){re.escape(name)}\b")
    return bool(own) and not any(name in t and word.search(_COMMENT.sub(" ", t)) for t in own.values())


def located(diff: LayoutDiff, sources: Mapping[str, str]) -> LayoutDiff:
    """Return the diff with ``where`` filled in. ``sources`` are the patched texts by name, nearest first."""
    obstacles = tuple(
        o if o.where else replace(o, where=find_definition(o.symbol, sources, diff.members.get(o.symbol, "")))
        for o in diff.obstacles
    )
    return replace(diff, obstacles=obstacles)


def find_definition(name: str, sources: Mapping[str, str], member: str = "") -> str | None:
    """Return ``FILE:LINE`` of a definition: ``struct foo``, ``enum bar``, a typedef's or a function's name.

    The line is that of ``member`` (``u.x`` counts as ``x``) if the definition has it. This searches the text
    and does not parse it, so the result is None if a macro makes the definition.
    """
    for file, source in sources.items():
        if name.split()[-1] not in source:
            continue
        text = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
        span = _definition(name, member, text)
        if span:
            start, end = span
            word = re.escape(member.rpartition(".")[2])
            inside = re.compile(rf"\b{word}\b\s*[;,:=\[)}}]").search(text, start, end) if word else None
            return f"{file}:{text.count(chr(10), 0, inside.start() if inside else start) + 1}"
    return None


def _definition(name: str, member: str, text: str) -> tuple[int, int] | None:
    """Return where a definition begins and ends in a text without comments."""
    word, _, tag = name.partition(" ")
    if word in ("struct", "union", "enum") and tag:
        found = re.search(rf"\b{word}\s+(?:__\w+(?:\([^)]*\))*\s+)*{re.escape(tag)}\s*\{{", text)
        return (found.start(), _closing(text, found.end())) if found else None
    if word == "the":  # "the enum of FIRST": it has no name except those of its constants
        found = re.search(rf"\b{re.escape(member or name.split()[-1])}\b\s*[=,}}]", text)
        return found.span() if found else None
    for found in re.finditer(r"\btypedef\s+(?:struct|union)\b[^;{}]*\{", text):
        end = _closing(text, found.end())
        if re.match(rf"[^;]*\b{re.escape(name)}\s*[;,]", text[end:]):
            return found.start(), end
    found = re.search(
        rf"^[A-Za-z_][^;{{}}=]*\b{re.escape(name)}\s*(?:\([^;{{}}]*\)\s*\{{|[;=\[])", text, re.MULTILINE
    )
    return (found.end() - len(found[0].rpartition(name)[2]), found.end()) if found else None


def _closing(text: str, start: int) -> int:
    """Return the offset behind the brace that closes the one before ``start``."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.end()
    return len(text)
