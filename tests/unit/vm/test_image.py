# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotreload.errors import EnvironmentFault, InputError
from hotreload.paths import cache_folder
from hotreload.vm import image
from hotreload.vm.image import GuestImage, build_image, read_recipe, recipe_folder
from tests.conftest import require


@dataclass(frozen=True)
class Kernel:
    """One with everything built in."""

    release: str = "6.1.0-test"
    modules: Path | None = None


def build(extra: dict[str, bytes] | None = None, release: str = "6.1.0-test") -> GuestImage:
    for program, package in (("busybox", "busybox-static"), ("dropbearkey", "dropbear-bin")):
        require(shutil.which(program), program, f"apt-get install {package}")
    return asyncio.run(build_image(Kernel(release), extra=extra))


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Path to (mode, content) of a newc archive."""
    found, place = {}, 0
    while True:
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[place + 110 : place + 110 + name_size - 1].decode()
        start = (place + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        place = (start + size + 3) // 4 * 4


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_image_is_built_once_and_then_found() -> None:
    first = build()
    made = first.initramfs.stat().st_mtime_ns
    assert build() == first
    assert first.initramfs.stat().st_mtime_ns == made


@pytest.mark.parametrize("change", [{"extra": {"/x": b"y"}}, {"release": "6.2.0"}])
def test_another_content_is_another_image_with_other_keys(change: dict[str, object]) -> None:
    first, second = build(), build(**change)  # type: ignore[arg-type]
    assert first.digest != second.digest
    assert first.client_key.read_bytes() != second.client_key.read_bytes()


def test_private_keys_are_private_and_the_hosts_is_in_the_image_only() -> None:
    built = build()
    assert [permissions(path) for path in (built.client_key, built.initramfs)] == [0o600, 0o600]
    assert sorted(path.name for path in built.initramfs.parent.iterdir()) == [
        "client_key",
        "host_key.pub",
        "image.json",
        "initramfs",
    ]
    inside = members(built.initramfs.read_bytes())
    assert stat.S_IMODE(inside["etc/dropbear/host_key"][0]) == 0o600
    assert stat.S_IMODE(inside["root/.ssh"][0]) == 0o700
    assert inside["root/.ssh/authorized_keys"][1].startswith(b"ssh-ed25519 ")


def test_programs_come_with_the_libraries_they_need() -> None:
    inside = members(build().initramfs.read_bytes())
    assert "usr/bin/dropbear" in inside
    assert [path for path in inside if re.search(r"/libc\.so\.6$", path)]
    assert [path for path in inside if re.search(r"/ld-linux-x86-64\.so\.2$", path)]


def test_extra_files_are_where_they_were_asked_for_and_scripts_can_be_run() -> None:
    inside = members(
        build({"/usr/lib/hotreload/agent": b"#!/bin/sh\n", "/etc/x": b"1"}).initramfs.read_bytes()
    )
    assert inside["usr/lib/hotreload/agent"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert inside["etc/x"] == (stat.S_IFREG | 0o644, b"1")


def test_an_image_cut_short_by_a_crash_is_made_again() -> None:
    first = build()
    first.initramfs.write_bytes(b"")
    assert build().initramfs.stat().st_size > 1_000_000


def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(folder: Path) -> bytes:
        raise EnvironmentFault(f"no key for {folder.name}")

    monkeypatch.setattr(image, "_make_host_key", fail)
    with pytest.raises(EnvironmentFault):
        build()
    assert list((cache_folder() / "images").iterdir()) == []


def test_a_busybox_that_lacks_an_applet_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(recipe_folder(), folder)
    text = (folder / "recipe.toml").read_text().replace('"[",', '"[", "teleport",')
    (folder / "recipe.toml").write_text(text)
    with pytest.raises(EnvironmentFault, match="has no teleport") as caught:
        asyncio.run(build_image(Kernel(), folder))
    assert caught.value.code == "HR5110"


@pytest.mark.parametrize("text", ["applets = [", "applets = []", "modules = 3\napplets=[]\nprograms=[]"])
def test_a_broken_recipe_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/recipe.toml")):
        read_recipe(tmp_path)


def test_the_recipe_is_found_beside_the_package_or_in_it() -> None:
    assert (recipe_folder("minimal") / "init").is_file()
    with pytest.raises(InputError):
        recipe_folder("nothing-of-this-name")
