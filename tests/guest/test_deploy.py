# SPDX-License-Identifier: MIT
"""Patches and modules come into a guest and leave it, and what goes wrong is told and undone.

The patches here are made by kbuild: each includes the glue's source and fills its table itself, where a
patch of ours has relocations. The addresses of the kernel's transition come from the guest's kallsyms.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hotreload.build.external_module import build_modules
from hotreload.build.kernel_tree import KernelTree
from hotreload.deploy import livepatch
from hotreload.deploy.guest import Guest, SshGuest
from hotreload.deploy.transition import LivePatchState, PatchedFunction, PatchedObject
from hotreload.errors import PatchRejectedError, TransitionStalledError
from hotreload.patch import glue
from hotreload.vm.image import GuestImage
from hotreload.vm.machine import Machine
from hotreload.vm.spec import MachineSpec
from tests.conftest import say
from tests.guest.conftest import Booted

PATCH = """
#include "hotreload_template.c"
#include <linux/delay.h>
#include <linux/seq_file.h>
%s
static const struct hotreload_func funcs[] = { %s };
static typeof(table) table = { .funcs = funcs, .count = ARRAY_SIZE(funcs) };
"""


def patch_of(function: str, body: str, object_name: str = "NULL", before: str = "") -> str:
    new = f"{before}\nstatic int replacement(struct seq_file *m, void *v) {{ {body} }}"
    return PATCH % (new, f'{{ {object_name}, "{function}", replacement, 0 }}')


# A file that answers "old", after a sleep that only the parameter ends. 1: as a disk does; 2: as a pipe does.
SLEEPER = """
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/wait.h>

static int asleep;
static DECLARE_WAIT_QUEUE_HEAD(queue);

static int set_asleep(const char *value, const struct kernel_param *param)
{
	int err = param_set_int(value, param);
	wake_up_all(&queue);
	return err;
}
static const struct kernel_param_ops ops = { .set = set_asleep, .get = param_get_int };
module_param_cb(asleep, &ops, &asleep, 0600);

static int sleeper_show(struct seq_file *m, void *v)
{
	if (asleep == 1)
		wait_event(queue, !asleep);
	if (asleep == 2 && wait_event_interruptible(queue, !asleep))
		return -ERESTARTSYS;
	seq_puts(m, "old\\n");
	return 0;
}

static int sleeper_init(void)
{
	return proc_create_single("sleeper", 0444, NULL, sleeper_show) ? 0 : -ENOMEM;
}
static void sleeper_exit(void)
{
	remove_proc_entry("sleeper", NULL);
}
module_init(sleeper_init);
module_exit(sleeper_exit);
MODULE_LICENSE("GPL");
"""

PLAIN = """
#include <linux/module.h>
static char *text = "nothing";
module_param(text, charp, 0444);
static int number;
module_param(number, int, 0444);
int plain_export(void) { return number; }
EXPORT_SYMBOL_GPL(plain_export);
static int plain_init(void)
{
	if (number >= 0)
		return 0;
	pr_err("plain: \\"%d\\" is no number for a C:\\\\ module\\n", number);
	return -EINVAL;
}
static void plain_exit(void) {}
module_init(plain_init);
module_exit(plain_exit);
MODULE_LICENSE("GPL");
"""

USER = """
#include <linux/module.h>
int plain_export(void);
static int user_init(void) { return plain_export() ? 0 : 0; }
static void user_exit(void) {}
module_init(user_init);
module_exit(user_exit);
MODULE_LICENSE("GPL");
"""

STAYS = """
#include <linux/module.h>
static int stays_init(void) { return 0; }
module_init(stays_init);
MODULE_LICENSE("GPL");
"""

# The helper is new and reached by a jump, so it alone is on the stack of a task that sleeps in it.
TAIL_CALL = """
static int helper_asleep = 1;
module_param(helper_asleep, int, 0600);
static noinline int helper(struct seq_file *m, void *v)
{
	while (READ_ONCE(helper_asleep))
		schedule_timeout_uninterruptible(HZ / 50);
	seq_puts(m, "helped\\n");
	return 0;
}
"""

SOURCES = {
    "hotreload_1": patch_of("cmdline_proc_show", 'seq_puts(m, "first\\n"); return 0;'),
    "hotreload_2": patch_of("cmdline_proc_show", 'seq_puts(m, "second\\n"); return 0;'),
    "hotreload_3": patch_of("sleeper_show", 'seq_puts(m, "new\\n"); return 0;', '"sleeper"'),
    "hotreload_4": patch_of("sleeper_show", "return helper(m, v);", '"sleeper"', TAIL_CALL),
    "hotreload_5": patch_of("no_such_function", "return 0;"),
    "sleeper": SLEEPER,
    "plain": PLAIN,
    "user": USER,
    "stays": STAYS,
}


@pytest.fixture(scope="session")
def modules(debian_kernel: KernelTree, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The modules above, built: their names and contents."""
    folder = tmp_path_factory.mktemp("modules")
    shutil.copy(glue.SOURCES / f"{glue.TEMPLATE_NAME}.c", folder)
    for name, source in SOURCES.items():
        (folder / f"{name}.c").write_text(source)
    (folder / "Kbuild").write_text("".join(f"obj-m += {name}.o\n" for name in SOURCES))
    built = asyncio.run(build_modules(debian_kernel, folder, variables=glue.VARIABLES))
    return {module.name: module.ko.read_bytes() for module in built.modules}


async def with_transition(guest: Guest, module: bytes) -> bytes:
    """The patch with the addresses that the kick needs in its table, as our patches have by relocation."""
    from elftools.elf.elffile import ELFFile

    lines = (await guest.run("grep -E ' klp_transition_(work|patch)$' /proc/kallsyms")).text.splitlines()
    address = {name: int(value, 16) for value, _kind, name in (line.split() for line in lines)}
    table = ELFFile(io.BytesIO(module)).get_section_by_name(glue.TABLE_SECTION)
    assert table
    at = table["sh_offset"]
    patched = bytearray(module)
    for field, name in (
        (glue.TABLE_TRANSITION_WORK, "klp_transition_work"),
        (glue.TABLE_TRANSITION_PATCH, "klp_transition_patch"),
    ):
        patched[at + field : at + field + 8] = address[name].to_bytes(8, "little")
    return bytes(patched)


class Deploying:
    """The booted guest and the modules, in plain calls."""

    def __init__(self, booted: Booted, modules: Mapping[str, bytes]) -> None:
        self.booted, self.modules = booted, modules
        self.run, self.wait, self.guest = booted.run, booted.wait, booted.guest

    def apply(self, name: str, timeout: float = 10.0) -> livepatch.AppliedPatch:
        module = self.wait(with_transition(self.guest, self.modules[name]))
        return self.wait(livepatch.apply_patch(self.guest, name, module, timeout=timeout))

    def load(self, name: str, parameters: str = "") -> None:
        self.wait(livepatch.load_module(self.guest, name, self.modules[name], parameters))

    def unload(self, name: str) -> None:
        self.wait(livepatch.unload_module(self.guest, name))

    def read(self, file: str) -> str:
        return self.run(f"cat {file}").text

    @property
    def loaded(self) -> set[str]:
        return {line.split()[0] for line in self.read("/proc/modules").splitlines()} & set(SOURCES)


@pytest.fixture
def deploying(booted: Booted, modules: Mapping[str, bytes]) -> Iterator[Deploying]:
    """The guest without any patch or module of these tests, before and after."""
    yield Deploying(booted, modules)
    booted.run("for f in /sys/module/*/parameters/*asleep; do echo 0 >$f; done; sleep 0.1")
    for patch in booted.wait(livepatch.patch_status(booted.guest)).patches:
        booted.wait(livepatch.disable_patch(booted.guest, patch.name, timeout=10))
    booted.wait(livepatch.sweep(booted.guest))
    for name in ("user", "plain", "sleeper"):
        with contextlib.suppress(PatchRejectedError):
            booted.wait(livepatch.unload_module(booted.guest, name))
    assert booted.run("ls /tmp").text == ""


def test_a_patch_goes_live_is_replaced_swept_and_taken_back(deploying: Deploying) -> None:
    before = deploying.read("/proc/cmdline")

    first = deploying.apply("hotreload_1")
    assert deploying.read("/proc/cmdline") == "first\n"
    assert first.live == ("hotreload_1",)
    assert 0 < first.load_ms <= first.complete_ms

    second = deploying.apply("hotreload_2")
    say(f"patch: push {second.push_ms:.0f} ms, load {second.load_ms:.0f}, complete {second.complete_ms:.0f}")
    assert deploying.read("/proc/cmdline") == "second\n"
    status = deploying.wait(livepatch.patch_status(deploying.guest))
    function = PatchedFunction("cmdline_proc_show", 1)
    assert status.patches == (
        LivePatchState("hotreload_2", True, False, (PatchedObject("vmlinux", True, (function,)),)),
    )
    assert status.replaced == ("hotreload_1",)

    assert deploying.wait(livepatch.sweep(deploying.guest, ["hotreload_1"])).removed == ()
    swept = deploying.wait(livepatch.sweep(deploying.guest))
    assert swept == livepatch.Swept(removed=("hotreload_1",), left=())

    assert deploying.wait(livepatch.disable_patch(deploying.guest, "hotreload_2", timeout=10))
    assert deploying.read("/proc/cmdline") == before
    # Something may point into the module of a patch that was taken back as well as of a replaced one.
    assert deploying.wait(livepatch.sweep(deploying.guest, ["hotreload_2"])).left == ("hotreload_2",)
    assert deploying.wait(livepatch.sweep(deploying.guest)).removed == ("hotreload_2",)
    assert not deploying.loaded
    assert not deploying.wait(livepatch.disable_patch(deploying.guest, "hotreload_2", timeout=10))


def test_a_patch_that_the_kernel_refuses_is_refused_in_its_own_words(deploying: Deploying) -> None:
    with pytest.raises(
        PatchRejectedError, match="symbol 'no_such_function' not found in symbol table"
    ) as refusal:
        deploying.apply("hotreload_5")
    assert refusal.value.code == "HR3103"
    assert not deploying.loaded


def test_something_that_is_no_module_is_refused(deploying: Deploying) -> None:
    with pytest.raises(PatchRejectedError, match="Invalid ELF header"):
        deploying.wait(livepatch.apply_patch(deploying.guest, "hotreload_9", b"\x7fELF nonsense", timeout=5))


def test_a_task_asleep_in_the_old_code_is_told_and_the_guest_is_as_before(deploying: Deploying) -> None:
    deploying.load("sleeper", "asleep=1")
    # The reader is the shell itself, under a name that has to be quoted.
    deploying.run("""(printf 'a "\\\\b\\tü' >/proc/self/comm; read x </proc/sleeper; echo $x >/run/said) \
        >/dev/null 2>&1 &""")
    deploying.run("sleep 0.2")

    with pytest.raises(TransitionStalledError) as stall:
        deploying.apply("hotreload_3", timeout=1.0)
    (task,) = stall.value.tasks
    assert task.startswith('a "\\b\tü (')
    assert "in sleeper_show+" in task
    assert "[sleeper]" in task
    assert "could not be undone" not in stall.value.message

    # Its module stays until a sweep: a task that had changed over may have left something in it.
    status = deploying.wait(livepatch.patch_status(deploying.guest))
    assert (status.patches, status.replaced) == ((), ("hotreload_3",))
    assert deploying.wait(livepatch.sweep(deploying.guest)).removed == ("hotreload_3",)
    assert deploying.loaded == {"sleeper"}

    deploying.run("echo 0 >/sys/module/sleeper/parameters/asleep; sleep 0.2")
    assert deploying.read("/run/said") == "old\n"
    deploying.apply("hotreload_3")
    assert deploying.read("/proc/sleeper") == "new\n"


def test_a_task_in_an_interruptible_sleep_is_waked_and_goes_on_in_the_new_code(deploying: Deploying) -> None:
    deploying.load("sleeper", "asleep=2")
    deploying.run("cat /proc/sleeper >/run/said 2>&1 </dev/null & sleep 0.2")
    assert deploying.read("/run/said") == ""

    deploying.apply("hotreload_3", timeout=5.0)

    deploying.run("sleep 0.2")
    assert deploying.read("/run/said") == "new\n"


def test_a_task_asleep_elsewhere_does_not_hold_up_a_patch(deploying: Deploying) -> None:
    before = deploying.read("/proc/cmdline")
    deploying.load("sleeper", "asleep=1")
    deploying.apply("hotreload_1")
    deploying.run("cat /proc/sleeper >/dev/null 2>&1 & sleep 0.1")
    # The sleeper does not stand in what this patch replaces.
    assert deploying.wait(livepatch.disable_patch(deploying.guest, "hotreload_1", timeout=5))
    assert deploying.read("/proc/cmdline") == before


def test_a_replaced_module_stays_while_a_task_sleeps_in_code_that_livepatch_does_not_see(
    deploying: Deploying,
) -> None:
    deploying.load("sleeper")
    deploying.apply("hotreload_4")
    deploying.run("cat /proc/sleeper >/run/said 2>&1 </dev/null & sleep 0.2")
    deploying.apply("hotreload_3")
    assert deploying.read("/proc/sleeper") == "new\n"

    swept = deploying.wait(livepatch.sweep(deploying.guest))
    assert swept == livepatch.Swept(removed=(), left=("hotreload_4",))

    deploying.run("echo 0 >/sys/module/hotreload_4/parameters/helper_asleep; sleep 0.2")
    assert deploying.read("/run/said") == "helped\n"
    assert deploying.wait(livepatch.sweep(deploying.guest)).removed == ("hotreload_4",)


def test_a_plain_module_takes_its_parameters_and_tells_its_build_id(deploying: Deploying) -> None:
    deploying.load("plain", 'text="two words" number=7')
    assert deploying.read("/sys/module/plain/parameters/text") == "two words\n"
    assert deploying.read("/sys/module/plain/parameters/number") == "7\n"
    build_id = deploying.wait(livepatch.build_id(deploying.guest, "plain"))
    assert build_id
    assert len(build_id) == 40
    assert bytes.fromhex(build_id) in deploying.modules["plain"]
    deploying.unload("plain")
    assert deploying.wait(livepatch.build_id(deploying.guest, "plain")) is None


def test_a_module_that_fails_to_load_is_refused_with_what_it_printed(deploying: Deploying) -> None:
    with pytest.raises(PatchRejectedError) as refusal:
        deploying.load("plain", "number=-1")
    assert refusal.value.message == (
        'the guest\'s kernel refused module plain: plain: "-1" is no number for a C:\\ module'
    )


def test_a_module_that_others_use_is_not_unloaded(deploying: Deploying) -> None:
    deploying.load("plain")
    deploying.load("user")
    with pytest.raises(PatchRejectedError, match="module plain is used by user") as refusal:
        deploying.unload("plain")
    assert refusal.value.code == "HR2304"


def test_a_module_with_references_is_not_unloaded(deploying: Deploying) -> None:
    deploying.apply("hotreload_1")
    with pytest.raises(PatchRejectedError, match="module hotreload_1 is in use") as refusal:
        deploying.unload("hotreload_1")
    assert refusal.value.code == "HR2301"


def test_a_module_without_an_exit_function_is_not_unloaded(deploying: Deploying) -> None:
    if "stays" not in deploying.loaded:
        deploying.load("stays")
    with pytest.raises(PatchRejectedError, match="has no exit function") as refusal:
        deploying.unload("stays")
    assert refusal.value.code == "HR2302"


def test_two_processors_change_over_without_waiting_for_the_kernels_second_look(
    guest_spec: MachineSpec, guest_image: GuestImage, modules: Mapping[str, bytes], console_log: Path
) -> None:
    async def measure() -> list[livepatch.AppliedPatch]:
        async with (
            Machine(dataclasses.replace(guest_spec, cpus=2), console_log) as machine,
            SshGuest(machine.ssh_port, guest_image.client_key, guest_image.host_key) as guest,
        ):
            applied = []
            for name in ("hotreload_1", "hotreload_2"):
                module = await with_transition(guest, modules[name])
                applied.append(await livepatch.apply_patch(guest, name, module, timeout=10))
            assert (await guest.run("cat /proc/cmdline")).text == "second\n"
            assert await livepatch.disable_patch(guest, "hotreload_2", timeout=10)
            return applied

    for patch in asyncio.run(measure()):
        say(f"two processors: load {patch.load_ms:.0f} ms, complete {patch.complete_ms:.0f} ms")
