# SPDX-License-Identifier: MIT
"""Which lines keep the base's numbers, and where a directive may stand."""

from __future__ import annotations

import random
import re

import pytest

from hotreload.build.line_names import names_of_lines
from hotreload.build.lines import stabilised, wanted_numbers


def directives(base: str, now: str) -> str | None:
    """What the compiler is shown; ``_`` stands for the lines' ends."""
    text = stabilised(base, now)
    return text and text.replace("\n", "_")


def gccs_numbers(text: str) -> dict[str, int]:
    """The number that gcc gives each line, where no #if leaves one out."""
    numbers = {}
    number = 1
    for line in text.split("\n"):
        if found := re.match(r"#line (\d+)", line):
            number = int(found[1])
        else:
            numbers[line] = number
            number += 1
    return numbers


def test_unchanged_lines_keep_their_numbers_and_new_ones_have_their_own() -> None:
    assert directives("a_b_c".replace("_", "\n"), "a\nnew\nb\nc") == "a_new_#line 2_b_c"
    assert directives("a\nb\nc\nd", "new\na\nb\nadded\nc\nd") == ("new_#line 1_a_b_#line 4_added_#line 3_c_d")


def test_removed_lines_move_the_rest_as_added_ones_do() -> None:
    assert directives("gone\na\nb", "a\nb") == "#line 2_a_b"
    assert directives("a\ngone\ngone too\nb\nchanged", "a\nb\nother") == "a_#line 4_b_#line 3_other"


def test_what_moved_keeps_its_numbers_as_what_it_moved_past_does() -> None:
    first, second = ["one {", "x", "x", "return 1"], ["two {", "x", "return 2"]
    assert wanted_numbers([*first, *second], [*second, *first]) == [5, 6, 7, 1, 2, 3, 4]
    # Which of the two counts as the one that moved may change with any further edit; the numbers do not.
    assert wanted_numbers([*first, *second], [*second, "new", "more", *first]) == [5, 6, 7, 4, 5, 1, 2, 3, 4]


def test_a_line_that_the_text_has_twice_does_not_tell_alone_where_it_moved() -> None:
    assert wanted_numbers(["a", "x", "x", "b"], ["b", "y", "x", "z", "x", "q", "a"]) == [4, 2, 3, 4, 5, 6, 1]


@pytest.mark.parametrize(
    ("base", "now"),
    [
        ("a\nb\n", "a\nb\n"),
        ("a\nb\nc\n", "a\nother\nc\n"),
        ("a\nb\nc", "a\nb"),
        ("", "a\nb\n"),
        ("a\nb", "all\nelse"),
    ],
)
def test_nothing_is_to_be_done_when_no_unchanged_line_has_moved(base: str, now: str) -> None:
    assert stabilised(base, now) is None


@pytest.mark.parametrize(
    "unfit",
    [
        "#line 3\n",
        '  # 7 "lexer.l"\n',
        "\0",
        "\ufeffint a;\n",
        'char *s = R"(\n)";\n',
        'int *s = LR"x(\n)x";\n',
        "??/\n",
    ],
)
def test_a_text_with_numbers_of_its_own_or_that_is_no_plain_c_is_left_alone(unfit: str) -> None:
    assert stabilised(unfit + "a\nb\n", unfit + "new\na\nb\n") is None


@pytest.mark.parametrize(
    "plain", ["/* see #12 */\n", "// PR #line\n", 'char *a = VAR"(";\n', "#if X\n#endif\n"]
)
def test_a_text_that_only_looks_like_one_is_not(plain: str) -> None:
    assert stabilised(plain + "a\nb\n", plain + "new\na\nb\n") is not None


@pytest.mark.parametrize(
    ("before", "inside", "after"),
    [
        ("/* about", "this and", "that */"),
        ("a(x,", "\ty,", "\tz);"),
        ('w("(", (1),', "\ty,", "\tz);"),
        ("#define X \\", "\t1 \\", "\t+ 2"),
        ("// goes on \\", "and on \\", "still"),
        ('char *s = "a \\', "b \\", 'c";'),
        ("blanks follow \\  ", "x \\\t", "y"),
        ("carriage return \\\r", "x \\\r", "y"),
    ],
)
def test_no_directive_stands_where_it_would_be_part_of_something(
    before: str, inside: str, after: str
) -> None:
    base = f"{before}\n{inside}\n{after}\nend"
    now = f"top\n{before}\n\tnew {inside}\n{inside}\n{after}\nend"
    text = stabilised(base, now)
    assert text == now.replace("top", "top\n#line 1").replace("\nend", "\n#line 4\nend")


@pytest.mark.parametrize("between", ["", "/* said", "\\"])
def test_no_directive_parts_a_macros_name_from_its_arguments(between: str) -> None:
    # gcc would take the name for that of a function.
    now = f"MACRO\n{between}\n\t{'*/' if between else ''}(1)\nend"
    text = stabilised("MACRO\n\t(1)\nend", now)
    assert text == now.replace("\nend", "\n#line 3\nend")


@pytest.mark.parametrize(
    "above",
    ["/* done */", 'puts("/*");', "'\"';", "// /*", 'f(")");', "it's /* a */", "#error don't", "out:"],
)
def test_what_ends_on_its_line_keeps_no_directive_away(above: str) -> None:
    base = f"one\n{above}\ntwo"
    assert directives(base, f"one\n{above}\nnew\ntwo") == f"one_{above}_new_#line 3_two"


def test_parentheses_are_counted_anew_at_each_construct_of_the_top_level() -> None:
    # The #if leaves one of two open parentheses; the next function starts at the margin.
    base = "#if A\n\tif (f(x,\n#else\n\tif (g(x,\n#endif\n\t\ty))\n\tz\nint next(void)\n{\n\tw"
    text = stabilised(base, base.replace("\tz\n", "\tz\n\tnew\n"))
    assert text is not None
    assert text.endswith("\n\tz\n\tnew\n#line 8\nint next(void)\n{\n\tw")


def test_after_a_branch_that_may_be_skipped_the_number_is_said_again() -> None:
    base = "#ifdef A\na\n#endif\nb\nc"
    assert directives(base, "#ifdef A\nnew\na\n#endif\nb\nc") == ("#ifdef A_new_#line 2_a_#endif_#line 4_b_c")


def test_each_branch_begins_with_the_number_from_before_the_first() -> None:
    base = "#ifdef A\na\n#elif B\nb\n#else\nc\n#endif\nd"
    text = directives(base, "#ifdef A\nnew\na\n#elif B\nb\n#else\nc\n#endif\nd")
    assert text == "#ifdef A_new_#line 2_a_#elif B_#line 4_b_#else_#line 6_c_#endif_#line 8_d"


def test_a_file_between_guards_needs_one_directive() -> None:
    body = "\n".join(f"int a{number};" for number in range(50))
    base = f"#ifndef H\n#define H\n{body}\n#endif"
    text = stabilised(base, "/* new */\n" + base)
    assert text == "/* new */\n#line 1\n" + base


def test_every_byte_of_the_text_is_kept() -> None:
    base = "caf\udce9\r\n\x0c\u2028end\n"
    assert stabilised(base, "new\r\n" + base) == "new\r\n#line 1\n" + base


def test_each_line_of_any_edit_has_the_number_that_is_wanted() -> None:
    chance = random.Random(1)
    base = [chance.choice([f"line {number};", "}", "", "return 0;"]) for number in range(300)]
    for _ in range(200):
        now = list(base)
        for _ in range(chance.randrange(1, 9)):
            start = chance.randrange(len(now))
            now[start : start + chance.randrange(4)] = [
                f"new {chance.random()};" for _ in range(chance.randrange(4))
            ]
        text = stabilised("\n".join(base), "\n".join(now))
        wanted = wanted_numbers(base, now)
        if text is None:
            assert wanted == list(range(1, len(now) + 1))
            continue
        assert [line for line in text.split("\n") if not line.startswith("#line")] == now
        expected = dict(zip(now, wanted, strict=True))
        assert gccs_numbers(text) == expected
        unique = {line for line in base if line.startswith("line")}
        assert all(expected[line] == base.index(line) + 1 for line in unique & set(now))


def test_lines_that_are_all_alike_are_compared_all_with_all() -> None:
    base = ["f();", "g();"] * 10
    assert wanted_numbers(base, ["x", *base, "y"]) == [1, *range(1, 21), 22]
    # But for so many of them that it would take too long.
    base *= 10
    assert wanted_numbers(base, ["x", *base, "y"]) == list(range(1, 203))


COUNTED = """#define HERE() (hits[__LINE__]++)
#define TWICE() (HERE(), HERE())
int a(void)
{
	return HERE();
}
int b(void)
{
	return TWICE();
}
"""


def numbers_of(base: str, now: str, word: str) -> list[int]:
    """The numbers of the lines with a word, as gcc counts them."""
    text = stabilised(base, now, names_of_lines([now]))
    found = []
    number = 0
    for line in (now if text is None else text).split("\n"):
        number = int(found_[1]) - 1 if (found_ := re.match(r"#line (\d+)", line)) else number + 1
        if word in line and not line.startswith("#"):
            found.append(number)
    return found


def test_macros_that_come_to_a_line_number_are_known_by_what_they_expand_to() -> None:
    assert names_of_lines([COUNTED, "#define OTHER 1\n"]) == {"__LINE__", "HERE", "TWICE"}
    assert names_of_lines(["#define HERE() 1\n"]) == frozenset()


def test_a_new_place_that_is_told_by_its_line_never_has_the_number_of_another() -> None:
    new = COUNTED.replace("int a", "int c(void)\n{\n\treturn HERE();\n}\nint a")
    assert numbers_of(COUNTED, new, "return") == [10005, 5, 9]


def test_a_new_place_keeps_its_own_number_where_nobody_has_it() -> None:
    new = COUNTED + "int c(void)\n{\n\treturn HERE();\n}\n"
    assert numbers_of("/* gone */\n" + COUNTED, new, "return") == [6, 10, 13]


def test_where_nothing_is_made_of_the_number_two_lines_may_have_one() -> None:
    plain = COUNTED.replace("__LINE__", "0")
    new = plain.replace("int a", "int c(void)\n{\n\treturn HERE();\n}\nint a")
    assert numbers_of(plain, new, "return") == [5, 5, 9]


def test_where_no_directive_may_stand_the_line_below_gives_way() -> None:
    base = COUNTED + "int c = f(1,\n\t2) + HERE();\nint d = HERE();\n"
    new = base.replace("\t2) + HERE()", "\tHERE(),\n\t2) + HERE()")
    assert numbers_of(base, new, "HERE();") == [5, 13, 10013]


def test_lines_of_random_edits_that_use_their_numbers_are_all_apart() -> None:
    generator = random.Random(57)
    made = [
        "HERE();",
        "\tx = f(HERE(),",
        "\t\ty);",
        "plain",
        "",
        "/* HERE */",
        "}",
    ]
    for _ in range(300):
        base = [generator.choice(made) for _ in range(generator.randrange(1, 40))]
        now = list(base)
        for _ in range(generator.randrange(1, 5)):
            place = generator.randrange(len(now) + 1)
            now[place : place + generator.randrange(3)] = generator.choices(made, k=generator.randrange(4))
        head = "#define HERE() __LINE__\n"
        found = numbers_of(head + "\n".join(base), head + "\n".join(now), "HERE()")
        assert len(set(found)) == len(found)
