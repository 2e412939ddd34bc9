# SPDX-License-Identifier: MIT
"""Modules are found and ordered. The ELF files are made here: a .modinfo section is all they need."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hotreload.errors import InputError, KernelUnfitError
from hotreload.vm.kernel_modules import ModuleFolder, ModuleSet, modinfo, modules_dep
from tests.conftest import require


def module(name: str, depends: str = "") -> bytes:
    """A relocatable x86-64 ELF file with one section of interest."""
    info = f"license=GPL\0depends={depends}\0name={name}\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    body = info + names
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        *(1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 2),
    )
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", place, kind, 0, 0, offset, size, 0, 0, 1, 0)
        for place, kind, offset, size in (
            (0, 0, 0, 0),
            (1, 1, 64, len(info)),
            (10, 3, 64 + len(info), len(names)),
        )
    )
    return header + body + sections


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lib/modules/RELEASE, where ext4 and pvpanic-pci are built in."""
    (tmp_path / "kernel/drivers").mkdir(parents=True)
    for name, depends in (
        ("virtio_net", "virtio_ring,virtio,net-failover"),
        ("virtio-pci", "virtio_ring,virtio"),
        ("net_failover", ""),
        ("virtio", "virtio_ring"),
        ("virtio_ring", ""),
    ):
        (tmp_path / "kernel/drivers" / f"{name}.ko").write_bytes(module(name, depends))
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/misc/pvpanic-pci.ko\n")
    return tmp_path


def closure(folder: Path | None, *names: str, optional: tuple[str, ...] = ()) -> ModuleSet:
    return asyncio.run(ModuleFolder("6.1.0", folder).closure(names, optional))


def names(found: ModuleSet) -> list[str]:
    return [each.name for each in found.modules]


def test_what_a_module_needs_comes_before_it_and_once(folder: Path) -> None:
    assert names(closure(folder, "virtio_pci", "virtio_net")) == [
        "virtio_ring",
        "virtio",
        "virtio_pci",
        "net_failover",
        "virtio_net",
    ]


def test_what_is_built_in_is_not_looked_for(folder: Path) -> None:
    found = closure(folder, "ext4", "pvpanic_pci")
    assert (names(found), found.built_in) == ([], {"ext4", "pvpanic_pci"})


def test_a_kernel_without_the_network_driver_is_refused_and_named(folder: Path) -> None:
    (folder / "kernel/drivers/virtio_net.ko").unlink()
    with pytest.raises(KernelUnfitError, match=r"kernel 6\.1\.0 has no virtio_net") as caught:
        closure(folder, "virtio_net")
    assert caught.value.code == "HR3102"


def test_what_is_optional_may_be_absent(folder: Path) -> None:
    assert names(closure(folder, optional=("virtio_rng", "net_failover"))) == ["net_failover"]


def test_a_kernel_without_modules_has_everything_built_in() -> None:
    assert closure(None, "virtio_pci").built_in == {"virtio_pci"}


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_a_compressed_module_is_the_same_module(folder: Path, suffix: str) -> None:
    plain = folder / "kernel/drivers/virtio_ring.ko"
    data = plain.read_bytes()
    plain.unlink()
    match suffix:
        case ".xz":
            packed = lzma.compress(data)
        case ".gz":
            packed = gzip.compress(data)
        case _:
            require(shutil.which("zstd"), "zstd", "apt-get install zstd")
            packed = subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    plain.with_name(plain.name + suffix).write_bytes(packed)
    assert closure(folder, "virtio_ring").modules[0].content == data


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_a_broken_module_is_named(folder: Path, suffix: str) -> None:
    (folder / f"kernel/drivers/broken.ko{suffix}").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(InputError, match=r"broken\.ko"):
        closure(folder, "broken")


def test_a_file_without_modinfo_is_no_module() -> None:
    with pytest.raises(InputError, match=r"it has no \.modinfo"):
        modinfo(module("x").replace(b".modinfo", b".notinfo"), "x.ko")


def test_modules_dep_lists_last_what_must_be_loaded_first(folder: Path) -> None:
    text = modules_dep(closure(folder, "virtio_net").modules)
    assert text.splitlines() == [
        "virtio_ring.ko:",
        "virtio.ko: virtio_ring.ko",
        "net_failover.ko:",
        "virtio_net.ko: net_failover.ko virtio.ko virtio_ring.ko",
    ]
