# SPDX-License-Identifier: MIT
"""The soak's driver, compiled as a program of this machine, answers what is foretold of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hotreload.survey.random_edits import RandomEdits, Save
from hotreload.survey.soak_driver import Driver, first_driver
from hotreload.survey.soak_model import Model
from hotreload.survey.soak_program import program_of, reading
from hotreload.survey.soak_texts import never_edited, texts

# What the kernel would give it.
KERNEL = """\
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
struct seq_file { int unused; };
struct timer_list { int unused; };
struct task_struct { int unused; };
#define scnprintf snprintf
#define seq_printf(m, ...) printf(__VA_ARGS__)
#define WARN_ONCE(condition, ...) ((void)((condition) && abort_now()))
#define READ_ONCE(x) (*(volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))
#define barrier_data(p) __asm__ volatile("" : : "r"(p) : "memory")
#define kmalloc(size, flags) malloc(size)
#define kfree free
#define module_param_named(...)
#define EXPORT_SYMBOL_GPL(name)
#define MODULE_LICENSE(text)
#define module_init(f)
#define module_exit(f)
#define DEFINE_TIMER(name, f) struct timer_list name
#define mod_timer(...)
#define del_timer_sync(...)
#define kthread_should_stop() 1
#define kthread_run(...) NULL
#define kthread_stop(...)
#define msleep(...)
#define proc_mkdir(...) NULL
#define proc_create_single(...)
#define proc_remove(...)
#define pr_info(...)
#define IS_ERR(x) (!(x))
#define __init
#define __exit
static inline int abort_now(void) { abort(); }
"""
MAIN = """\
#include "soak.h"
int main(void)
{
	struct seq_file m;

	return gamma_show(&m, NULL) + beta_show(&m, NULL) + alpha_show(&m, NULL) + main_show(&m, NULL);
}
"""
HEADERS = ("delay", "kthread", "module", "proc_fs", "seq_file", "slab", "timer")


def edited(seed: int, edits: int) -> Driver:
    """The last driver of so many saves that compiles, and that no guest would die of."""
    model, generator = Model(first_driver()), RandomEdits(seed)
    driver = model.disk
    for _ in range(edits):
        deed = generator.next(model)
        if isinstance(deed, Save):
            model.save(deed.driver)
        if not (model.does_not_compile or model.is_held_up or model.left_out):
            driver = model.disk
    return driver


@pytest.mark.parametrize("edits", [0, 40, 120])
def test_what_the_driver_answers_is_what_its_statements_compute(edits: int, tmp_path: Path) -> None:
    driver = edited(7, edits)
    include = tmp_path / "include" / "linux"
    include.mkdir(parents=True)
    for name in HEADERS:
        (include / f"{name}.h").touch()
    files = {**never_edited(), **texts(driver), "kernel.h": KERNEL, "program.c": MAIN}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    sources = sorted(name for name in files if name.endswith(".c"))
    flags = ("-O2", "-w", "-std=gnu11", "-I", "include", "-include", "kernel.h")
    subprocess.run(["gcc", *flags, *sources, "-o", "program"], cwd=tmp_path, check=True)
    told = subprocess.run(["./program"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    expected = reading(program_of(driver))
    lines = [line.removeprefix("= ") for line in told.splitlines() if line.startswith("= ")]
    assert lines == [*expected.lines.values()]
    counted = {line.split()[0] for line in told.splitlines() if not line.startswith("= ")}
    assert counted == expected.kept.keys()
