# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
from pathlib import Path

import pytest

from hotreload.config import Config, load_config, packaged_flavour, settings, wants_color
from hotreload.errors import InputError
from hotreload.paths import config_file


def project(folder: Path, text: str, name: str = "hotreload.toml") -> Path:
    (folder / name).write_text(text)
    return folder


def user_file(text: str) -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text(text)


def error_of(folder: Path, environ: dict[str, str] | None = None, **flags: object) -> InputError:
    with pytest.raises(InputError) as caught:
        load_config(folder, flags, environ or {})
    assert caught.value.code == "HR1008"
    assert "\n" not in caught.value.message
    return caught.value


def test_without_any_file_the_defaults_hold(tmp_path: Path) -> None:
    config = load_config(tmp_path, environ={})
    assert config == Config()
    assert (config.kernel, config.max_rung, config.load) == ("debian", "module", ())


def test_a_flag_wins_over_environment_over_project_over_user(tmp_path: Path) -> None:
    user_file("cpus = 2\nmemory_mb = 200\nguest = 'user'\nsetup = 'user'")
    folder = project(tmp_path, "cpus = 3\nmemory_mb = 300\nguest = 'project'")
    config = load_config(folder, {"cpus": 5}, {"HOTRELOAD_CPUS": "4", "HOTRELOAD_MEMORY_MB": "400"})
    assert (config.cpus, config.memory_mb, config.guest, config.setup) == (5, 400, "project", "user")


def test_a_flag_that_was_not_given_leaves_the_file_in_force(tmp_path: Path) -> None:
    assert load_config(project(tmp_path, "cpus = 3"), {"cpus": None}, {}).cpus == 3


def test_every_kind_of_value_is_read_from_toml(tmp_path: Path) -> None:
    lines = ('load = ["foo debug=1", "bar"]', "boot_timeout = 20", "transition_timeout = 2.5", "setup = 'ls'")
    config = load_config(project(tmp_path, "\n".join(lines) + "\naccel = 'tcg'"), environ={})
    assert config.load == ("foo debug=1", "bar")
    assert (config.boot_timeout, config.transition_timeout) == (20.0, 2.5)
    assert isinstance(config.boot_timeout, float)
    assert (config.accel, config.setup) == ("tcg", "ls")


def test_every_kind_of_value_is_read_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "HOTRELOAD_LOAD": "foo debug=1; bar",
        "HOTRELOAD_BOOT_TIMEOUT": "20.5",
        "HOTRELOAD_ACCEL": "kvm",
    }
    config = load_config(tmp_path, environ=environ)
    assert (config.load, config.boot_timeout, config.accel) == (("foo debug=1", "bar"), 20.5, "kvm")


def test_an_unknown_key_is_an_error_that_names_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    error = error_of(project(tmp_path, "cpus = 1\n\nmemroy_mb = 512\n"))
    assert error.message == f"{tmp_path}/hotreload.toml:3: unknown key 'memroy_mb'"
    assert error.hint == "did you mean 'memory_mb'?"


def test_an_unknown_key_that_resembles_none_lists_them_all(tmp_path: Path) -> None:
    hint = error_of(project(tmp_path, "xyzzy = 1")).hint
    assert hint is not None
    assert all(key in hint for key in settings())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cpus = 'two'", "a whole number of CPUs from 1 to 64, not 'two'"),
        ("cpus = true", "a whole number of CPUs from 1 to 64, not true"),
        ("cpus = 1.5", "a whole number of CPUs from 1 to 64, not 1.5"),
        ("cpus = 0", "a whole number of CPUs from 1 to 64, not 0"),
        ("boot_timeout = nan", "a number of seconds from 1 to 3600, not nan"),
        ("accel = 'hvf'", "one of auto, kvm, tcg, not 'hvf'"),
        ("load = [1]", 'a list of strings, like ["foo debug=1", "bar"], not [1]'),
        ("setup = ['ls']", "a shell command as a string, not ['ls']"),
        ("guest = ''", "a string that is not empty, not ''"),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_that_says_what_is_expected(
    tmp_path: Path, line: str, expected: str
) -> None:
    key = line.split()[0]
    error = error_of(project(tmp_path, line))
    assert error.message == f"{tmp_path}/hotreload.toml:1: {key}: expected {expected}"
    assert error.hint == settings()[key]


def test_a_wrong_value_names_the_variable_or_the_flag_it_came_from(tmp_path: Path) -> None:
    assert error_of(tmp_path, {"HOTRELOAD_CPUS": "many"}).message.startswith(
        "HOTRELOAD_CPUS: expected a whole"
    )
    assert error_of(tmp_path, max_rung="sky").message.startswith("--max-rung: expected one of patch, module")


def test_a_file_that_is_not_toml_is_one_line_with_the_place(tmp_path: Path) -> None:
    error = error_of(project(tmp_path, "cpus = 1\nmemory_mb = = 2\n"))
    assert error.message == f"{tmp_path}/hotreload.toml:2: not TOML: invalid value"


def test_a_file_that_is_not_text_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "hotreload.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in error_of(tmp_path).message


def test_a_pyproject_counts_only_with_our_table(tmp_path: Path) -> None:
    project(tmp_path, "[tool.other]\ncpus = 'x'", "pyproject.toml")
    assert load_config(tmp_path, environ={}) == Config()
    project(tmp_path, "[tool.hotreload]\ncpus = 2", "pyproject.toml")
    assert load_config(tmp_path, environ={}).cpus == 2


def test_a_broken_pyproject_of_somebody_else_is_not_our_business(tmp_path: Path) -> None:
    project(tmp_path, "[tool.other\n", "pyproject.toml")
    assert load_config(tmp_path, environ={}) == Config()


def test_hotreload_toml_wins_over_pyproject(tmp_path: Path) -> None:
    project(tmp_path, "[tool.hotreload]\ncpus = 2", "pyproject.toml")
    assert load_config(project(tmp_path, "cpus = 3"), environ={}).cpus == 3


def test_the_file_of_the_repository_holds_for_its_folders(tmp_path: Path) -> None:
    project(tmp_path, "cpus = 2")
    driver = tmp_path / "repository" / "drivers" / "foo"
    driver.mkdir(parents=True)
    assert load_config(driver, environ={}).cpus == 1, "no repository: only the folder itself counts"
    (tmp_path / "repository" / ".git").mkdir()
    assert load_config(driver, environ={}).cpus == 1, "the search ends at the repository's root"
    project(tmp_path / "repository", "cpus = 3")
    assert load_config(driver, environ={}).cpus == 3


def test_a_kernel_path_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    folder = project(tmp_path / "driver", "kernel = '../linux'")
    assert load_config(folder, environ={}).kernel == str(tmp_path / "linux")
    assert load_config(folder, {"kernel": "debian"}, {}).kernel == "debian"
    assert load_config(folder, {"kernel": "debian:6.12"}, {}).kernel == "debian:6.12"


@pytest.mark.parametrize(
    ("kernel", "flavour"),
    [("debian", "cloud-amd64"), ("debian:6.12", "6.12-cloud-amd64"), ("debian:", None), ("../linux", None)],
)
def test_a_packaged_kernel_is_the_newest_or_one_of_a_series(kernel: str, flavour: str | None) -> None:
    assert packaged_flavour(kernel) == flavour


def test_no_color_turns_colour_off_unless_a_flag_or_variable_of_ours_says_more(tmp_path: Path) -> None:
    assert load_config(tmp_path, environ={"NO_COLOR": "1"}).color == "never"
    assert load_config(tmp_path, environ={"NO_COLOR": ""}).color == "auto"
    assert load_config(tmp_path, environ={"NO_COLOR": "1", "HOTRELOAD_COLOR": "always"}).color == "always"
    assert load_config(tmp_path, {"color": "always"}, {"NO_COLOR": "1"}).color == "always"


def test_automatic_colour_is_for_terminals_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert [wants_color(choice, io.StringIO()) for choice in ("auto", "always", "never")] == [
        False,
        True,
        False,
    ]
    assert wants_color("auto", Terminal())
    assert not wants_color("never", Terminal())


def test_every_setting_has_a_line_of_help() -> None:
    assert set(settings()) == set(Config.__dataclass_fields__)
    assert all(0 < len(text) < 100 and "\n" not in text for text in settings().values())


def test_the_readme_names_every_setting() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [key for key in settings() if f"`{key}`" not in readme] == []
