# SPDX-License-Identifier: MIT
"""An edit that only moves lines changes no function: real compiles, with and without the kernel's headers."""

from __future__ import annotations

import asyncio
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotreload.build import overlay
from hotreload.build.base import Base, build_base, record_base
from hotreload.build.built import Build, BuiltModule, UnitInputs, is_users, sha256
from hotreload.build.cmd_files import TranslationUnit, parse_dependency_file
from hotreload.build.compile import ObjectPair, compile_patched, patched_object, rebuild
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.lines import stabilised
from hotreload.build.units import units_for
from hotreload.diff.object_diff import diff_objects
from hotreload.elf.reader import read_object
from hotreload.errors import CompileError
from tests.objects.compiling import FLAGS, run

TREE = KernelTree("6", "x86_64", Path("/no/k"), Path("/no/k"), Path("/no/i"), None, Path("/c"), Path("/s"))


@dataclass(frozen=True)
class Driver:
    """A unit with its base; ``module`` is what kbuild's notes would tell."""

    folder: Path
    module: Build
    base: Base
    out: Path

    @property
    def unit(self) -> TranslationUnit:
        return self.base.units[0]

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new, 1))

    def put(self, name: str, lines: str) -> None:
        """Add lines on top of a file."""
        (self.folder / name).write_text(lines + (self.folder / name).read_text())

    def pair(self) -> ObjectPair:
        return asyncio.run(rebuild(self.base, [self.unit], self.out))[0]

    def changed(self) -> set[str]:
        return changes(self.pair())

    def changed_plainly(self) -> set[str]:
        plain = asyncio.run(compile_patched(self.unit, self.out / "plain"))
        return changes(ObjectPair(self.unit, self.pair().original, plain))


def changes(pair: ObjectPair) -> set[str]:
    diff = diff_objects(read_object(pair.original), read_object(pair.patched))
    assert not diff.obstacles
    return set(diff.changed_functions) | {symbol.name for symbol in diff.new_functions}


@pytest.fixture(autouse=True)
def _bases_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LC_ALL", "C")


def recorded(
    folder: Path, files: Mapping[str, str], command: str = "-c m.c", cwd: Path | None = None
) -> Driver:
    """What kbuild would have left of ``gcc FLAGS command``, run in ``cwd`` (default: ``folder``)."""
    cwd = cwd or folder
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    cwd.mkdir(exist_ok=True)
    words = ["gcc", *(flag for flag in FLAGS if flag != "-w"), *command.split(), "-o", str(folder / "m.o")]
    run([*words, "-MMD", "-MF", str(folder / "m.d")], cwd)
    spelled = parse_dependency_file((folder / "m.d").read_text())
    inputs = tuple(Path(os.path.join(cwd, name)) for name in spelled)
    unit = TranslationUnit(Path(os.path.normpath(inputs[0])), folder / "m.o", " ".join(words), cwd, "m")
    (folder / "m.ko").write_bytes(b"")
    assert all(is_users(file, folder, TREE) for file in inputs)
    module = Build(
        folder,
        TREE,
        (BuiltModule("m", folder / "m.ko", (unit,)),),
        (),
        UnitInputs({unit.object: inputs}),
        {file: sha256(file) for file in inputs},
        (),
    )
    return Driver(folder, module, asyncio.run(record_base(module)), folder.parent / "out")


def number(file: Path, variable: str) -> int:
    """The value of a constant int."""
    obj = read_object(file)
    symbol = next(symbol for symbol in obj.symbols if symbol.name == variable)
    assert symbol.section is not None
    return int(struct.unpack_from("<i", symbol.section.data, symbol.value)[0])


def loaded_strings(file: Path) -> set[bytes]:
    found: set[bytes] = set()
    for section in read_object(file).sections:
        if section.name.startswith(".rodata"):
            found |= set(re.findall(rb"[ -~]{4,}", section.data))
    return found


# --- with the kernel's macros ---

KERNEL_DRIVER = {
    "Kbuild": "obj-m := m.o\nccflags-y := -DDEBUG\n",
    "m.h": """#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
static inline int checked(int a)
{
	if (WARN(a < 0, "negative: %d", a))
		return 0;
	WARN_ON_ONCE(a > 100);
	return a;
}
""",
    "m.c": """#include "m.h"
MODULE_LICENSE("GPL");
static DEFINE_MUTEX(lock);
static int n;
int one(int a);
int one(int a)
{
	pr_debug("one %d\\n", a);
	if (WARN(a == 1, "one"))
		return 1;
	might_sleep();
	mutex_lock(&lock);
	n += a;
	mutex_unlock(&lock);
	return n;
}
int two(int a);
int two(int a)
{
	WARN_ON(a == 2);
	pr_debug("two %s:%d\\n", __FILE__,
			__LINE__);
	pr_info_once("once %d\\n", checked(a));
	BUG_ON(a == 7);
	return n;
}
""",
}


@pytest.fixture
def kernel_driver(kernel_base: tuple[Build, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    module, base = kernel_base
    monkeypatch.setenv("XDG_CACHE_HOME", str(base.folder.parents[2]))
    driver = Driver(module.folder, module, base, tmp_path / "out")
    driver.write(KERNEL_DRIVER)
    return driver


@pytest.fixture(scope="module")
def kernel_base(debian_kernel: KernelTree, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Base]:
    place = tmp_path_factory.mktemp("lines")
    (place / "drv").mkdir()
    for name, text in KERNEL_DRIVER.items():
        (place / "drv" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        return asyncio.run(build_base(debian_kernel, place / "drv"))


def test_a_comment_on_top_of_a_file_changes_no_function(kernel_driver: Driver) -> None:
    kernel_driver.put("m.c", "/*\n * New.\n */\n")
    assert kernel_driver.changed_plainly() == {"one", "two"}
    assert kernel_driver.changed() == set()


def test_a_comment_on_top_of_a_header_changes_no_function_that_has_its_inlines(
    kernel_driver: Driver,
) -> None:
    kernel_driver.put("m.h", "/* New. */\n")
    assert kernel_driver.changed_plainly() == {"two"}
    assert kernel_driver.changed() == set()
    kernel_driver.edit("m.h", "static inline", "\n\nstatic inline")
    kernel_driver.edit("m.c", "MODULE_LICENSE", "// Both.\nMODULE_LICENSE")
    assert kernel_driver.changed() == set()


def test_a_line_without_code_above_a_warning_changes_nothing(kernel_driver: Driver) -> None:
    kernel_driver.edit("m.c", "\tif (WARN(a == 1", "\t/* New. */\n\n\tif (WARN(a == 1")
    assert kernel_driver.changed() == set()


def test_removed_lines_change_the_function_they_were_removed_from(kernel_driver: Driver) -> None:
    kernel_driver.edit(
        "m.c", "\tmight_sleep();\n\tmutex_lock(&lock);\n\tn += a;\n\tmutex_unlock(&lock);\n", "\tn += a;\n"
    )
    assert kernel_driver.changed_plainly() == {"one", "two"}
    assert kernel_driver.changed() == {"one"}


def test_a_changed_function_does_not_change_its_neighbours(kernel_driver: Driver) -> None:
    kernel_driver.edit("m.c", "\tn += a;\n", "\tn += a;\n\tWARN_ON(n == 3);\n\tn *= 2;\n")
    assert kernel_driver.changed() == {"one"}


def test_functions_that_change_places_are_no_change(kernel_driver: Driver) -> None:
    text = KERNEL_DRIVER["m.c"]
    start, end = text.index("int one(int a);"), text.index("int two(int a);")
    kernel_driver.write({"m.c": text[:start] + text[end:] + text[start:end]})
    assert kernel_driver.changed_plainly() == {"one", "two"}
    assert kernel_driver.changed() == set()


# --- where the files are ---

NAMES = {
    "src/m.c": """#include "../up.h"
#include "sub/../x.h"
#include "linked/y.h"
#include "alias.h"
#include <far.h>
struct place { const char *file; int line; };
extern void say(const struct place *);
void source(void);
void source(void)
{
	static const struct place here = { __FILE__, __LINE__ };
	say(&here); up(); x(); y(); z(); far();
}
""",
    **{
        f"{folder}{name}.h": f"""#ifndef {name}_H
#define {name}_H
extern void say_of(const char *, int);
static inline void {name}(void)
{{
	say_of(__FILE__, __LINE__);
}}
#endif
"""
        for folder, name in (
            ("", "up"),
            ("src/", "x"),
            ("elsewhere/deep/", "y"),
            ("elsewhere/", "z"),
            ("inc/", "far"),
        )
    },
    "src/sub/empty": "",
}
SPELLINGS: dict[str, Callable[[Path], tuple[str, Path]]] = {
    "absolutely": lambda folder: (f"-I{folder}/inc -c {folder}/src/m.c", Path("/")),
    "relatively": lambda folder: ("-I./inc -c src/m.c", folder),
    "from another folder": lambda folder: ("-I../inc -I. -c ../src/m.c", folder / "build"),
    "with dots": lambda folder: (f"-I{folder}/src/../inc -iquote {folder} -c ./src/./m.c", folder),
}


def linked(folder: Path) -> None:
    """A folder and a header that are links."""
    (folder / "src").mkdir(parents=True)
    (folder / "src/linked").symlink_to("../elsewhere/deep")
    (folder / "src/alias.h").symlink_to(folder / "elsewhere/z.h")


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_files_are_found_under_the_names_they_had_however_they_are_spelled(
    tmp_path: Path, spelled: str
) -> None:
    linked(tmp_path / "drv")
    driver = recorded(tmp_path / "drv", NAMES, *SPELLINGS[spelled](tmp_path / "drv"))
    for name in NAMES:
        driver.put(name, "/* New. */\n\n")
    assert driver.changed_plainly() == {"source"}
    pair = driver.pair()
    assert changes(pair) == set()
    assert loaded_strings(pair.patched) == loaded_strings(pair.original)
    files = {name for name in loaded_strings(pair.patched) if name.endswith((b".h", b".c"))}
    assert len(files) == 6
    # What is told of the files is told of the user's.
    for name in ("src/m.c", "up.h", "src/x.h", "elsewhere/deep/y.h", "elsewhere/z.h", "inc/far.h"):
        assert units_for([driver.folder / name], driver.module, driver.out).units == (driver.unit,)
    notes = patched_object(driver.unit, driver.out).with_suffix(".d").read_text()
    plain = patched_object(driver.unit, driver.out / "plain").with_suffix(".d").read_text()

    def real(text: str) -> list[str]:
        return [os.path.normpath(os.path.join(driver.unit.cwd, name)) for name in parse_dependency_file(text)]

    assert real(notes) == real(plain)
    assert sorted(entry.suffix for entry in driver.out.iterdir() if entry.is_file()) == [".d", ".o"]


def test_dots_behind_a_link_lead_to_what_is_above_its_target(tmp_path: Path) -> None:
    linked(tmp_path / "drv")
    files = {
        "src/m.c": '#include "linked/../z.h"\nint f(void) { return z; }\n',
        "src/z.h": "#error never read\n",
        "elsewhere/z.h": "const int z = __LINE__;\n",
        "elsewhere/deep/y.h": "",
    }
    driver = recorded(tmp_path / "drv", files, "-c src/m.c")
    driver.put("elsewhere/z.h", "// New.\n")
    assert driver.changed() == set()
    assert number(driver.pair().patched, "z") == 1


# --- what is new ---

SIMPLE = {"m.c": "int first(void) { return __LINE__; }\nint second(void) { return __LINE__; }\n"}


def test_a_new_line_has_its_own_number(tmp_path: Path) -> None:
    driver = recorded(tmp_path / "drv", {"m.c": "const int a = __LINE__;\nconst int b = __LINE__;\n"})
    driver.edit("m.c", "\n", "\n\n// New.\nconst int c = __LINE__;\n\n")
    patched = driver.pair().patched
    assert [number(patched, name) for name in "abc"] == [1, 2, 4]


@pytest.mark.parametrize("include", ['#include "new.h"', "#include <new.h>", '#include "../other/new.h"'])
def test_a_header_that_is_new_is_found(tmp_path: Path, include: str) -> None:
    driver = recorded(tmp_path / "drv", SIMPLE, "-I. -I../inc -c m.c")
    name = "../other/new.h" if ".." in include else "new.h"
    driver.write({name: "#define NEW 5\n"})
    driver.put("m.c", include + "\n")
    driver.edit("m.c", "second(void) { return __LINE__; }", "second(void) { return NEW; }")
    first = driver.changed()
    # A folder that the unit knew nothing in is part of the view from the next compile on.
    assert first == ({"first", "second"} if ".." in include else {"second"})
    assert driver.changed() == {"second"}
    assert units_for([driver.folder / name], driver.module, driver.out).units == (driver.unit,)


@pytest.mark.parametrize("hiding", ["src/x.h", "first/x.h"])
def test_a_new_header_that_hides_another_one_is_taken_instead(tmp_path: Path, hiding: str) -> None:
    files = {
        "src/m.c": '#include "x.h"\nint f(void) { return X; }\nint g(void) { return __LINE__; }\n',
        "inc/x.h": "#define X 1\n",
        "first/empty": "",
    }
    driver = recorded(tmp_path / "drv", files, "-Ifirst -Iinc -c src/m.c")
    driver.put("src/m.c", "// New.\n")
    driver.write({hiding: "#define X 2\n"})
    assert driver.changed() == {"f"}
    (driver.folder / hiding).unlink()
    assert driver.changed() == set()


def test_a_header_taken_past_the_view_makes_the_compile_a_plain_one(tmp_path: Path) -> None:
    files = {"m.c": '#include "x.h"\n' + SIMPLE["m.c"], "x.h": "#define X 1\n"}
    driver = recorded(tmp_path / "drv", files)
    (tmp_path / "drv/other.h").symlink_to("x.h")
    driver.put("x.h", "// Moved.\n")
    driver.put("m.c", '#include "other.h"\n')
    assert driver.changed() == {"first", "second"}
    assert driver.changed() == set()


def test_a_new_header_outside_of_the_view_that_hides_a_known_one_makes_the_compile_a_plain_one(
    tmp_path: Path,
) -> None:
    files = {
        "src/deep/m.c": '#include "../there/x.h"\nint f(void) { return X; }\n'
        "int g(void) { return __LINE__; }\n",
        "there/x.h": "#define X 1\n",
        "inc/empty": "",
    }
    driver = recorded(tmp_path / "drv", files, "-Iinc -c src/deep/m.c")
    driver.put("src/deep/m.c", "// New.\n")
    assert driver.changed() == set()
    driver.write({"src/there/x.h": "#define X 2\n"})
    assert driver.changed() == {"f", "g"}
    # By now the header is known, and its folder is part of the view.
    assert driver.changed() == {"f"}


def test_a_folder_with_very_many_files_is_not_worth_a_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = recorded(tmp_path / "drv", {**SIMPLE, "another": ""})
    driver.put("m.c", "// New.\n")
    assert driver.changed() == set()
    monkeypatch.setattr(overlay, "MANY", 1)
    assert driver.changed() == {"first", "second"}


# --- what the compiler says ---


def test_an_error_names_the_line_that_the_user_sees(tmp_path: Path) -> None:
    driver = recorded(tmp_path / "drv", SIMPLE)
    driver.put("m.c", "// One.\n// Two.\n")
    driver.edit("m.c", "second(void) { return __LINE__", "second(void) { return nothing")
    with pytest.raises(CompileError) as refused:
        driver.pair()
    assert refused.value.message.startswith("m.c:4:27: error: 'nothing' undeclared")
    assert "    4 | int second(void) { return nothing; }\n" in refused.value.diagnostics
    assert list(driver.out.iterdir()) == []


def test_a_warning_names_the_line_that_the_user_sees_and_the_lines_keep_their_numbers(tmp_path: Path) -> None:
    source = "int f(void)\n{\n\tint unused;\n\treturn __LINE__;\n}\n"
    driver = recorded(tmp_path / "drv", {"m.c": source}, f"-Wall -c {tmp_path}/drv/m.c")
    driver.put("m.c", "// One.\n// Two.\n")
    pair = driver.pair()
    assert pair.warnings.startswith(
        f"{driver.folder}/m.c: In function 'f':\n{driver.folder}/m.c:5:13: warning:"
    )
    assert pair.warnings.count("warning:") == 1
    assert changes(pair) == set()


def test_a_new_line_that_would_collide_gets_a_number_of_its_own(tmp_path: Path) -> None:
    # Line 3 of the base, and a new line 3, each with a name made of its number.
    unique = "#define NAME_(line) name_##line\n#define NAME(line) NAME_(line)\n"
    driver = recorded(tmp_path / "drv", {"m.c": unique + "struct NAME(__LINE__) {};\n" + SIMPLE["m.c"]})
    driver.edit("m.c", "struct", "\n\nstruct")
    driver.edit("m.c", unique, unique + "union NAME(__LINE__) {};\n")
    assert driver.changed() == set()


def test_a_name_made_of_a_line_moves_with_its_function(tmp_path: Path) -> None:
    counts = "#define HITS_(line) hits_##line\n#define HITS(line) HITS_(line)\n"
    counts += "#define COUNT(who) ({ static int HITS(__LINE__); ++HITS(__LINE__); })\n"
    counts += "extern int ones, twos;\n"
    one, two = (
        f"int {it}(int a)\n{{\n\ta += {it}s;\n\treturn a * COUNT({it});\n}}\n" for it in ("one", "two")
    )
    driver = recorded(tmp_path / "drv", {"m.c": counts + one + two})
    driver.write({"m.c": counts + two + one})
    assert driver.changed() == set()
    # The more lines are there, the more does the second function look like the one that moved.
    driver.write(
        {"m.c": counts + two.replace("a +=", "a -=") + one.replace("\ta +=", "\ta++;\n" * 9 + "\ta +=")}
    )
    assert driver.changed() == {"one", "two"}
    pair = driver.pair()
    assert _counters(pair.patched) == _counters(pair.original)


def _counters(file: Path) -> set[str]:
    return {symbol.name.partition(".")[0] for symbol in read_object(file).symbols if "hits_" in symbol.name}


def test_a_source_that_numbers_its_lines_itself_is_compiled_as_it_is(tmp_path: Path) -> None:
    driver = recorded(tmp_path / "drv", {"m.c": '#line 7 "m.y"\n' + SIMPLE["m.c"]})
    driver.put("m.c", "// New.\n")
    assert driver.changed() == set()
    driver.edit("m.c", '"m.y"\n', '"m.y"\n\n')
    assert driver.changed() == {"first", "second"}


# --- everywhere ---

CONSTRUCTS = """#define say(format, ...) do { \\
	static const struct { int line; const char *text; } here = \\
		{ __LINE__, format }; \\
	say_at(&here, ##__VA_ARGS__); \\
} while (0)
#define TWICE(a) \\
	(a) + \\
	(a)
extern void say_at(const void *, ...);
/* A comment
 * of several
 * lines with a " in it. */
static const char *const text = "a string \\
of two lines";
__attribute__((noinline)) int one(int a)
{
	say("one %d %s",
		a,
		text);
	if (a)
		say("yes");
	else
		say("no");
	return TWICE(a +
			__LINE__);
}

#ifdef MISSING
int missing(void)
{
	return __LINE__;
}
#elif 1
int there(void)
{
	say("there");
	return __LINE__;
}
#else
#error never
#endif

struct table {
	int line;
	int (*call)(int);
};
const struct table all[] = {
	{
		__LINE__,
		one,
	},
	{ __LINE__, one },
};

int two(int a)
{
	switch (a) {
	case 1: // a comment \\
		that goes on
		say("1");
		break;
	default:
		asm volatile("nop\\n\\t"
				"nop" : : "i" (__LINE__));
		say
			("name and arguments apart");
	}
	return one(
#if 1
		a
#else
		-a
#endif
		);
}
"""


def test_a_line_added_anywhere_changes_no_function_but_the_one_it_is_part_of(tmp_path: Path) -> None:
    driver = recorded(tmp_path / "drv", {"m.c": CONSTRUCTS})
    lines = CONSTRUCTS.split("\n")
    wide = {}
    for place in range(len(lines) - 1):
        now = "\n".join([*lines[:place], "/* new */", *lines[place:]])
        # Behind a backslash it belongs to the string or the macro; in a comment it ends it.
        if lines[place - 1].endswith("\\") or lines[place - 1].startswith(("/* A", " * of")):
            now = now.replace("/* new */", "\\" if lines[place - 1].endswith("\\") else "new")
        driver.write({"m.c": now})
        assert stabilised(CONSTRUCTS, now)
        if found := driver.changed():
            wide[place] = found
    # A macro's argument that is a line number itself, and on a line of its own, below the new one.
    assert wide == {lines.index("\t\t\t__LINE__);"): {"one"}}
