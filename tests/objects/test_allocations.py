# SPDX-License-Identifier: MIT
# ruff: noqa: E501 - C that stands on one line reads better than C cut into strings.
"""Sizes of allocations that changed together with the code that counts on them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from hotreload.build.cmd_files import TranslationUnit
from hotreload.build.compile import ObjectPair
from hotreload.compared import Compared, Original
from hotreload.elf.allocators import allocated_sizes, allocator_behind, numbers_in
from hotreload.elf.frees import free_behind
from hotreload.objects_across import allocations_across_units
from tests.objects.compiling import difference, object_of

HEAD = """
void *__kmalloc(unsigned long, int); void *kmalloc_trace(void *, int, unsigned long); void kfree(void *);
void *__kmalloc_cache_noprof(void *, int, unsigned long); extern void *kmalloc_caches[4][14]; void show(long); void fill(void *, long);
struct dev { int *slots; long used; } dev;
"""


def source(size: int, body: str = "", **others: str) -> str:
    parts = {
        "alloc": "int probe(void) { dev.slots = kmalloc_trace(kmalloc_caches[0][4], 3, SLOTS * 4); return !dev.slots; }",
        "use": "void sum(void) { long s = 0; for (int i = 0; i < SLOTS; i++) s += dev.slots[i]; show(s); }",
    } | others
    return f"#define SLOTS {size}\n{HEAD}{body}{parts['alloc']}\n{parts['use']}"


@pytest.mark.parametrize(
    ("use", "new"),
    [
        pytest.param("", 400, id="end of a loop"),
        pytest.param("", 3, id="a loop that is unrolled"),
        pytest.param("", 5, id="a loop that is unrolled no more"),
        pytest.param("void put(int at) { dev.slots[at % SLOTS]++; }", 8, id="mask of a ring"),
        pytest.param("void put(int at) { if (at < SLOTS) dev.slots[at]++; }", 5, id="bound"),
        pytest.param("void last(void) { show(dev.slots[SLOTS - 1]); }", 40, id="place"),
        pytest.param("void all(void) { fill(dev.slots, SLOTS * sizeof(int)); }", 7, id="size"),
    ],
)
def test_a_new_size_of_an_allocation_is_refused_with_the_code_that_counts_on_it(
    use: str, new: int, tmp_path: Path
) -> None:
    others = {"use": use} if use else {}
    diff = difference(tmp_path, source(4, **others), source(new, **others))
    assert [(o.code, o.symbol) for o in diff.obstacles] == [("HR2101", "probe")]
    assert f"the size that probe allocates changed from 16 to {new * 4}" in diff.obstacles[0].message


def test_what_is_allocated_at_its_first_use_is_there_when_the_size_changes(tmp_path: Path) -> None:
    lazy = "void put(long v) { if (!dev.slots) dev.slots = __kmalloc(SLOTS * 4, 3); fill(dev.slots, SLOTS * 4); }"
    diff = difference(tmp_path, source(4, alloc="", use=lazy), source(9, alloc="", use=lazy))
    assert [(o.code, o.symbol) for o in diff.obstacles] == [("HR2101", "put")]


@pytest.mark.parametrize(
    "call",
    [
        "mempool_create(2, mempool_kmalloc, mempool_kfree, (void *) SLOTS)",
        "mempool_init(&dev, 2, mempool_kmalloc, mempool_kfree, (void *) SLOTS)",
        "bitmap_zalloc(SLOTS, 3)",
        'dma_pool_create("x", &dev, SLOTS, 8, 0)',
    ],
)
def test_pools_and_bitmaps_have_a_size(call: str, tmp_path: Path) -> None:
    body = """void *mempool_create(int, void *, void *, void *); void *mempool_init(void *, int, void *, void *, void *);
    void mempool_kmalloc(), mempool_kfree(); void *bitmap_zalloc(int, int); void *dma_pool_create(void *, void *, long, long, long);"""
    others = {
        "alloc": f"void open(void) {{ dev.slots = (void *) (long) {call}; }}",
        "use": "void all(void) { fill(dev.slots, SLOTS); }",
    }
    diff = difference(tmp_path, source(40, body, **others), source(900, body, **others))
    assert [(o.code, o.symbol) for o in diff.obstacles] == [("HR2101", "open")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("", "", id="nobody counts on it"),
        pytest.param(
            "void tell(void) { show(dev.used); }",
            "void tell(void) { if (dev.used > 7) show(dev.used + 1000); }",
            id="another change",
        ),
        pytest.param(
            "void work(void) { char *b = __kmalloc(SLOTS * 4, 3); fill(b, SLOTS * 4); kfree(b); }",
            "",
            id="buffer",
        ),
    ],
)
def test_a_new_size_that_nothing_else_depends_on_is_live(before: str, after: str, tmp_path: Path) -> None:
    others = {"alloc": ""} if "kfree" in before else {}
    pair = source(4, use=before, **others), source(64, use=after or before, **others)
    assert difference(tmp_path, *pair).verdict == "patchable"


@pytest.mark.parametrize(("module", "is_refused"), [("drv", True), ("user", True), ("other", False)])
def test_another_unit_of_the_module_or_of_one_joined_to_it_may_count_on_the_size(
    module: str, is_refused: bool, tmp_path: Path
) -> None:
    compared = {}
    for name, owner, left_out in (("a.c", "drv", "use"), ("b.c", module, "alloc")):
        texts = (source(size, **{left_out: ""}) for size in (4, 60))
        unit = cast("TranslationUnit", SimpleNamespace(source=Path(name), module=owner))
        pair = ObjectPair(unit, Path(), Path())
        diff = difference(tmp_path / name, *texts)
        compared[Path(name)] = Compared(pair, cast("Original", None), diff)
    joined = {name: frozenset(group) for group in (("drv", "user"), ("other",)) for name in group}
    found = [(o.code, o.symbol, o.where) for o in allocations_across_units(compared, joined)]
    assert found == ([("HR2101", "probe", "a.c")] if is_refused else [])


def test_sizes_and_numbers_of_a_function(tmp_path: Path) -> None:
    code = (
        HEAD
        + "int f(long n) { dev.slots = __kmalloc_cache_noprof(kmalloc_caches[0][5], 7, 24); dev.used = n + 100; return !__kmalloc(n, 7); }"
    )
    function = object_of(code, tmp_path).symbol("f")
    assert function is not None
    assert allocated_sizes(function) == {24: 1}
    assert numbers_in(function)[100] == 1


@pytest.mark.parametrize(
    "how",
    [
        "(char *)__get_free_pages(3, ORDER)",
        "alloc_pages(3, ORDER)",
        "kmemdup(from, PAGES * 4096, 3)",
        "__devres_alloc_node(0, PAGES * 4096, 3, 0, 0)",
        "alloc_netdev_mqs(PAGES * 4096, 0, 0, 0, 1, 1)",
        "ioremap(0x1000, PAGES * 4096)",
    ],
)
def test_pages_copies_and_private_parts_have_a_size_too(how: str, tmp_path: Path) -> None:
    text = f"""unsigned long __get_free_pages(int, int); void *alloc_pages(int, int); void *kmemdup(void *, long, int);
        void *__devres_alloc_node(void *, long, int, int, void *); void *alloc_netdev_mqs(int, void *, int, void *, int, int);
        void *ioremap(long, long); char *buf, *from; void show(long);
        void write(void) {{ if (!buf) buf = {how}; }}
        void read(void) {{ for (int i = 0; i < PAGES * 4096; i++) show(buf[i]); }}"""
    before, after = (f"#define ORDER {order}\n#define PAGES {1 << order}\n{text}" for order in (0, 2))
    assert [(o.code, o.symbol) for o in difference(tmp_path, before, after).obstacles] == [
        ("HR2101", "write")
    ]


FREES = """void *__kmalloc(long, int); void kfree(void *); void *vmalloc(long); void vfree(void *); void kvfree(void *); void show(long);
    void *kmem_cache_alloc(void *, int); void kmem_cache_free(void *, void *); extern void *cache; static char *buf, *other;
    void fill(int c) { if (!buf) buf = ALLOC; other = vmalloc(c); buf[0] = other[0]; }
    static noinline void give(void *p) { FREE(p); }"""
DROPS = {
    "where it is": "void drop(void) { FREE(buf); buf = 0; }",
    "anew": "void anew(void) { FREE(buf); buf = ALLOC; }",
    "a helper": "void drop(void) { give(buf); }",
    "the end": "void cleanup_module(void) { FREE(buf); }",
}


@pytest.mark.parametrize("how", DROPS)
def test_what_was_allocated_before_is_given_back_where_it_is_from(how: str, tmp_path: Path) -> None:
    text = FREES + DROPS[how]
    slab, pages, slab_or_pages, cache = (
        text.replace("ALLOC", alloc).replace("FREE(", free)
        for alloc, free in (
            ("__kmalloc(64, 3)", "kfree("),
            ("vmalloc(64)", "vfree("),
            ("__kmalloc(64, 3)", "kvfree("),
            ("kmem_cache_alloc(cache, 3)", "kmem_cache_free(cache, "),
        )
    )
    for number, (after, codes) in enumerate(
        [(pages, {"HR2101"}), (cache, {"HR2101"}), (slab_or_pages, set())]
    ):
        found = difference(tmp_path / str(number), slab, after).obstacles
        assert {o.code for o in found if "frees with" in o.message} == codes


@pytest.mark.parametrize("how", ["where it is", "the end", "a helper"])
@pytest.mark.parametrize("is_also_made", [True, False])
def test_another_unit_may_give_back_what_was_allocated(how: str, is_also_made: bool, tmp_path: Path) -> None:
    makes = FREES.replace("FREE(", "kfree(")
    heads = "void kfree(void *); void vfree(void *); extern char *buf; static noinline void give(void *p) { FREE(p); }"
    sources = {
        "a.c": makes if is_also_made else makes.replace("ALLOC", "vmalloc(64)"),
        "b.c": heads + DROPS[how],
    }
    compared = {}
    for name, text in sources.items():
        slab = text.replace("ALLOC", "__kmalloc(64, 3)").replace("FREE(", "kfree(")
        pages = text.replace("ALLOC", "vmalloc(64)").replace("FREE(", "vfree(")
        unit = cast("TranslationUnit", SimpleNamespace(source=Path(name), module="drv"))
        diff = difference(tmp_path / name, slab, pages)
        compared[Path(name)] = Compared(ObjectPair(unit, Path(), Path()), cast("Original", None), diff)
    found = [(o.code, o.where) for o in allocations_across_units(compared, {"drv": frozenset(("drv",))})]
    assert found == ([("HR2101", "b.c")] if is_also_made else [])


def test_an_object_that_is_freed_after_a_grace_period_is_one_of_its_allocator(tmp_path: Path) -> None:
    # kfree_rcu(ptr, member) of v6.1 passes the address of the member, and its offset.
    head = FREES + "void kvfree_call_rcu(void *, void *); void drop(void) { FREES; buf = 0; }"
    rcu = head.replace("ALLOC", "__kmalloc(64, 3)").replace(
        "FREES;", "kvfree_call_rcu(buf + 16, (void *) 16);"
    )
    pages = head.replace("ALLOC", "vmalloc(64)").replace("FREES;", "vfree(buf);")
    rcu, pages = (text.replace("FREE(", "kfree(") for text in (rcu, pages))
    found = difference(tmp_path, rcu, pages).obstacles
    assert [o.code for o in found if "frees with vfree()" in o.message] == ["HR2101"]


def test_the_new_size_of_an_object_is_the_one_of_kvrealloc(tmp_path: Path) -> None:
    code = HEAD + "void *kvrealloc(); void *f(void *p) { return kvrealloc(p, 16, 48, 3); }"
    code += "void *g(void *p) { return kvrealloc(p, 32, 3); }"
    made = object_of(code.replace("kvrealloc()", "kvrealloc(void *, long, long, ...)"), tmp_path)
    f, g = made.symbol("f"), made.symbol("g")
    assert f is not None
    assert g is not None
    assert (allocated_sizes(f), allocated_sizes(g)) == ({48: 1}, {32: 1})


def test_another_free_is_no_new_allocator(tmp_path: Path) -> None:
    before = (FREES + DROPS["where it is"]).replace("ALLOC", "__kmalloc(64, 3)").replace("FREE(", "kfree(")
    mended = before.replace("{ kfree(buf); buf = 0", "{ vfree(other); buf = 0")
    assert difference(tmp_path / "1", before, mended).obstacles == ()
    temporary = "void use(int c) { char *t = __kmalloc(c, 3); if (t) show(t[c]); kfree(t); }"
    large = temporary.replace("__kmalloc(c, 3)", "vmalloc(c)").replace("kfree", "vfree")
    head = FREES.replace("ALLOC", "__kmalloc(64, 3)").replace("FREE(", "kfree(")
    assert difference(tmp_path / "2", head + temporary, head + large).obstacles == ()


OPENED = """void *__kmalloc(long, int); void *devm_kmalloc(void *, long, int); void kfree(void *); void show(long);
    struct file { long pad; void *private; }; static void *shared; void *made(void);
    int open(void *dev, struct file *f) { f->private = MAKE; return !f->private; }
    void release(struct file *f) { show(1); DROP }"""


@pytest.mark.parametrize(
    ("before", "after", "codes"),
    [
        (("made()", ""), ("__kmalloc(64, 3)", "kfree(f->private);"), ["HR2211"]),
        (("devm_kmalloc(dev, 64, 3)", ""), ("__kmalloc(64, 3)", "kfree(f->private);"), ["HR2211"]),
        (("__kmalloc(64, 3)", ""), ("__kmalloc(64, 3)", "kfree(f->private);"), []),
        (("__kmalloc(64, 3)", "kfree(f->private);"), ("__kmalloc(96, 3)", "show(2); kfree(f->private);"), []),
        (("made()", ""), ("(shared = __kmalloc(64, 3))", "kfree(shared); shared = 0;"), []),
    ],
)
def test_what_is_newly_allocated_and_newly_freed_is_not_what_live_objects_have(
    before: tuple[str, str], after: tuple[str, str], codes: list[str], tmp_path: Path
) -> None:
    one, other = (OPENED.replace("MAKE", make).replace("DROP", drop) for make, drop in (before, after))
    assert [o.code for o in difference(tmp_path, one, other).obstacles] == codes


WRAPPERS = """void *__kmalloc(long, int); void *vmalloc(long); void kfree(void *); void log(void *);
    void *str_alloc(long n) { return __kmalloc(n + 8, 3); }
    void *fixed(void) { return __kmalloc(64, 3); }
    void str_free(void *p) { log(p); kfree(p); }
    void other_free(void **p) { kfree(*p); }"""
USERS = """void *str_alloc(long); void str_free(void *); void *vmalloc(long); void vfree(void *); void fill(void *, int, long);
    struct s { long pad; char *buf; }; static void *kept;
    int open(struct s *s) { s->buf = MAKE; return !s->buf; }
    void write(struct s *s) { fill(s->buf, 1, SIZE); }
    void release(struct s *s) { fill(s, 2, 8); DROP; }"""


def test_a_wrapper_of_another_file_allocates_and_frees_like_what_is_behind_it(tmp_path: Path) -> None:
    functions = object_of(WRAPPERS, tmp_path).functions
    made = {one.name: name for one in functions if (name := allocator_behind(one)) is not None}
    freed = {one.name: name for one in functions if (name := free_behind(one)) is not None}
    assert (made, freed) == ({"str_alloc": "__kmalloc"}, {"str_free": "kfree"})

    def refused(place: str, **after: str) -> list[tuple[str, str]]:
        drop = "str_free(kept)" if place == "kept" else "str_free(s->buf)"
        before = {"MAKE": "(kept = str_alloc(64))", "SIZE": "64", "DROP": drop}
        texts = []
        for words in (before, {**before, **after}):
            text = USERS
            for word, value in words.items():
                text = text.replace(word, value)
            texts.append(text)
        diff = difference(tmp_path / place, *texts)
        unit = cast("TranslationUnit", SimpleNamespace(source=Path("a.c"), module="drv"))
        compared = {Path("a.c"): Compared(ObjectPair(unit, Path(), Path()), cast("Original", None), diff)}
        joined = {"drv": frozenset(("drv",))}
        across = allocations_across_units(compared, joined, made | freed)
        return [(o.code, o.symbol) for o in (*diff.obstacles, *across)]

    assert refused("size", MAKE="str_alloc(128)", SIZE="128") == [("HR2101", "open")]
    assert refused("other", MAKE="vmalloc(64)", DROP="vfree(s->buf)") == [("HR2211", "release")]
    kept = {"MAKE": "(kept = vmalloc(64))", "DROP": "vfree(kept)"}
    assert refused("kept", **kept) == [("HR2101", "release")]
    assert refused("same", MAKE="str_alloc(64)", SIZE="32") == []


def test_what_another_file_newly_frees_is_told_once_and_at_its_place(tmp_path: Path) -> None:
    head, opens, releases = OPENED.partition("    int open")[0], "int open", "void release"
    body = OPENED.partition("    int open")[2]
    sources = {
        # This one also frees, so that the functions of both files are looked at.
        "a.c": f"{head}{opens}{body.partition(releases)[0]} void forget(struct file *f) {{ show(3); DROP }}",
        "b.c": f"{head}{releases}{body.partition(releases)[2]}",
    }
    compared = {}
    for name, text in sources.items():
        before = text.replace("MAKE", "made()").replace("DROP", "")
        after = text.replace("MAKE", "__kmalloc(64, 3)").replace("DROP", "kfree(f->private);")
        unit = cast("TranslationUnit", SimpleNamespace(source=Path(name), module="drv"))
        diff = difference(tmp_path / name, before, after)
        compared[Path(name)] = Compared(ObjectPair(unit, Path(), Path()), cast("Original", None), diff)
    found = [(o.code, o.where) for o in allocations_across_units(compared, {"drv": frozenset(("drv",))})]
    assert found == [("HR2211", "b.c")]
