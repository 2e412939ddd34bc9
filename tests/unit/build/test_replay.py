# SPDX-License-Identifier: MIT
"""What is changed in a recorded command before it runs again, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.build.replay import Shadow, include_folders, replayed, shadowed

RECORDED = ("gcc-12", "-Wp,-MMD,/m/.foo.o.d", "-I./include", "-O2", "-g", "-c", "-o", "/m/foo.o", "/m/foo.c")
KERNEL = Path("/k")
SHADOW = Shadow(Path("/s"), lambda path: not path.is_relative_to(KERNEL), Path("/m"))


def test_only_outputs_sections_and_debug_flags_change() -> None:
    assert replayed(RECORDED, output=Path("/c/x.o"), dependencies=Path("/c/x.d"), debug=["-gbtf"]) == (
        *(
            "gcc-12",
            "-I./include",
            "-O2",
            "-c",
            "/m/foo.c",
            "-ffunction-sections",
            "-fdata-sections",
            "-gbtf",
        ),
        *("-fmax-errors=100", "-MMD", "-MF", "/c/x.d", "-o", "/c/x.o"),
    )


def test_every_spelling_of_debug_information_is_taken_out_and_nothing_like_it() -> None:
    debug = (
        "-g",
        "-g3",
        "-ggdb",
        "-gdwarf-5",
        "-gz=zlib",
        "-gsplit-dwarf",
        "-Wa,-gdwarf-5",
        "-gno-as-locview",
    )
    kept = ("-fno-gcse", "-Wa,--noexecstack", "-DX=-g", "--param=ggc-min-expand=1")
    command = replayed(("gcc", *debug, *kept), output=Path("/o"), dependencies=Path("/d"), debug=())
    assert set(command).isdisjoint(debug)
    assert set(command).issuperset(kept)


def test_an_assembly_source_keeps_its_flags() -> None:
    command = replayed(RECORDED, output=Path("/o"), dependencies=Path("/d"), debug=["-gbtf"], assembly=True)
    assert "-g" in command
    assert "-ffunction-sections" not in command
    assert "-gbtf" not in command


def test_base_and_patched_command_differ_in_paths_only() -> None:
    def flags(argv: tuple[str, ...]) -> set[str]:
        return {word for word in argv if word.startswith("-") and "prefix-map" not in word}

    base = shadowed(RECORDED, KERNEL, Path("/m/foo.c"), SHADOW)
    assert flags(replayed(base, output=Path("/o"), dependencies=Path("/d"), debug=())) == flags(
        replayed(RECORDED, output=Path("/o"), dependencies=Path("/d"), debug=())
    )


def test_the_users_paths_move_into_the_shadow_and_the_kernels_stay() -> None:
    argv = ("gcc", "-I/k/include", "-I", "/m/inc", "-I/m/../lib", "-include", "/m/config.h", "-c", "/m/foo.c")
    assert shadowed(argv, KERNEL, Path("/m/foo.c"), SHADOW)[3:] == (
        *("-I/k/include", "-I", "/s/m/inc", "-I/s/m/../lib", "-include", "/s/m/config.h"),
        *("-c", "/s/m/foo.c"),
    )


def test_a_relative_source_is_mapped_back_to_its_relative_name() -> None:
    argv = shadowed(("gcc", "-c", "foo.c"), Path("/m"), Path("/m/foo.c"), SHADOW)
    assert argv[-1] == "/s/./m/foo.c"
    assert "-fmacro-prefix-map=/s/./m/=" in argv


def test_a_prefix_map_of_kbuilds_own_holds_in_the_shadow_too() -> None:
    argv = shadowed(("gcc", "-fmacro-prefix-map=/m/=", "-c", "/m/foo.c"), KERNEL, Path("/m/foo.c"), SHADOW)
    assert argv.index("-fmacro-prefix-map=/s/m/=") > argv.index("-fmacro-prefix-map=/s=")


@pytest.mark.parametrize("above", ["./", "../"])  # built in place, or in a folder in the sources
def test_a_relative_prefix_map_holds_for_what_is_spelled_by_it(above: str) -> None:
    argv = ("gcc", f"-I{above}include", f"-fmacro-prefix-map={above}=", "-c", "/m/foo.c")
    words = shadowed(argv, Path("/m/out"), Path("/m/foo.c"), SHADOW)
    assert f"-I/s/./m/out/{above}include" in words
    assert words.index(f"-fmacro-prefix-map=/s/./m/out/{above}=") > words.index(
        "-fmacro-prefix-map=/s/./m/out/="
    )


def test_a_kernel_folder_above_the_module_is_searched_in_the_shadow_first() -> None:
    inside = Shadow(Path("/s"), lambda path: path.is_relative_to("/k/drivers/m"), Path("/k/drivers/m"))
    argv = shadowed(("gcc", "-I/k", "-I/k/include"), KERNEL, Path("/k/drivers/m/foo.c"), inside)
    assert argv[3:] == ("-I/s/k", "-I/k", "-I/k/include")


def test_include_folders_are_found_in_both_spellings() -> None:
    assert include_folders(("gcc", "-I./a", "-I", "b", "-isystem", "c", "-iquoted", "-c")) == (
        "./a",
        "b",
        "c",
        "d",
    )
