# SPDX-License-Identifier: MIT
"""The model of scripts/random-pairs says what its C does: run here, as a program, instead of in a guest."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from hotreload.survey.pair_families import FAMILIES
from hotreload.survey.pair_model import Model, Sources, edited, first_sources, printed_lines

KERNEL = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef unsigned long long u64;
struct seq_file { int unused; };
struct work_struct { void (*func)(struct work_struct *); };
struct timer_list { void (*function)(struct timer_list *); struct timer_list *next; };
static struct timer_list *timers;
static unsigned long jiffies;
#define HZ 100
#define __read_mostly
struct mutex { int unused; };
typedef int spinlock_t, rwlock_t;
#define mutex_init(lock)
#define mutex_lock(lock)
#define mutex_unlock(lock)
#define spin_lock_init(lock)
#define spin_lock(lock)
#define spin_unlock(lock)
#define rwlock_init(lock)
#define write_lock(lock)
#define write_unlock(lock)
#define READ_ONCE(x) (x)
#define WRITE_ONCE(x, value) ((x) = (value))
#define DO_ONCE_LITE(f) ({ static int done; if (!done) { done = 1; f(); } })
#define INIT_WORK(work, f) ((work)->func = (f))
#define schedule_work(work)
#define flush_work(work) (work)->func(work)
#define cancel_work_sync(work)
#define timer_setup(timer, f, flags) ((timer)->function = (f), (timer)->next = timers, timers = (timer))
#define mod_timer(timer, when)
#define del_timer_sync(timer)
static void msleep(int ms)
{
    for (struct timer_list *t = timers; t; t = t->next)
        t->function(t);
}
#define pr_info(...) fprintf(stderr, __VA_ARGS__)
#define noinline __attribute__((noinline))
#define __always_inline inline __attribute__((always_inline))
#define __init
#define __exit
#define module_param(name, type, mode)
#define module_init(f)
#define module_exit(f)
#define MODULE_LICENSE(text)
#define kzalloc(size, flags) calloc(1, size)
#define kcalloc(count, size, flags) calloc(count, size)
#define kfree free
#define ENOMEM 12
#define EIO 5
#define seq_printf(m, ...) printf(__VA_ARGS__)
#define seq_puts(m, text) fputs(text, stdout)
#define seq_putc(m, c) putchar(c)
#define proc_create_single(name, mode, parent, show) ((void *)(show))
#define remove_proc_entry(name, parent)
"""
MAIN = 'int main(void) { return pairs_init() || pairs_show(0, 0) || puts("#") < 0 || pairs_show(0, 0); }\n'


def run(sources: Sources, folder: Path) -> list[str]:
    """What two readings print."""
    text = re.sub(r"^#include <linux.*\n", "", sources.text, flags=re.MULTILINE)
    bytes_of_mac = r'" %02x:%02x:%02x:%02x:%02x:%02x", ' + ", ".join(rf"\1[{n}]" for n in range(6))
    text = re.sub(r'" %pM", (\w+)', bytes_of_mac, text)
    (folder / "pairs.c").write_text(KERNEL + text + MAIN)
    subprocess.run(["gcc", "-O2", "-w", "pairs.c", "-o", "pairs"], cwd=folder, check=True)
    return subprocess.run([folder / "pairs"], check=True, capture_output=True, text=True).stdout.split("#\n")


@pytest.mark.parametrize("seed", range(3))
def test_the_model_foretells_what_freshly_loaded_sources_print(seed: int, tmp_path: Path) -> None:
    source, sources = random.Random(seed), first_sources()
    for _ in range(30):
        _, sources = edited(sources, source)
    model = Model(sources)
    model.load()
    for reading in run(sources, tmp_path):
        assert model.look(printed_lines(reading)) == []


def test_a_wrong_answer_is_told() -> None:
    model = Model(first_sources())
    model.load()
    right = {e.name: e.read(e.loaded())[0] for e in model.sources.elements}
    assert model.look(right) == []
    again = {e.name: e.read(e.read(e.loaded())[1])[0] for e in model.sources.elements}
    assert len(model.look(right)) == sum(again[name] != right[name] for name in right) > 10


def test_every_family_is_edited() -> None:
    source, sources = random.Random(1), first_sources()
    kinds = set()
    for _ in range(200):
        kind, sources = edited(sources, source)
        kinds.update(kind.split("+"))
    assert {family.__name__ for family in FAMILIES} <= kinds


def test_a_size_of_init_that_changed_cannot_go_on() -> None:
    before = first_sources()
    model = Model(before)
    model.load()
    elements = list(before.elements)
    place = next(i for i, e in enumerate(elements) if type(e).__name__ == "SizeOfInit")
    source = random.Random(0)
    after = elements[place]
    while after.loaded() == elements[place].loaded():
        after = elements[place].edited(source)
    elements[place] = after
    model.went_on(Sources(tuple(elements)), "")
    wrong = model.look({e.name: e.read(e.loaded())[0] for e in elements})
    assert len(wrong) == 1
    assert "that the edit is not applied" in wrong[0]
