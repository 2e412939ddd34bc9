# SPDX-License-Identifier: MIT
"""Objects that are damaged on purpose: the edits of a file's bytes that a fuzzer draws from."""

from __future__ import annotations

import struct
from typing import Final

from hypothesis import strategies as st

_HEADER_FIELDS: Final = ((16, "H"), (18, "H"), (40, "Q"), (58, "H"), (60, "H"), (62, "H"))
_SECTION_FIELDS: Final = (
    (0, "I"), (4, "I"), (8, "Q"), (16, "Q"), (24, "Q"), (32, "Q"), (40, "I"), (44, "I"), (48, "Q"), (56, "Q"),
)  # fmt: skip
_SYMBOL_FIELDS: Final = ((0, "I"), (4, "B"), (5, "B"), (6, "H"), (8, "Q"), (16, "Q"))
_RELA_FIELDS: Final = ((0, "Q"), (8, "I"), (12, "I"), (16, "Q"))

# Numbers where something ends: of bytes, words, indices that are reserved, and what no file has.
EDGES: Final = (
    0, 1, 2, 3, 4, 7, 8, 16, 24, 0x7F, 0xFF, 0xFF00, 0xFF20, 0xFFF1, 0xFFF2, 0xFFFF, 1 << 31, (1 << 32) - 1,
    1 << 40, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 4, (1 << 64) - 8,
)  # fmt: skip
numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, 4096), st.integers(0, 64))


class Image(bytes):
    """The bytes of an object, which a report names and does not spell out."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@st.composite
def damaged(draw: st.DrawFn, image: bytes, most: int = 3) -> Image:
    """An object with one to ``most`` pieces of damage."""
    result = bytearray(image)
    for _ in range(draw(st.integers(1, most))):
        if len(result) < 64 or len(_headers(result)) < 2:
            break
        result = draw(st.one_of(*(kind(result) for kind in KINDS)))
    return Image(result)


@st.composite
def meant(draw: st.DrawFn, image: bytes) -> Image:
    """An object in which code, data or a relocation of an allocated section says something else."""
    result = bytearray(image)
    return Image(draw(st.one_of(_content(result), _reference(result))))


@st.composite
def _byte(draw: st.DrawFn, image: bytearray) -> bytearray:
    at = draw(st.integers(0, len(image) - 1))
    image[at] ^= draw(st.integers(1, 255))
    return image


@st.composite
def _truncated(draw: st.DrawFn, image: bytearray) -> bytearray:
    return image[: draw(st.integers(0, len(image) - 1))]


@st.composite
def _header(draw: st.DrawFn, image: bytearray) -> bytearray:
    return _set(draw, image, 0, _HEADER_FIELDS)


@st.composite
def _section(draw: st.DrawFn, image: bytearray) -> bytearray:
    return _set(draw, image, draw(st.sampled_from(_headers(image))), _SECTION_FIELDS)


@st.composite
def _symbol(draw: st.DrawFn, image: bytearray) -> bytearray:
    places = _rows(image, 2, 24)
    return _set(draw, image, draw(st.sampled_from(places)), _SYMBOL_FIELDS) if places else image


@st.composite
def _relocation(draw: st.DrawFn, image: bytearray) -> bytearray:
    places = _rows(image, 4, 24)
    return _set(draw, image, draw(st.sampled_from(places)), _RELA_FIELDS) if places else image


@st.composite
def _swapped(draw: st.DrawFn, image: bytearray) -> bytearray:
    """Two rows of one table, or two section headers, change places."""
    width, places = draw(
        st.sampled_from(((24, _rows(image, 2, 24)), (24, _rows(image, 4, 24)), (64, _headers(image))))
    )
    if len(places) < 2:
        return image
    one, other = draw(st.sampled_from(places)), draw(st.sampled_from(places))
    image[one : one + width], image[other : other + width] = (
        image[other : other + width],
        image[one : one + width],
    )
    return image


@st.composite
def _duplicated(draw: st.DrawFn, image: bytearray) -> bytearray:
    """One more section header, the same as another, in a table that moves to the end of the file."""
    places = _headers(image)
    chosen = draw(st.sampled_from(places))
    table = b"".join(bytes(image[at : at + 64]) for at in (*places, chosen))
    image += bytes(-len(image) % 8)
    struct.pack_into("<Q", image, 40, len(image))
    struct.pack_into("<H", image, 60, len(places) + 1)
    return image + table


@st.composite
def _content(draw: st.DrawFn, image: bytearray) -> bytearray:
    """A byte of an allocated section is another one."""
    places = [
        (start, size)
        for at in _headers(image)
        for kind, flags, _, start, size in [struct.unpack_from("<IQQQQ", image, at + 4)]
        if kind == 1 and flags & 2 and size and start + size <= len(image)
    ]
    if places:
        start, size = draw(st.sampled_from(places))
        image[start + draw(st.integers(0, size - 1))] ^= draw(st.integers(1, 255))
    return image


@st.composite
def _reference(draw: st.DrawFn, image: bytearray) -> bytearray:
    """A relocation points a little further, or at another symbol."""
    places = _rows(image, 4, 24)
    if not places:
        return image
    at = draw(st.sampled_from(places))
    if draw(st.booleans()):
        (addend,) = struct.unpack_from("<q", image, at + 16)
        by = draw(st.sampled_from((-8, -4, -1, 1, 4, 8, 1 << 32)))
        struct.pack_into("<Q", image, at + 16, (addend + by) % (1 << 64))
    else:
        struct.pack_into("<I", image, at + 12, draw(st.integers(1, max(1, len(_rows(image, 2, 24)) - 1))))
    return image


KINDS: Final = (
    _byte, _truncated, _header, _section, _symbol, _relocation, _swapped, _duplicated, _content, _reference,
)  # fmt: skip


def _set(draw: st.DrawFn, image: bytearray, at: int, fields: tuple[tuple[int, str], ...]) -> bytearray:
    offset, layout = draw(st.sampled_from(fields))
    size = struct.calcsize(layout)
    if at + offset + size > len(image):
        return image
    (before,) = struct.unpack_from("<" + layout, image, at + offset)
    value = draw(st.one_of(numbers, st.sampled_from((before + 1, before - 1, before * 2))))
    struct.pack_into("<" + layout, image, at + offset, value % (1 << 8 * size))
    return image


def _headers(image: bytearray) -> list[int]:
    """Where each section header stands, as far as they are in the file."""
    (table,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    return [at for at in range(table, table + 64 * count, 64) if at + 64 <= len(image)]


def _rows(image: bytearray, kind: int, width: int) -> list[int]:
    """Where each row of the tables of one type stands."""
    found = []
    for at in _headers(image):
        this, _, _, start, size = struct.unpack_from("<IQQQQ", image, at + 4)
        if this == kind and start + size <= len(image):
            found += range(start, start + size - width + 1, width)
    return found
