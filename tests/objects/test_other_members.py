# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Changed callbacks that are registered with another member of the object that they find."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotreload.diff.unit_diff import diff_unit, unit_object_of
from hotreload.elf.reader import read_object
from tests.objects.compiling import compiled

HEAD = """
#define container_of(p, t, m) ((t *)((char *)(p) - __builtin_offsetof(t, m)))
struct timer { void (*fn)(struct timer *); long when; };
struct dev { int id; struct timer a; int hits; struct timer b; };
void init_timer(struct timer *, void (*)(struct timer *), int); void add(struct timer *); struct dev *find(int); struct dev fixed;
"""
CALLBACK = "static void tick(struct timer *t) { struct dev *d = container_of(t, struct dev, A); d->hits++; add(&d->A); }"
SET_UPS = {
    "a call": "void start(int i) { struct dev *d = find(i); if (d) init_timer(&d->A, tick, i); }",
    "a call before others": "void start(int i) { struct dev *d = find(i); find(2); init_timer(&d->A, tick, 0); add(&d->A); }",
    "a store": "void start(int i) { struct dev *d = find(i); d->A.fn = tick; add(&d->A); }",
    "an object of its own": "void start(int i) { init_timer(&fixed.A, tick, 0); add(&fixed.A); }",
}


def codes(tmp_path: Path, before: str, after: str) -> list[tuple[str, str]]:
    objects = (
        unit_object_of(read_object(compiled(HEAD + text, tmp_path / name, "-g")))
        for name, text in (("before", before), ("after", after))
    )
    return [(o.code, o.symbol) for o in diff_unit(*objects, {}).obstacles]


@pytest.mark.parametrize("how", SET_UPS)
def test_a_callback_that_takes_another_member_for_its_own_is_refused(how: str, tmp_path: Path) -> None:
    source = CALLBACK + SET_UPS[how]
    assert codes(tmp_path, source.replace("A", "a"), source.replace("A", "b")) == [("HR2207", "tick")]


@pytest.mark.parametrize("how", SET_UPS)
def test_a_callback_that_changes_otherwise_is_live(how: str, tmp_path: Path) -> None:
    before = (CALLBACK + SET_UPS[how]).replace("A", "a")
    after = before.replace("d->hits++", "d->hits += 2").replace("find(i);", "find(i + 1); if (i > 7) return;")
    assert codes(tmp_path, before, after) == []


def test_a_second_member_may_be_registered_too(tmp_path: Path) -> None:
    before = (CALLBACK + SET_UPS["a call"]).replace("A", "a")
    after = before.replace("d->hits++", "d->hits += 2").replace(
        "tick, i);", "tick, i), init_timer(&d->b, tick, i);"
    )
    assert codes(tmp_path, before, after) == []


def test_a_callback_that_stays_as_it_is_may_be_registered_elsewhere(tmp_path: Path) -> None:
    callback = "static void tick(struct timer *t) { t->when++; add(t); }"
    source = callback + SET_UPS["a call"]
    assert codes(tmp_path, source.replace("A", "a"), source.replace("A", "b")) == []


LISTS = """
struct list_head { struct list_head *next, *prev; }; struct hlist_node { struct hlist_node *next, **pprev; };
struct hlist_head { struct hlist_node *first; }; struct rb_node { long color; struct rb_node *right, *left; }; struct rb_root { struct rb_node *node; };
struct item { struct list_head la; int n; struct list_head lb; struct rb_node ra, rb; struct hlist_node ha, hb; };
_Bool __list_add_valid(void *, void *, void *); void *xa_store(void *, long, void *, int); int idr_alloc(void *, void *, int, int, int); void rb_insert_color(struct rb_node *, struct rb_root *); struct item *alloc(int); void show(int);
static inline void ladd(struct list_head *new, struct list_head *prev, struct list_head *next) {
    if (__list_add_valid(new, prev, next)) { next->prev = new; new->next = next; new->prev = prev; prev->next = new; } }
static struct list_head items = { &items, &items }; static struct rb_root root; static struct hlist_head table[16]; static struct { int n; struct list_head list; } box; int count;
struct host { long id; struct list_head list; struct hlist_head head; struct rb_root root; }; struct host *look(int);
"""
LINKS = {
    "items": "ladd(&i->lA, items.prev, &items);",
    "box": "ladd(&i->lA, &box.list, box.list.next);",
    "root": "rb_insert_color(&i->rA, &root);",
    "a list of an object": "ladd(&i->lA, d->list.prev, &d->list);",
    "the front of a list of an object": "ladd(&i->lA, &d->list, d->list.next);",
    "an unchecked list of an object": "struct hlist_head *h = &d->head; i->hA.next = h->first; h->first = &i->hA; i->hA.pprev = &h->first;",
    "a tree of an object": "rb_insert_color(&i->rA, &d->root);",
    "an xarray": "xa_store(d, c, &i->lA, 3);",
    "numbers": "idr_alloc(d, &i->lA, 1, 0, 3);",
    "table": "struct hlist_head *h = &table[count & 15]; i->hA.next = h->first; if (h->first) h->first->pprev = &i->hA.next; h->first = &i->hA; i->hA.pprev = &h->first;",
}


@pytest.mark.parametrize("head", LINKS)
def test_what_is_linked_by_another_member_from_now_on_is_refused(head: str, tmp_path: Path) -> None:
    source = (
        LISTS
        + f"void write(int c) {{ struct host *d = look(c); struct item *i = alloc(c); if (!i) return; i->n = ++count; {LINKS[head]} }}"
    )
    before, after = (source.replace("A", each) for each in "ab")
    assert codes(tmp_path, before, after) == [("HR2101", "write")]
    loop = "for (int k = 0; k < c; k++) { struct item *j = alloc(k); if (j && j->n) show(j->n); }"
    assert codes(tmp_path / "other", before, before.replace("++count;", f"count += 2; {loop}")) == []


MOVE = "static inline void del(struct list_head *e) { e->next->prev = e->prev; e->prev->next = e->next; }"


def test_an_object_that_comes_from_elsewhere_is_linked_by_the_same_member(tmp_path: Path) -> None:
    take = "struct item *i = container_of(d->list.next, struct item, lb); del(&i->lb);"
    source = LISTS + MOVE + f"void write(int c) {{ struct host *d = look(c); TAKE {LINKS['items']} }}"
    source = source.replace("A", "a")
    before, after = (
        source.replace("TaKE", "struct item *i = alloc(c); if (!i) return;"),
        source.replace("TaKE", take),
    )
    assert codes(tmp_path, before, after) == []


COOKIES = """
struct part { int hits; }; struct whole { int id; struct part part; }; struct whole *get(int); int more(void); struct file { long z; void *private_data; };
struct ops { int (*show)(void *); }; int request_threaded_irq(int, void *, void *, long, const char *, void *); void *kthread_create_on_node(void *, void *, int, const char *);
int single_open(void *, void *, void *); void *proc_create_data(const char *, int, void *, const void *, void *); void sort(void *, long, long, void *, void *);
"""
CALLED_WITH = "static int f(void *data) { BODY return 0; }"
TAKEN = {
    "&get(0)->part": "struct part *p = data; while (more()) p->hits++;",
    "get(0)": "struct whole *w = data; while (more()) w->part.hits++;",
}


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("int write(int c) { return request_threaded_irq(c, f, 0, 0, 0, COOKIE); }", [("HR2207", "f")]),
        ("void write(int c) { kthread_create_on_node(f, COOKIE, -1, 0); }", [("HR2207", "f")]),
        ("int open(void *file) { return single_open(file, f, COOKIE); }", [("HR2207", "f")]),
        ("static const struct ops ops = { f }; void write(int c) { proc_create_data(0, c, 0, &ops, COOKIE); }", [("HR2207", "f")]),
        ("void write(int c) { sort(COOKIE, 1, 4, f, 0); }", []),
    ],
)  # fmt: skip
def test_what_a_callback_is_called_with_is_that_of_the_registration(
    how: str, refused: list[tuple[str, str]], tmp_path: Path
) -> None:
    sources = [
        COOKIES + CALLED_WITH.replace("BODY", body) + how.replace("COOKIE", cookie)
        for cookie, body in TAKEN.items()
    ]
    assert codes(tmp_path, *sources) == refused


def test_what_another_object_points_at_is_the_same_member_for_who_reads_it(tmp_path: Path) -> None:
    opens = "int open(struct file *file) { file->private_data = COOKIE; return 0; }"
    reads = "int read(struct file *file) { void *data = file->private_data; BODY return 0; }"
    both = [COOKIES + opens.replace("COOKIE", c) + reads.replace("BODY", body) for c, body in TAKEN.items()]
    assert codes(tmp_path, *both) == [("HR2101", "open")]
    alone = [COOKIES + opens.replace("COOKIE", c) for c in TAKEN]
    assert codes(tmp_path / "alone", *alone) == []


def test_an_object_may_be_linked_into_another_list_of_the_same_object(tmp_path: Path) -> None:
    host = LISTS.replace(
        "struct list_head list; struct hlist_head head;",
        "struct list_head list, more; struct hlist_head head;",
    )
    read = "int first(int c) { return container_of(look(c)->list.next, struct item, la)->n; }"
    source = (
        host
        + f"{read} void write(int c) {{ struct host *d = look(c); struct item *i = alloc(c); if (!i) return; {LINKS['a list of an object']} }}"
    )
    before = source.replace("A", "a")
    after = before.replace("d->list.prev, &d->list", "d->more.prev, &d->more").replace(")->n;", ")->n + 1;")
    assert codes(tmp_path, before, after) == []
