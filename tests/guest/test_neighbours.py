# SPDX-License-Identifier: MIT
"""Who else works on the guest's functions: live patches of others, kprobes, users of ftrace.

Both kernels are Debian's. A patch of ours is made by kbuild, as in test_deploy.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hotreload.build.debian_kernel import fetch_debian_kernel
from hotreload.build.external_module import build_modules
from hotreload.build.kernel_tree import KernelTree
from hotreload.deploy import livepatch
from hotreload.deploy.guest import SshGuest
from hotreload.deploy.livepatch import AGENT_PATH, agent_source
from hotreload.deploy.transition import PatchStatus
from hotreload.errors import EnvironmentFault, PatchRejectedError
from hotreload.patch import glue
from hotreload.vm.image import build_image
from hotreload.vm.machine import Machine
from hotreload.vm.probe import choose_accel
from hotreload.vm.spec import MachineSpec
from tests.conftest import require, say
from tests.guest.conftest import PROGRAMS, Booted
from tests.guest.test_deploy import patch_of, with_transition

FLAVOURS = {"6.1": "cloud-amd64", "6.12": "6.12-cloud-amd64"}

# A live patch as anybody makes one; it replaces no other.
FOREIGN = """
#include <linux/module.h>
#include <linux/livepatch.h>
#include <linux/seq_file.h>

static int replacement(struct seq_file *m, void *v)
{
	seq_puts(m, "theirs\\n");
	return 0;
}
static struct klp_func funcs[] = { { .old_name = "%s", .new_func = replacement }, { } };
static struct klp_object objects[] = { { .funcs = funcs }, { } };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };
static int foreign_init(void) { return klp_enable_patch(&patch); }
static void foreign_exit(void) { }
module_init(foreign_init);
module_exit(foreign_exit);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
"""

# With a post_handler a kprobe on a function's first instruction has ftrace's call there to itself.
PROBE = """
#include <linux/module.h>
#include <linux/kprobes.h>

static int calls;
module_param(calls, int, 0444);
static int before(struct kprobe *probe, struct pt_regs *regs)
{
	calls++;
	return 0;
}
static void __maybe_unused after(struct kprobe *probe, struct pt_regs *regs, unsigned long flags) { }
static struct kprobe probe = { .symbol_name = "cmdline_proc_show", .pre_handler = before, %s };
static int probe_init(void) { return register_kprobe(&probe); }
static void probe_exit(void) { unregister_kprobe(&probe); }
module_init(probe_init);
module_exit(probe_exit);
MODULE_LICENSE("GPL");
"""

REDIRECTS = """
#include <linux/module.h>
#include <linux/ftrace.h>

static void redirecting(unsigned long ip, unsigned long parent,
			struct ftrace_ops *ops, struct ftrace_regs *regs)
{
}
static struct ftrace_ops ops = { .func = redirecting, .flags = FTRACE_OPS_FL_SAVE_REGS%s };
static int redirects_init(void)
{
	int err = ftrace_set_filter(&ops, "cmdline_proc_show", sizeof("cmdline_proc_show") - 1, 1);
	return err ? err : register_ftrace_function(&ops);
}
static void redirects_exit(void) { unregister_ftrace_function(&ops); }
module_init(redirects_init);
module_exit(redirects_exit);
MODULE_LICENSE("GPL");
"""

# As samples/ftrace has them; the kernel knows no owner that would make room.
DIRECT = """
#include <linux/module.h>
#include <linux/ftrace.h>
#include <linux/version.h>

extern void direct_entry(void);
asm(".pushsection .text, \\"ax\\"\\n"
    ".type direct_entry, @function\\n"
    "direct_entry: ret\\n"
    ".size direct_entry, .-direct_entry\\n"
    ".popsection");
static struct ftrace_ops ops;
static int direct_init(void)
{
	int err = ftrace_set_filter(&ops, "cmdline_proc_show", sizeof("cmdline_proc_show") - 1, 1);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	return err ? err : register_ftrace_direct_multi(&ops, (unsigned long)direct_entry);
#else
	return err ? err : register_ftrace_direct(&ops, (unsigned long)direct_entry);
#endif
}
static void direct_exit(void)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	unregister_ftrace_direct_multi(&ops, (unsigned long)direct_entry);
#else
	unregister_ftrace_direct(&ops, (unsigned long)direct_entry, true);
#endif
}
module_init(direct_init);
module_exit(direct_exit);
MODULE_LICENSE("GPL");
"""

SOURCES = {
    "hotreload_1": patch_of("cmdline_proc_show", 'seq_puts(m, "first\\n"); return 0;'),
    "hotreload_2": patch_of("cmdline_proc_show", 'seq_puts(m, "second\\n"); return 0;'),
    "their_version": FOREIGN % "version_proc_show",
    "their_cmdline": FOREIGN % "cmdline_proc_show",
    "probe_after": PROBE % ".post_handler = after",
    "probe_before": PROBE % "",
    "redirects": REDIRECTS % " | FTRACE_OPS_FL_IPMODIFY",
    "listens": REDIRECTS % "",
    "direct": DIRECT,
}


class Neighbours:
    """The booted guest and the modules, in plain calls."""

    def __init__(self, booted: Booted, modules: Mapping[str, bytes]) -> None:
        self.booted, self.modules = booted, modules
        self.run, self.wait, self.guest = booted.run, booted.wait, booted.guest

    def apply(self, name: str) -> livepatch.AppliedPatch:
        module = self.wait(with_transition(self.guest, self.modules[name]))
        return self.wait(livepatch.apply_patch(self.guest, name, module, timeout=10))

    def refusal(self, name: str) -> PatchRejectedError:
        with pytest.raises(PatchRejectedError) as refused:
            self.apply(name)
        assert refused.value.code == "HR3103"
        assert f"/sys/module/{name}" not in self.run("echo /sys/module/*").text.split()
        return refused.value

    def disable(self, name: str) -> bool:
        return self.wait(livepatch.disable_patch(self.guest, name, timeout=10))

    def load(self, name: str) -> None:
        self.wait(livepatch.load_module(self.guest, name, self.modules[name]))

    def unload(self, name: str) -> None:
        self.wait(livepatch.unload_module(self.guest, name))

    def read(self, file: str) -> str:
        return self.run(f"cat {file}").text

    def must(self, command: str) -> str:
        done = self.run(command)
        assert done.ok, (command, done.complaint)
        return done.text

    @property
    def status(self) -> PatchStatus:
        return self.wait(livepatch.patch_status(self.guest))


def kernel_of(flavour: str) -> KernelTree:
    try:
        return asyncio.run(fetch_debian_kernel(say, flavour))
    except EnvironmentFault as fault:
        require(False, f"the packaged kernel ({fault.message})", fault.hint or "hotreload doctor --fix")
        raise


@pytest.fixture(scope="module", params=FLAVOURS)
def neighbourhood(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Neighbours]:
    for program, package in PROGRAMS.items():
        require(shutil.which(program), program, f"apt-get install {package}")
    kernel = kernel_of(FLAVOURS[request.param])
    folder = tmp_path_factory.mktemp("modules")
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        modules = runner.run(built(kernel, folder))
        image = runner.run(build_image(kernel, extra={AGENT_PATH: agent_source()}))
        spec = MachineSpec(kernel.image, image.initramfs, accel=runner.run(choose_accel()).name)
        machine = Machine(spec, tmp_path_factory.mktemp("machine") / "console.log")
        runner.run(machine.__aenter__())
        stack.callback(lambda: runner.run(machine.stop()))
        guest = SshGuest(machine.ssh_port, image.client_key, image.host_key)
        stack.callback(lambda: runner.run(guest.close()))
        yield Neighbours(Booted(machine, guest, runner), modules)


async def built(kernel: KernelTree, folder: Path) -> Mapping[str, bytes]:
    shutil.copy(glue.SOURCES / f"{glue.TEMPLATE_NAME}.c", folder)
    for name, source in SOURCES.items():
        (folder / f"{name}.c").write_text(source)
    (folder / "Kbuild").write_text("".join(f"obj-m += {name}.o\n" for name in SOURCES))
    found = await build_modules(kernel, folder, variables=glue.VARIABLES)
    return {module.name: module.ko.read_bytes() for module in found.modules}


@pytest.fixture
def neighbours(neighbourhood: Neighbours) -> Iterator[Neighbours]:
    """The guest without any patch or module of these tests, before and after."""
    yield neighbourhood
    neighbourhood.run("echo >/sys/kernel/tracing/kprobe_events; echo nop >/sys/kernel/tracing/current_tracer")
    neighbourhood.run("sysctl -w kernel.ftrace_enabled=1; mount -t debugfs debugfs /sys/kernel/debug")
    neighbourhood.run("mount -t tracefs tracefs /sys/kernel/tracing")
    for patch in neighbourhood.status.patches:
        neighbourhood.disable(patch.name)
    neighbourhood.wait(livepatch.sweep(neighbourhood.guest))
    for name in SOURCES:
        neighbourhood.run(f"rmmod {name}")
    assert neighbourhood.run("ls /tmp").text == ""
    assert "Call Trace" not in neighbourhood.run("dmesg").text


def test_a_patch_that_would_replace_a_foreign_one_is_refused_by_its_name(neighbours: Neighbours) -> None:
    neighbours.load("their_version")
    refused = neighbours.refusal("hotreload_1")
    assert refused.message == "patch hotreload_1 would disable the guest's other live patch: their_version"
    assert neighbours.read("/proc/version") == "theirs\n"

    command = (refused.hint or "").rpartition(": ")[2]
    assert command == "echo 0 >/sys/kernel/livepatch/their_version/enabled"
    neighbours.must(command)
    neighbours.apply("hotreload_1")
    assert neighbours.read("/proc/cmdline") == "first\n"


def test_a_patch_of_ours_survives_one_of_theirs_and_is_taken_back_from_below_it(
    neighbours: Neighbours,
) -> None:
    before = neighbours.read("/proc/cmdline")
    neighbours.apply("hotreload_1")
    neighbours.load("their_version")
    assert neighbours.read("/proc/cmdline") == "first\n"
    assert neighbours.read("/proc/version") == "theirs\n"
    assert {patch.name: patch.foreign for patch in neighbours.status.patches} == {
        "hotreload_1": False,
        "their_version": True,
    }
    assert "their_version" in neighbours.refusal("hotreload_2").message
    assert neighbours.read("/proc/cmdline") == "first\n"

    assert neighbours.disable("hotreload_1")
    assert neighbours.read("/proc/cmdline") == before
    assert neighbours.read("/proc/version") == "theirs\n"
    assert [patch.name for patch in neighbours.status.patches] == ["their_version"]


def test_the_same_function_is_theirs_while_their_patch_is_the_later_one(neighbours: Neighbours) -> None:
    neighbours.apply("hotreload_1")
    neighbours.load("their_cmdline")
    assert neighbours.read("/proc/cmdline") == "theirs\n"
    neighbours.must(
        "cd /sys/kernel/livepatch && echo 0 >their_cmdline/enabled"
        " && while [ -e their_cmdline ]; do sleep 0.1; done"
    )
    assert neighbours.read("/proc/cmdline") == "first\n"
    neighbours.run("rmmod their_cmdline")

    neighbours.load("their_cmdline")
    assert neighbours.disable("hotreload_1")
    assert neighbours.read("/proc/cmdline") == "theirs\n"


def test_a_kprobe_that_has_the_function_is_named_with_its_module(neighbours: Neighbours) -> None:
    neighbours.load("probe_after")
    refused = neighbours.refusal("hotreload_1")
    assert refused.message == (
        "the guest's kernel refused patch hotreload_1: cmdline_proc_show is already used by"
        " a kprobe that has a post_handler: after [probe_after]"
    )
    assert (refused.hint or "").startswith("remove it in the guest (rmmod probe_after), then save again")
    neighbours.unload("probe_after")
    neighbours.apply("hotreload_1")


def test_of_several_kprobes_on_a_function_the_one_in_the_way_is_named(neighbours: Neighbours) -> None:
    # In the other order none is in the way, and the kernel warns when the second one goes: it takes it from
    # an ftrace_ops that it was never added to (__disarm_kprobe_ftrace()).
    neighbours.load("probe_after")
    neighbours.load("probe_before")
    assert neighbours.refusal("hotreload_1").message.endswith("has a post_handler: after [probe_after]")


def test_a_probe_is_found_where_nobody_has_mounted_what_tells_of_it(neighbours: Neighbours) -> None:
    neighbours.load("probe_after")
    neighbours.run("umount /sys/kernel/debug/tracing; umount /sys/kernel/tracing; umount /sys/kernel/debug")
    assert neighbours.read("/proc/mounts").count("debugfs") == 0
    assert neighbours.refusal("hotreload_1").message.endswith("a post_handler: after [probe_after]")
    assert neighbours.read("/proc/mounts").count("debugfs") == 0


@pytest.mark.parametrize(
    ("module", "owner"),
    [
        ("redirects", "another user of ftrace: redirecting [redirects]"),
        ("direct", "an ftrace direct call: direct_entry [direct]"),
    ],
)
def test_a_user_of_ftrace_that_has_the_function_is_named(
    neighbours: Neighbours, module: str, owner: str
) -> None:
    neighbours.load(module)
    refused = neighbours.refusal("hotreload_1")
    assert refused.message.endswith(f"cmdline_proc_show is already used by {owner}")
    assert f"rmmod {module}" in (refused.hint or "")
    neighbours.unload(module)
    neighbours.apply("hotreload_1")


def test_with_ftrace_turned_off_that_is_the_reason(neighbours: Neighbours) -> None:
    neighbours.must("sysctl -w kernel.ftrace_enabled=0")
    refused = neighbours.refusal("hotreload_1")
    assert refused.message.endswith("kernel.ftrace_enabled is 0 in the guest")
    neighbours.must("sysctl -w kernel.ftrace_enabled=1")
    neighbours.apply("hotreload_1")


def test_those_who_only_look_on_do_not_keep_a_patch_out_and_still_see_each_call(
    neighbours: Neighbours,
) -> None:
    neighbours.load("probe_before")
    neighbours.load("listens")
    neighbours.must(
        "cd /sys/kernel/tracing && echo 'p:seen cmdline_proc_show' >kprobe_events"
        " && echo 'r:left cmdline_proc_show' >>kprobe_events && echo 1 >events/kprobes/enable && echo >trace"
    )
    neighbours.must(
        "cd /sys/kernel/tracing && echo '*_proc_show' >set_ftrace_filter && echo function >current_tracer"
    )
    neighbours.apply("hotreload_1")
    assert neighbours.read("/proc/cmdline") == "first\n"
    assert neighbours.read("/sys/module/probe_before/parameters/calls") == "1\n"
    seen = neighbours.read("/sys/kernel/tracing/trace")
    assert "seen: (cmdline_proc_show" in seen
    assert "<- cmdline_proc_show" in seen
    neighbours.must("cd /sys/kernel/tracing && echo 0 >events/kprobes/enable && echo >kprobe_events")
