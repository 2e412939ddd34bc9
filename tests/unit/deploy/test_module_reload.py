# SPDX-License-Identifier: MIT
"""In which order modules are loaded; tests/guest/test_module_reload.py loads them."""

from __future__ import annotations

from hotreload.deploy.module_reload import Load, load_order


def test_a_module_that_uses_another_one_is_loaded_after_it() -> None:
    depends = {"user": ("core", "crc32"), "core": ()}
    assert load_order(depends) == (Load("core"), Load("crc32"), Load("user"))


def test_wanted_modules_come_in_their_order_with_their_parameters_and_what_they_use() -> None:
    depends = {"a": (), "b": ("a",), "c": ()}
    wanted = ["c", "b debug=1 name=x"]
    assert load_order(depends, wanted) == (Load("c"), Load("a"), Load("b", "debug=1 name=x"))


def test_a_module_may_be_written_with_dashes_as_its_file_is() -> None:
    assert load_order({"my_driver": ()}, ["my-driver speed=9"]) == (Load("my_driver", "speed=9"),)
