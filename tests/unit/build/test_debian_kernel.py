# SPDX-License-Identifier: MIT
"""The packaged kernel's cache: what needs no package archive to be tried."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hotreload.build import debian_kernel
from hotreload.build.debian_kernel import fetch_debian_kernel, open_kernel, parse_package, relocate
from hotreload.errors import EnvironmentFault
from hotreload.paths import cache_folder

RELEASE = "6.1.0-9-cloud-amd64"


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_first_paragraph_of_apt_cache_show_is_read() -> None:
    text = "Package: a\nVersion: 6.1.9-2\nDescription: x\n more\n\nPackage: a\nVersion: 6.1.1-1\n"
    assert parse_package(text) == {"Package": "a", "Version": "6.1.9-2", "Description": "x"}


def test_absolute_references_of_the_packages_point_into_the_cache(tmp_path: Path) -> None:
    headers = tmp_path / f"usr/src/linux-headers-{RELEASE}"
    modules = tmp_path / f"lib/modules/{RELEASE}"
    for folder in (headers, modules):
        folder.mkdir(parents=True)
    (headers / "Makefile").write_text("include /usr/src/linux-headers-6.1.0-9-common/Makefile\n")
    (modules / "build").symlink_to(f"/usr/src/linux-headers-{RELEASE}")
    relocate(tmp_path, Path("/cache/k"), RELEASE)
    assert (
        headers / "Makefile"
    ).read_text() == "include /cache/k/usr/src/linux-headers-6.1.0-9-common/Makefile\n"
    assert os.readlink(modules / "build") == f"/cache/k/usr/src/linux-headers-{RELEASE}"


def test_packages_that_apt_does_not_know_are_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "apt-cache", "echo 'N: No packages found' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(
        EnvironmentFault, match="apt does not know the package linux-image-cloud-amd64"
    ) as fault:
        asyncio.run(fetch_debian_kernel())
    assert fault.value.code == "HR5109"
    assert "apt-get update" in (fault.value.hint or "")


def test_a_series_has_packages_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "apt-cache", "exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(EnvironmentFault, match=r"no package linux-image-6\.12-cloud-amd64"):
        asyncio.run(open_kernel("debian:6.12"))


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show = f"""case "$3" in
linux-image-cloud-amd64) echo Package: $3; echo Version: 6.1.9-1; echo Depends: linux-image-{RELEASE};;
*) echo Package: ${{3%%=*}}; echo Version: 6.1.9-1;;
esac"""
    program(tmp_path / "bin", "apt-cache", show)
    program(tmp_path / "bin", "apt-get", "touch half.deb; echo 'E: Failed to fetch x  404' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(EnvironmentFault, match="Failed to fetch x  404") as fault:
        asyncio.run(fetch_debian_kernel())
    assert fault.value.code == "HR5109"
    assert [entry.name for entry in (cache_folder() / "kernels").iterdir()] == [".lock"]


def test_a_machine_without_apt_is_told_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentFault, match="needs apt-cache") as fault:
        asyncio.run(fetch_debian_kernel())
    assert "-K" in (fault.value.hint or "")


def test_a_cache_folder_that_make_cannot_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    with pytest.raises(EnvironmentFault, match="no space or colon"):
        asyncio.run(fetch_debian_kernel())


def test_two_at_once_fetch_one_after_the_other(tmp_path: Path) -> None:
    order: list[str] = []

    async def hold(name: str) -> None:
        async with debian_kernel.locked(tmp_path / "lock", lambda line: order.append(f"{name} {line[:7]}")):
            order.append(f"{name} in")
            await asyncio.sleep(0.05)
            order.append(f"{name} out")

    async def both() -> None:
        await asyncio.gather(hold("a"), hold("b"))

    asyncio.run(both())
    assert order == ["a in", "b waiting", "a out", "b in", "b out"]
