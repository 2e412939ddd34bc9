# SPDX-License-Identifier: MIT

"""Which strings of a patch may still be pointed at when the code that made them has returned."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.elf.model import StringRef
from hotreload.elf.reader import read_object
from hotreload.elf.references import handed_to
from hotreload.patch.escapes import escapes
from tests.objects.compiling import compiled


@pytest.mark.parametrize(
    ("body", "reader"),
    [
        ('printk("text");', "printk"),
        ('printk("text"); printk("more");', "printk"),
        ('register_it(7, "text");', "register_it"),
        ('p->name = "text";', None),
        ('p->name = "text"; printk("text");', None),
        ('if (p->name) printk("text"); else register_it(1, "text");', "printk"),
        ("p->call(1);", None),
        ('p->call2("text");', None),
    ],
)
def test_a_string_is_handed_to_the_next_function_called_or_goes_its_own_way(
    body: str, reader: str | None, tmp_path: Path
) -> None:
    source = (
        "struct p { const char *name; void (*call)(int); void (*call2)(const char *); };"
        "void register_it(int, const char *);"
        f"void f(struct p *p) {{ {body} }}"
    )
    function = read_object(compiled(source, tmp_path)).symbol("f")
    assert function is not None
    strings = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert (handed_to(function, strings[0]) if strings else None) == reader


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ('printk("text");', False),
        ('printk("%s", "text");', False),
        ('register_it(7, "text");', True),
        ('*where = "text";', True),
        ('other = "text"; printk("%s", other);', True),
    ],
)
def test_what_is_stored_or_given_to_a_stranger_escapes(body: str, kept: bool, tmp_path: Path) -> None:
    source = (
        f"const char *other; void register_it(int, const char *); void f(const char **where) {{ {body} }}"
    )
    function = read_object(compiled(source, tmp_path)).symbol("f")
    assert function is not None
    strings = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert strings
    assert any(escapes(function, relocation) for relocation in strings) == kept


def test_a_returned_string_escapes(tmp_path: Path) -> None:
    function = read_object(compiled('const char *f(void) { return "text"; }', tmp_path)).symbol("f")
    assert function is not None
    (string,) = [r for r in function.relocations if isinstance(r.target, StringRef)]
    assert escapes(function, string)
