# SPDX-License-Identifier: MIT
"""Functions that newly undo what another one newly does: live objects went through the old code."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.paired_calls import is_undone_by
from tests.objects.test_variables import compared, refusals

DECLARED = "int mutex_lock(void *); void mutex_unlock(void *); int down_read(void *); void up_read(void *);"
DECLARED += " int try_module_get(void *); void module_put(void *); void work(int); extern int m, s;"
PLAIN = DECLARED + " int open(void *o) {{ {0} work(1); return 0; }} void release(void *o) {{ work(2); {1} }}"
EMPTY = PLAIN.format("", "")
GET, PUT = "if (!try_module_get(o)) return -1;", "module_put(o);"


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        (("", ""), (GET, PUT), True),
        (("mutex_lock(&m);", "mutex_unlock(&m);"), ("down_read(&s);", "up_read(&s);"), True),
        (("", ""), (GET, ""), False),
        (("", ""), ("", PUT), False),
        ((GET, ""), (GET, PUT), False),
        (("", ""), ("mutex_lock(&m); work(3); mutex_unlock(&m);",) * 2, False),
        (("", ""), (GET, "mutex_lock(&m); work(3); mutex_unlock(&m);"), False),
    ],
)
def test_what_one_function_newly_does_and_another_undoes_is_refused(
    before: tuple[str, str], after: tuple[str, str], refused: bool, tmp_path: Path
) -> None:
    diff = compared(tmp_path, PLAIN.format(*before), PLAIN.format(*after))
    assert refusals(diff) == ([("HR2211", "release")] if refused else [])


def test_what_a_variable_holds_was_made_by_the_new_code(tmp_path: Path) -> None:
    head = "void *kthread_create(int); void kthread_stop(void *); void work(int); struct o { void *thread; };"
    lazy = head + " static void *thread; void f(void) { if (!thread) thread = kthread_create(1); work(1); }"
    ends = lazy + " void g(struct o *o) { work(2); if (thread) kthread_stop(thread); }"
    plain = head + " void f(void) { work(1); } void g(struct o *o) { work(2); }"
    assert refusals(compared(tmp_path / "1", plain, ends)) == []
    of_object = ends.replace("if (thread) kthread_stop(thread)", "if (o->thread) kthread_stop(o->thread)")
    assert refusals(compared(tmp_path / "2", plain, of_object)) == [("HR2211", "g")]


def test_what_exit_code_removes_by_name_is_no_object(tmp_path: Path) -> None:
    head = "void *proc_create(const char *); void remove_proc_entry(const char *); void work(int);"
    made = head + ' void write(void) {{ work(1); proc_create("x"); }}'
    made += ' void {}(void) {{ work(2); remove_proc_entry("x"); }}'
    plain = head + " void write(void) {{ work(1); }} void {}(void) {{ work(2); }}"
    for number, (name, codes) in enumerate([("cleanup_module", []), ("reset", [("HR2211", "reset")])]):
        diff = compared(tmp_path / str(number), plain.format(name), made.format(name))
        assert refusals(diff) == codes


def test_calls_that_only_move_into_helpers_are_not_new(tmp_path: Path) -> None:
    whole = DECLARED + " int f(void *o) { mutex_lock(&m); work(1); mutex_unlock(&m); return 0; }"
    split = DECLARED + " static noinline void take(void) { mutex_lock(&m); work(4); }"
    split += " static noinline void drop(void) { mutex_unlock(&m); work(5); }"
    split += " int f(void *o) { take(); work(1); drop(); return 0; }"
    assert refusals(compared(tmp_path, whole, split)) == []
    # What one function does through new ones, it does itself.
    bare = DECLARED + " int f(void *o) { work(1); return 0; } void g(void *o) { work(2); }"
    both = split + " void g(void *o) { work(2); }"
    assert refusals(compared(tmp_path / "2", bare, both)) == []
    apart = both.replace("drop(); return 0", "return 0").replace("work(2);", "work(2); drop();")
    assert refusals(compared(tmp_path / "3", bare, apart)) == [("HR2211", "g")]


@pytest.mark.parametrize(
    ("do", "undo"),
    [
        ("napi_enable", "napi_disable"),
        ("get_device", "put_device"),
        ("alloc_workqueue", "destroy_workqueue"),
        ("request_threaded_irq", "free_irq"),
        ("enable_irq", "disable_irq"),
        ("_raw_spin_lock_irqsave", "_raw_spin_unlock_irqrestore"),
        ("mutex_trylock", "mutex_unlock"),
        ("down_write", "up_write"),
        ("proc_create_single_data", "remove_proc_entry"),
        ("device_create_file", "device_remove_file"),
        ("misc_register", "misc_deregister"),
        ("kthread_create_on_node", "kthread_stop"),
    ],
)
def test_the_names_say_what_undoes_what(do: str, undo: str) -> None:
    assert is_undone_by(do, undo)
    assert not is_undone_by(undo, do)


@pytest.mark.parametrize(
    ("do", "undo"),
    [
        ("down_read", "up_write"),
        ("get_device", "module_put"),
        ("napi_enable", "disable_irq"),
        ("mutex_lock", "mutex_lock"),
        ("_printk", "kfree"),
        ("misc_register", "device_unregister"),
        ("kthread_create_on_node", "kthread_should_stop"),
    ],
)
def test_functions_for_other_things_undo_nothing(do: str, undo: str) -> None:
    assert not is_undone_by(do, undo)
