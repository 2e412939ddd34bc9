# SPDX-License-Identifier: MIT
"""What a fragment asks for, merged into a .config, and our own configurations beside what they must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.build.kernel_config import (
    FRAGMENT,
    NAMED,
    Setting,
    check_taken,
    config_file,
    configuration,
    merged,
    options_of,
    read_settings,
    unmet,
)
from hotreload.build.kernel_tree import NEEDS, Need
from hotreload.errors import InputError, KernelUnfitError
from hotreload.vm.image import read_recipe, recipe_folder

TEXT = "# no licence\n\n# it switches\n# code\nCONFIG_A=y\nCONFIG_B=n\n# numbers\nCONFIG_C=4\n"
WANTED = read_settings(TEXT)
# LIVEPATCH depends on one of the two, and neither can be set by itself.
FOLLOWS_FROM_LIVEPATCH = ("DYNAMIC_FTRACE_WITH_REGS", "DYNAMIC_FTRACE_WITH_ARGS")


def fragment() -> dict[str, str]:
    return {setting.name: setting.value for setting in read_settings(config_file(FRAGMENT).read_text())}


def test_the_comment_above_settings_is_the_reason_for_them() -> None:
    assert read_settings(TEXT) == (
        Setting("A", "y", "it switches code"),
        Setting("B", "n", "it switches code"),
        Setting("C", "4", "numbers"),
    )


def test_what_is_missing_is_put_behind_what_is_there() -> None:
    config = "# head\nCONFIG_X=m\n# CONFIG_A is not set\nCONFIG_AA=y\nCONFIG_B=m\nCONFIG_C=4\n"
    assert merged(config, WANTED) == (
        "# head\nCONFIG_X=m\nCONFIG_AA=y\nCONFIG_C=4\nCONFIG_A=y\n# CONFIG_B is not set\n"
    )


def test_a_last_line_without_its_end_is_a_line() -> None:
    assert merged("CONFIG_X=m", WANTED[:1]) == "CONFIG_X=m\nCONFIG_A=y\n"


def test_a_configuration_that_has_everything_stays_as_it_is_to_the_letter() -> None:
    config = "\n\nCONFIG_C=4\n#\nCONFIG_A=y"
    assert merged(config, WANTED) == config


def test_of_several_lines_for_an_option_the_last_one_holds() -> None:
    text = 'CONFIG_A=y\nCONFIG_S="a b"\n# CONFIG_A is not set\n#CONFIG_B=y\nCONFIG_B=m\n'
    assert options_of(text) == {"A": "n", "S": '"a b"', "B": "m"}


def test_an_option_that_is_nowhere_is_off() -> None:
    assert [setting.name for setting in unmet("CONFIG_A=m\n", WANTED)] == ["A", "C"]


def test_what_only_some_kernels_offer_is_asked_of_those_alone() -> None:
    (wanted,) = read_settings("# where offered: it counts\nCONFIG_NEW=y\n")
    assert wanted == Setting("NEW", "y", "it counts", optional=True)
    older, off, on = "CONFIG_A=y\n", "# CONFIG_NEW is not set\n", "CONFIG_NEW=y\n"
    assert merged(older, [wanted]) == older
    assert merged(off, [wanted]) == merged(on, [wanted]) == on
    check_taken(older, [wanted], Path("/linux"))
    with pytest.raises(KernelUnfitError, match="does not allow NEW=y: it counts"):
        check_taken(off, [wanted], Path("/linux"))


def test_what_kconfig_did_not_take_is_named_with_its_reason() -> None:
    with pytest.raises(KernelUnfitError) as raised:
        check_taken("CONFIG_B=y\nCONFIG_C=4\n", WANTED, Path("/linux"))
    assert raised.value.message == "the configuration of /linux does not allow A=y, B=n: it switches code"
    assert raised.value.code == "HR3102"


def test_a_configuration_is_named_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("CONFIG_A=y\n")
    assert config_file(str(tmp_path / "mine")) == tmp_path / "mine"
    assert [config_file(name).name for name in NAMED] == [
        "minimal.config",
        "virtio.config",
        "debug.config",
    ]
    with pytest.raises(InputError, match="there is no kernel configuration tiny"):
        config_file("tiny")


def test_a_configuration_may_stand_above_another(tmp_path: Path) -> None:
    (tmp_path / "small.config").write_text("CONFIG_A=y\nCONFIG_B=n\n")
    (tmp_path / "large.config").write_text("# with: small.config\nCONFIG_B=y\n")
    assert options_of(configuration(tmp_path / "large.config")) == {"A": "y", "B": "y"}


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.any_of[0])
def test_the_fragment_asks_for_all_that_hot_reload_needs(need: Need) -> None:
    if need.any_of != FOLLOWS_FROM_LIVEPATCH:
        settings = [fragment().get(name) for name in need.any_of]
        assert set(settings) == {"n"} if need.forbidden else "y" in settings


def test_the_fragment_asks_for_what_the_guest_loads_first() -> None:
    required = read_recipe(recipe_folder()).required_modules
    assert [fragment().get(name.upper()) for name in required] == ["y"] * len(required)


def test_every_setting_of_the_fragment_has_a_reason() -> None:
    assert all(setting.reason for setting in read_settings(config_file(FRAGMENT).read_text()))


@pytest.mark.parametrize("name", NAMED)
def test_no_configuration_of_ours_says_other_than_the_fragment(name: str) -> None:
    options = options_of(config_file(name).read_text())
    said = {option: (value, options[option]) for option, value in fragment().items() if option in options}
    assert all(wanted == ours for wanted, ours in said.values()), said
