# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.build.kernel_tree import KernelTree, find_kernel
from hotreload.build.module_needs import missing_for_modules, require_for_modules
from hotreload.errors import EnvironmentFault

RELEASE = "6.12.0-9-test"


@pytest.fixture(autouse=True)
def _no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    (tmp_path / "programs").mkdir()


def kernel(root: Path, option: str, *files: str) -> KernelTree:
    for name, text in {
        "Makefile": "",
        ".config": f"CONFIG_X86_64=y\n{option}\n",
        "Module.symvers": "",
        "include/generated/utsrelease.h": f'#define UTS_RELEASE "{RELEASE}"\n',
        "arch/x86/boot/bzImage": "",
        **dict.fromkeys(files, ""),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return find_kernel(str(root))


def test_modules_of_a_kernel_with_btf_need_pahole_and_the_command_is_told(tmp_path: Path) -> None:
    tree = kernel(tmp_path / "k", "CONFIG_DEBUG_INFO_BTF_MODULES=y", "vmlinux")
    with pytest.raises(EnvironmentFault, match=r"pahole is not installed.*DEBUG_INFO_BTF_MODULES") as caught:
        require_for_modules(tree)
    assert caught.value.code == "HR5106"
    assert "apt-get install pahole" in (caught.value.hint or "")


def test_nothing_is_asked_for_where_kbuild_would_not_run_it(tmp_path: Path) -> None:
    with_btf = kernel(tmp_path / "a", "CONFIG_DEBUG_INFO_BTF_MODULES=y")  # no vmlinux: kbuild skips it
    without = kernel(tmp_path / "b", "# CONFIG_DEBUG_INFO_BTF_MODULES is not set", "vmlinux")
    assert [*missing_for_modules(with_btf), *missing_for_modules(without)] == []


def test_what_is_there_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "programs/pahole").write_text("#!/bin/sh\n")
    (tmp_path / "programs/pahole").chmod(0o755)
    require_for_modules(kernel(tmp_path / "k", "CONFIG_DEBUG_INFO_BTF_MODULES=y", "vmlinux"))
