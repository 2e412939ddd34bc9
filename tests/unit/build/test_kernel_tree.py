# SPDX-License-Identifier: MIT
"""Finding a kernel's parts, and saying what it lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from hotreload.build.kernel_tree import (
    NEEDS,
    KernelTree,
    check_fit,
    find_kernel,
    image_version,
    kernel_compiler,
)
from hotreload.errors import EnvironmentFault, InputError, KernelUnfitError

FIT = {name: "y" for need in NEEDS if not need.forbidden for name in need.any_of}
RELEASE = "6.1.0-9-test"


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def configuration(options: Mapping[str, str]) -> str:
    return "# a comment\n" + "".join(f"CONFIG_{name}={value}\n" for name, value in options.items())


def built_tree(root: Path, options: Mapping[str, str] = FIT) -> Path:
    write(
        root,
        {
            "Makefile": "VERSION = 6\ninclude $(srctree)/arch/$(SRCARCH)/Makefile\n",
            ".config": configuration(options),
            "Module.symvers": "",
            "include/generated/utsrelease.h": f'#define UTS_RELEASE "{RELEASE}"\n',
            "arch/x86/boot/bzImage": "",
        },
    )
    return root


def test_a_kernel_built_in_place_is_its_own_source_and_output(tmp_path: Path) -> None:
    kernel = find_kernel(str(built_tree(tmp_path)))
    assert (kernel.release, kernel.arch) == (RELEASE, "x86_64")
    assert kernel.source == kernel.output == tmp_path
    assert kernel.image == tmp_path / "arch/x86/boot/bzImage"
    assert kernel.modules is None


def test_an_output_folder_knows_its_source(tmp_path: Path) -> None:
    write(tmp_path / "src", {"Kconfig": ""})
    output = built_tree(tmp_path / "out")
    (output / "source").symlink_to(tmp_path / "src")
    assert find_kernel(str(output)).source == tmp_path / "src"


def test_relocated_headers_find_source_image_and_modules_below_their_own_root(tmp_path: Path) -> None:
    headers = tmp_path / "usr/src/linux-headers-x"
    write(
        tmp_path,
        {
            "usr/src/common/Makefile": "",
            "usr/src/linux-headers-x/Makefile": f"include {tmp_path}/usr/src/common/Makefile\n",
            "usr/src/linux-headers-x/.config": configuration(FIT),
            "usr/src/linux-headers-x/Module.symvers": "",
            # Debian's kernel.release is not what the kernel calls itself.
            "usr/src/linux-headers-x/include/config/kernel.release": "6.1.99\n",
            "usr/src/linux-headers-x/include/generated/utsrelease.h": f'#define UTS_RELEASE "{RELEASE}"\n',
            f"boot/vmlinuz-{RELEASE}": "",
            f"boot/System.map-{RELEASE}": "",
            f"lib/modules/{RELEASE}/kernel/a.ko": "",
        },
    )
    kernel = find_kernel(str(headers))
    assert kernel == KernelTree(
        release=RELEASE,
        arch="x86_64",
        source=tmp_path / "usr/src/common",
        output=headers,
        image=tmp_path / f"boot/vmlinuz-{RELEASE}",
        modules=tmp_path / f"lib/modules/{RELEASE}",
        config=headers / ".config",
        system_map=tmp_path / f"boot/System.map-{RELEASE}",
    )


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("Makefile", "has no Makefile"),
        (".config", "not configured: it has no .config"),
        ("Module.symvers", "not built: it has no Module.symvers"),
        ("include/generated/utsrelease.h", "has no include/generated/utsrelease.h"),
        ("arch/x86/boot/bzImage", "no bootable image"),
    ],
)
def test_what_is_missing_from_a_kernel_tree_is_named(tmp_path: Path, missing: str, told: str) -> None:
    (built_tree(tmp_path) / missing).unlink()
    with pytest.raises(InputError, match=told) as refused:
        find_kernel(str(tmp_path))
    assert refused.value.hint


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        find_kernel(str(tmp_path / "none"))


def test_options_are_read_with_and_without_prefix(tmp_path: Path) -> None:
    kernel = find_kernel(str(built_tree(tmp_path, FIT | {"VIRTIO": "m", "HASH": '"sha256"'})))
    assert [kernel.option(name) for name in ("CONFIG_LIVEPATCH", "VIRTIO", "HASH", "NONE")] == [
        "y",
        "m",
        "sha256",
        None,
    ]


def test_a_kernel_that_meets_every_need_is_fit(tmp_path: Path) -> None:
    check_fit(find_kernel(str(built_tree(tmp_path))))


def test_every_unmet_need_is_told_at_once_with_the_command_that_meets_it(tmp_path: Path) -> None:
    options = {name: value for name, value in FIT.items() if name not in ("LIVEPATCH", "KALLSYMS_ALL")}
    kernel = find_kernel(str(built_tree(tmp_path, options | {"GCC_PLUGIN_LATENT_ENTROPY": "y"})))
    (kernel.source / "init").mkdir()
    (kernel.source / "init" / "main.c").touch()
    with pytest.raises(KernelUnfitError) as refused:
        check_fit(kernel)
    for name in (
        "LIVEPATCH is not set",
        "KALLSYMS_ALL is not set",
        "GCC_PLUGIN_LATENT_ENTROPY must not be set",
    ):
        assert name in refused.value.message
    assert refused.value.code == "HR3102"
    settings = "--enable LIVEPATCH --enable KALLSYMS_ALL --disable GCC_PLUGIN_LATENT_ENTROPY"
    assert refused.value.hint == f"scripts/config {settings}; make olddefconfig all"


def test_headers_cannot_be_configured_so_another_kernel_is_the_way_out(tmp_path: Path) -> None:
    kernel = find_kernel(str(built_tree(tmp_path, {"MODULES": "y"})))
    with pytest.raises(KernelUnfitError) as refused:
        check_fit(kernel)
    assert (
        refused.value.hint
        == "these are headers of a kernel that is already built; use another kernel: -K debian"
    )


def test_either_kind_of_ftrace_registers_is_enough(tmp_path: Path) -> None:
    options = {name: value for name, value in FIT.items() if name != "DYNAMIC_FTRACE_WITH_REGS"}
    check_fit(find_kernel(str(built_tree(tmp_path, options))))


def test_a_kernel_that_wants_signed_modules_only_has_its_own_code(tmp_path: Path) -> None:
    kernel = find_kernel(str(built_tree(tmp_path, FIT | {"MODULE_SIG_FORCE": "y"})))
    with pytest.raises(KernelUnfitError, match="hotreload's modules are not signed") as refused:
        check_fit(kernel)
    assert refused.value.code == "HR3105"


def compiler(folder: Path, version: str) -> str:
    program = folder / "testcc-1"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    return str(folder)


def test_another_build_of_the_kernels_compiler_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = find_kernel(str(built_tree(tmp_path, FIT | {"CC_VERSION_TEXT": '"testcc-1 (Debian) 1.0"'})))
    monkeypatch.setenv("PATH", compiler(tmp_path, "testcc-1 (Debian) 1.0"), prepend=":")
    assert asyncio.run(kernel_compiler(kernel)).note is None
    compiler(tmp_path, "testcc-1 (Debian) 1.1")
    note = asyncio.run(kernel_compiler(kernel)).note
    assert note is not None
    assert "testcc-1 (Debian) 1.0; here is testcc-1 (Debian) 1.1" in note


def test_a_missing_compiler_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    kernel = find_kernel(str(built_tree(tmp_path, FIT | {"CC_VERSION_TEXT": '"gcc-99 (Debian) 99.0"'})))
    with pytest.raises(EnvironmentFault, match="gcc-99 is not installed") as fault:
        asyncio.run(kernel_compiler(kernel))
    assert fault.value.code == "HR5106"
    assert "apt-get install gcc-99" in (fault.value.hint or "")


def test_an_image_says_which_build_it_is(tmp_path: Path) -> None:
    image = bytearray(0x4000)
    image[0x202:0x206], image[0x20E:0x210] = b"HdrS", (0x3000).to_bytes(2, "little")
    text = b"6.1.0-56 (builder@host) #1 SMP Debian 6.1.192-2 (2026-11-16)"
    image[0x3200 : 0x3200 + len(text)] = text
    (tmp_path / "vmlinuz").write_bytes(image)
    assert image_version(tmp_path / "vmlinuz") == text.decode()
    (tmp_path / "other").write_bytes(b"\x7fELF")
    assert image_version(tmp_path / "other") is None


@pytest.mark.parametrize(
    ("lines", "fit"),
    [
        ("", True),  # older than v6.14
        ("# CONFIG_BASIC_MODVERSIONS is not set\n# CONFIG_EXTENDED_MODVERSIONS is not set\n", False),
        ("# CONFIG_BASIC_MODVERSIONS is not set\nCONFIG_EXTENDED_MODVERSIONS=y\n", True),
        ("CONFIG_BASIC_MODVERSIONS=y\n# CONFIG_EXTENDED_MODVERSIONS is not set\n", True),
    ],
)
def test_a_kernel_whose_modules_have_no_checksums_is_unfit(lines: str, fit: bool, tmp_path: Path) -> None:
    built_tree(tmp_path, {name: value for name, value in FIT.items() if "MODVERSIONS" not in name})
    with (tmp_path / ".config").open("a") as config:
        config.write(lines)
    kernel = find_kernel(str(tmp_path))
    if fit:
        check_fit(kernel)
    else:
        with pytest.raises(KernelUnfitError, match="BASIC_MODVERSIONS or EXTENDED_MODVERSIONS is not set"):
            check_fit(kernel)
