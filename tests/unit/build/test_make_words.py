# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hotreload.build.make_words import Dkms, read_dkms, wanted_variables


def variables(folder: Path, makefile: str, dkms: str | None = None) -> tuple[str, ...]:
    (folder / "Makefile").write_text(makefile)
    if dkms is not None:
        (folder / "dkms.conf").write_text(dkms)
    return asyncio.run(wanted_variables(folder))


TWO_PARTS = """ifneq ($(KERNELRELEASE),)
obj-$(CONFIG_FOO) += foo.o
else
KDIR ?= /nowhere/build
%s
all:
	$(MAKE) -C $(KDIR) M=$(CURDIR) %s modules
endif
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [("", "CONFIG_FOO=m"), ("export CONFIG_FOO = m", ""), ("CONFIG_FOO := m", "CONFIG_FOO=$(CONFIG_FOO)")],
)
def test_what_the_authors_part_of_a_makefile_tells_kbuild_is_told_by_us(
    tmp_path: Path, first: str, then: str
) -> None:
    assert variables(tmp_path, TWO_PARTS % (first, then)) == ("CONFIG_FOO=m",)


def test_which_kernel_and_which_folder_is_ours_to_say(tmp_path: Path) -> None:
    said = variables(tmp_path, TWO_PARTS % ("", 'CONFIG_FOO=m V=1 W=1 EXTRA_CFLAGS="-DA -DB"'))
    assert said == ("CONFIG_FOO=m", "EXTRA_CFLAGS=-DA -DB")


def test_a_makefile_without_options_is_not_asked(tmp_path: Path) -> None:
    assert variables(tmp_path, "obj-m := foo.o\n$(shell touch $(M)/ran)\n") == ()


def test_nothing_of_the_authors_part_is_made(tmp_path: Path) -> None:
    variables(tmp_path, TWO_PARTS % ("", "CONFIG_FOO=m") + f"\nall: made\nmade:\n\ttouch {tmp_path}/made\n")
    assert not (tmp_path / "made").exists()


def test_dkms_conf_names_modules_and_variables(tmp_path: Path) -> None:
    (tmp_path / "dkms.conf").write_text(
        'PACKAGE_NAME="foo"\n'
        "MAKE[0]=\"make -C ${kernel_source_dir} M=${dkms_tree}/foo CONFIG_FOO=m 'DEBUG=1 2' modules\"\n"
        'BUILT_MODULE_NAME[0]="foo-core"\nBUILT_MODULE_NAME[1]=bar # a comment\n'
        'DEST_MODULE_LOCATION[0]="/extra"\n'
    )
    assert read_dkms(tmp_path) == Dkms(("foo_core", "bar"), ("CONFIG_FOO=m", "DEBUG=1 2"))


def test_without_dkms_conf_there_is_nothing(tmp_path: Path) -> None:
    assert read_dkms(tmp_path) == Dkms()


def test_dkms_conf_wins_over_the_makefile(tmp_path: Path) -> None:
    dkms = 'MAKE="make CONFIG_FOO=y"\n'
    assert variables(tmp_path, TWO_PARTS % ("", "CONFIG_FOO=m"), dkms) == ("CONFIG_FOO=y",)


def test_the_working_folder_that_a_makefile_passes_on_is_the_modules(tmp_path: Path) -> None:
    assert variables(tmp_path, TWO_PARTS % ("", "CONFIG_FOO=m PWD=$(PWD)")) == (
        "CONFIG_FOO=m",
        f"PWD={tmp_path}",
    )
