# SPDX-License-Identifier: MIT
"""Parse a source patch into files, with the hunks of each. Pure: bytes in, values out.

Text between the files (a mail, ``diff --git``, ``index``) is skipped, as patch(1) does. What changes a file
by other means than hunks (a binary diff, a context diff) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hotreload.errors import InputError

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_EXTENDED = re.compile(rb"(rename|copy) (from|to) (.*)")
_QUOTED = re.compile(rb'"((?:\\.|[^"\\])*)"')
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_ESCAPES = {b"a": b"\a", b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r"}
NOTHING = "/dev/null"


class PatchUnfitError(InputError):
    """A source patch that cannot be read, or does not fit the sources."""

    default_code = "HR1010"


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What a patch does to one file.

    ``old`` and ``new`` are names as the patch spells them, with prefix; None if the file does not exist
    before or after. ``moved``: ``rename`` or ``copy``, if git says so. ``text``: the hunks with the two
    header lines before them; empty for a pure rename. ``blind``: the line of a hunk that only adds lines and
    has no context.
    """

    old: str | None
    new: str | None
    text: bytes
    moved: str | None = None
    blind: int | None = None

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.new or self.old or ""


def parse_patch(content: bytes, name: str) -> tuple[FilePatch, ...]:
    """Return the files of a unified diff, in order; empty for an empty one.

    Raises PatchUnfitError (HR1010).
    """
    files = tuple(_Parser(content.splitlines(keepends=True), name).files())
    if not files and content.strip():
        raise PatchUnfitError(
            f"{name} is not a patch: there is no line like '--- a/file.c' with a hunk after it",
            hint="make one with git diff, or diff -u OLD NEW",
        )
    return files


@dataclass(slots=True)
class _Parser:
    lines: Sequence[bytes]
    patch: str
    at: int = 0

    def files(self) -> Iterator[FilePatch]:
        moved: dict[bytes, bytes] = {}
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if self._starts_file():
                yield self._file(moved.get(b"how"))
                moved = {}
                continue
            if line.startswith(b"diff --git "):
                yield from _renamed(moved)
                # Only this line says whether names have git's prefixes. Those of a rename never have.
                moved = {b"prefixed": b"yes"} if re.match(rb'diff --git "?a/', line) else {}
            elif found := _EXTENDED.match(line):
                moved |= {b"how": found[1], found[2]: found[3]}
            elif line.startswith((b"GIT binary patch", b"Binary files ")):
                self._refuse("a binary difference")
            elif line.startswith(b"*** ") and self._line(1).startswith(b"--- "):
                self._refuse("a context diff", "make it with diff -u")
            elif _HUNK.match(line):
                self._refuse("a hunk without a file name")
            self.at += 1
        yield from _renamed(moved)

    def _starts_file(self) -> bool:
        return self._line(0).startswith(b"--- ") and self._line(1).startswith(b"+++ ")

    def _line(self, further: int) -> bytes:
        place = self.at + further
        return self.lines[place] if place < len(self.lines) else b""

    def _file(self, moved: bytes | None) -> FilePatch:
        start = self.at
        old, new = (_spelled(self._line(n)[4:]) for n in (0, 1))
        self.at += 2
        counts = []
        blind = None
        while found := _HUNK.match(self._line(0)):
            before, after = (int(found[n]) if found[n] is not None else 1 for n in (2, 4))
            counts.append((before, after))
            if not before:
                blind = blind or self.at + 1
            self._skip_hunk(before, after)
        if not counts:
            self._refuse("a file without a hunk")
        created, deleted = (len(counts) == 1 and counts[0][side] == 0 for side in (0, 1))
        # Instead of /dev/null, old programs write the name and the epoch as the time.
        created &= old == NOTHING or _is_epoch(self.lines[start])
        deleted &= new == NOTHING or _is_epoch(self.lines[start + 1])
        return FilePatch(
            None if created else old,
            None if deleted else new,
            b"".join(self.lines[start : self.at]),
            moved.decode() if moved else None,
            None if created else blind,
        )

    def _skip_hunk(self, before: int, after: int) -> None:
        """Skip a hunk that has ``before`` old and ``after`` new lines."""
        self.at += 1
        while before or after:
            line = self._line(0)
            # A mailer may have removed the blank of an empty context line.
            kind = line[:1] if line.strip(b"\r\n") else b" "
            if not line or kind not in b" -+\\":
                self._refuse("a truncated hunk")
            before -= kind in b" -"
            after -= kind in b" +"
            if before < 0 or after < 0:
                self._refuse("a hunk that is longer than its first line says")
            self.at += 1
        while self._line(0).startswith(b"\\"):
            self.at += 1

    def _refuse(self, what: str, hint: str = "make it again with git diff, or diff -u OLD NEW") -> NoReturn:
        raise PatchUnfitError(f"{self.patch}, line {self.at + 1}: {what}", hint=hint)


def _renamed(moved: dict[bytes, bytes]) -> Iterator[FilePatch]:
    """Yield the file of a pure rename or copy."""
    if b"from" in moved and b"to" in moved:
        a, b = ("a/", "b/") if b"prefixed" in moved else ("", "")
        old, new = a + _spelled(moved[b"from"]), b + _spelled(moved[b"to"])
        yield FilePatch(old, new, b"", moved[b"how"].decode())


def _spelled(word: bytes) -> str:
    """Return the file name in a header line, without the time stamp, and with git's quoting undone."""
    if quoted := _QUOTED.match(word):
        word = _ESCAPE.sub(lambda found: _unescaped(found[1]), quoted[1])
    else:
        word = word.partition(b"\t")[0].rstrip()
    return word.decode(errors="surrogateescape")


def _unescaped(escape: bytes) -> bytes:
    return bytes([int(escape, 8) & 0xFF]) if escape.isdigit() else _ESCAPES.get(escape, escape)


def _is_epoch(header: bytes) -> bool:
    return bool(re.search(rb"\t(?:1970-01-01|1969-12-31|Thu Jan  ?0?1 .*1970)", header))
