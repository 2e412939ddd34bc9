# SPDX-License-Identifier: MIT
"""How messages spell shapes, offsets and sizes."""

from __future__ import annotations

from typing import Final

from hotreload.diff.layouts import BOOL, UNSIGNED, VOID, Field, Shape

_INTEGERS: Final = {1: "char", 2: "short", 4: "int", 8: "long", 16: "__int128"}


def at(field: Field) -> str:
    """Return the offset in bytes, and in bits behind a colon if needed: ``12``, ``12:3``."""
    return f"{field.offset // 8}:{field.offset % 8}" if field.offset % 8 else str(field.offset // 8)


def width(field: Field) -> str:
    return f"{field.bits} bits" if field.bits else "no bit-field"


def resized(was: int, now: int) -> str:
    return f"{'grew' if now > was else 'shrank'} {was} -> {now} bytes"


def spelled(shape: Shape) -> str:
    """Return a shape as C writes it, with typedefs resolved.

    Examples: ``struct foo *``, ``int (*)(long int)``, ``char[16]``.
    """
    kind = shape[0]
    if kind == "int":
        return _integer(shape[1], shape[2])
    if kind == "*":
        target = shape[1]
        if target[0] == "()":
            return f"{spelled(target[1])} (*)({_parameters(target)})"
        return spelled(target) + ("*" if target[0] == "*" else " *")
    if kind == "[]":
        return f"{spelled(shape[2])}[{shape[1] or ''}]"
    if kind == "()":
        return f"{spelled(shape[1])} ({_parameters(shape)})"
    if kind == "{}":
        return f"a struct of {shape[1]} bytes"
    if kind == "enum":
        return f"enum {shape[1]}".rstrip()
    if kind in ("struct", "union"):
        return f"{kind} {shape[1]}"
    if kind == "float":
        return {4: "float", 8: "double"}.get(shape[1], "long double")
    return str(shape[1]) if kind == "typedef" else "void"


def _integer(size: int, kind: int) -> str:
    if kind == BOOL:
        return "bool"
    name = _INTEGERS.get(size, f"{size}-byte integer")
    return f"unsigned {name}" if kind == UNSIGNED else name


def _parameters(prototype: Shape) -> str:
    parameters = prototype[2]
    words = [spelled(p) for p in parameters]
    if parameters and parameters[-1] == VOID:
        words[-1] = "..."
    return ", ".join(words) or "void"
