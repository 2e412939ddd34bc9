# SPDX-License-Identifier: MIT
"""Functions that use a member which only other new code sets up: objects that exist have nothing there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.objects.test_variables import compared, refusals

HEAD = """
    struct list { struct list *next, *prev; }; struct wait { int lock; struct list head; };
    struct o { long a; struct wait wait; struct list items; void *queue; void (*done)(struct o *); long n; };
    void __init_waitqueue_head(struct wait *, const char *); int __wake_up(struct wait *, int);
    void *alloc_workqueue(int); int queue_work_on(void *, int); void work(int); void *zalloc(int);
    extern struct o *last; void finished(struct o *); static struct wait idle; static struct o only;
    static void *pool; static struct wait ready = { 1, { &ready.head, &ready.head } };
    struct q { long a; struct wait mutex; } *beside; void lock(struct wait *);
    void report(void) __attribute__((cold)); int _printk(const char *);
"""
MAKE = """
    struct o *make(void) { struct o *o = zalloc(sizeof(struct o)); BEFORE MAKES o->a = 1; work(1); return o; }
"""
USE = """
    void use(struct o *o) { work(2); USES o->n++; }
"""
WAIT, WAKE = '__init_waitqueue_head(&o->wait, "w");', "__wake_up(&o->wait, 1);"
EMPTY = "o->items.next = o->items.prev = &o->items;"
QUEUE, QUEUED = "o->queue = alloc_workqueue(3);", "queue_work_on(o->queue, 1);"


def sources(makes: str = "", uses: str = "", text: str = HEAD + MAKE + USE) -> str:
    return text.replace("BEFORE", "").replace("MAKES", makes).replace("USES", uses)


@pytest.mark.parametrize(
    ("makes", "uses"),
    [
        (WAIT, WAKE),
        (EMPTY, "o->items.next->prev = 0;"),
        (QUEUE, QUEUED),
        ("o->done = finished;", "o->done(o);"),
        ("o->queue = o;", "((struct o *)o->queue)->n = 3;"),
        (WAIT.replace("o->wait", "idle"), WAKE.replace("o->wait", "idle")),
        (WAIT.replace("o->wait", "only.wait"), WAKE.replace("o->wait", "only.wait")),
        ("pool = alloc_workqueue(3);", "queue_work_on(pool, 1);"),
        (QUEUE, "if (__builtin_expect(o->n == 7, 0)) { report(); queue_work_on(o->queue, 1); }"),
    ],
)
def test_what_one_function_sets_up_and_another_one_relies_on_is_refused(
    makes: str, uses: str, tmp_path: Path
) -> None:
    diff = compared(tmp_path, sources(), sources(makes, uses))
    assert refusals(diff) == [("HR2211", "use")]


@pytest.mark.parametrize(
    ("makes", "uses"),
    [
        (WAIT, ""),
        ("", WAKE),
        (WAIT, WAIT + WAKE),  # it sets the member up itself
        (QUEUE, f"if (o->queue) {QUEUED}"),  # it asks
        ("o->done = finished;", "if (o->done) o->done(o);"),
        (QUEUE, WAKE),  # another member
        ("o->n = 5;", "work(o->n);"),  # no pointer
        (QUEUE, f"if (!o->queue) return; work(5); {QUEUED}"),  # gcc loads it once more after the call
        (QUEUE, "_printk(o->queue);"),  # NULL is fine there
        (WAIT.replace("o->wait", "ready"), WAKE.replace("o->wait", "ready")),  # the compiler has set it up
        (WAIT.replace("o->", "last->"), "lock(&beside->mutex);"),  # another struct at the same offset
    ],
)
def test_what_is_not_relied_on_goes_live(makes: str, uses: str, tmp_path: Path) -> None:
    assert refusals(compared(tmp_path, sources(), sources(makes, uses))) == []


@pytest.mark.parametrize(
    "text",
    [
        # The member was in use before.
        HEAD + MAKE + USE + "void other(struct o *o) { __wake_up(&o->wait, 3); }",
        HEAD + MAKE.replace("BEFORE", WAIT + " work(5);").replace("MAKES", "MAKES work(4);") + USE,
        # The user runs only when the maker does, or the other way round.
        HEAD
        + USE.replace("void use", "static noinline void use")
        + MAKE.replace("return o", "use(o); return o"),
        HEAD + MAKE + USE.replace("work(2);", "work(2); o = make();"),
    ],
)
def test_a_member_that_is_always_set_up_goes_live(text: str, tmp_path: Path) -> None:
    before = text.replace("BEFORE", WAIT + " work(5);") if "work(4)" in text else text
    assert refusals(compared(tmp_path, sources(text=before), sources(WAIT, WAKE, text))) == []


def test_a_struct_that_no_object_has_goes_live(tmp_path: Path) -> None:
    new = HEAD.replace("long n; };", "long n; }; struct p { long a[12]; struct wait wait; };") + MAKE + USE
    makes = 'struct p *p = zalloc(sizeof(*p)); __init_waitqueue_head(&p->wait, "p"); o->queue = p;'
    uses = "struct p *p = o->queue; if (p) __wake_up(&p->wait, 1);"
    assert refusals(compared(tmp_path, sources(), sources(makes, uses, new))) == []


def test_what_a_function_does_through_new_ones_it_does_itself(tmp_path: Path) -> None:
    helper = "static noinline void wake(struct o *o) { work(7); __wake_up(&o->wait, 1); }"
    both = HEAD + helper + MAKE + USE
    assert refusals(compared(tmp_path / "1", sources(), sources(WAIT, "wake(o);", both))) == [
        ("HR2211", "use")
    ]
    # Only what is newly set up runs this one.
    callback = "static void later(struct o *o) { work(7); __wake_up(&o->wait, 1); }"
    uses = sources(WAIT + " o->done = later;", "", HEAD + callback + MAKE + USE)
    assert refusals(compared(tmp_path / "2", sources(), uses)) == []


def test_the_types_of_parameters_tell_which_member_is_meant(tmp_path: Path) -> None:
    # In both functions, something else at the same offset is in use.
    head = HEAD + "struct dev { long x[2]; void *drvdata; }; struct file { long y; struct wait lock; };"
    make = "void probe(struct dev *d, struct o *o) { d->drvdata = o; o->a = 1; MAKES work(1); }"
    use = "int write(struct file *f, struct o *o) { lock(&f->lock); USES return 0; }"
    text = head + make + use
    assert refusals(compared(tmp_path, sources(text=text), sources(WAIT, WAKE, text))) == [
        ("HR2211", "write")
    ]


def test_a_handler_finds_its_object_by_a_member(tmp_path: Path) -> None:
    handler = """
        void handler(struct list *l) {
            struct o *o = (void *)((char *)l - __builtin_offsetof(struct o, items)); work(2); USES
        }
    """
    text = HEAD + MAKE + handler
    assert refusals(compared(tmp_path, sources(text=text), sources(WAIT, WAKE, text))) == [
        ("HR2211", "handler")
    ]


def test_a_new_operation_of_a_table_is_entered(tmp_path: Path) -> None:
    head = HEAD + "struct ops { void (*open)(struct o *), (*kick)(struct o *); };"
    ops = "struct ops ops = { .open = opened }; "
    opened = "static void opened(struct o *o) { work(1); MAKES } "
    kick = "static void kick(struct o *o) { work(2); USES } "
    before = head + opened + ops
    after = head + opened + kick + ops.replace("opened }", "opened, .kick = kick }")
    assert refusals(compared(tmp_path, sources(text=before), sources(WAIT, WAKE, after))) == [
        ("HR2211", "kick")
    ]


def test_one_function_may_set_up_one_object_and_rely_on_another(tmp_path: Path) -> None:
    # gcc inlines both into the function that is called.
    inlined = (HEAD + MAKE + USE).replace("struct o *make", "static struct o *make")
    inlined = inlined.replace("void use", "static void use").replace("o->a = 1;", "o->a = 1; last = o;")
    one = inlined + "void write(int n) { if (n) make(); else use(last); }"
    assert refusals(compared(tmp_path / "1", sources(text=one), sources(WAIT, WAKE, one))) == [
        ("HR2211", "write")
    ]
    same = inlined + "void write(int n) { use(make()); }"
    assert refusals(compared(tmp_path / "2", sources(text=same), sources(WAIT, WAKE, same))) == []
    # A pointer that was kept on the stack is the same one.
    busy = same.replace("use(make());", "struct o *o = make(); work(n); SPILL use(o);")
    busy = busy.replace("SPILL", 'asm volatile("" ::: "rbx", "rbp", "r12", "r13", "r14", "r15", "memory");')
    assert refusals(compared(tmp_path / "3", sources(text=busy), sources(WAIT, WAKE, busy))) == []
