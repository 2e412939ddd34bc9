# SPDX-License-Identifier: MIT
"""Static keys, tracepoints and debugging messages: code that the running kernel switches on and off."""

from __future__ import annotations

from tests.guest.constructs.conftest import Constructs, one_kernel

TRACING = "/sys/kernel/tracing"


def test_a_static_key_of_the_kernel_flips_patched_code(constructs: Constructs) -> None:
    def answers(on: int, off: int) -> str:
        return f"&bpf_stats_enabled_key))\n\t\treturn {on};\n\treturn {off};"

    constructs.edit(keys=(answers(1, 0), answers(10, 20)))
    switch = "echo {} >/proc/sys/kernel/bpf_stats_enabled"
    assert constructs.read("keys") == "vmlinux 20 driver 0 call 3"
    constructs.run(switch.format(1))
    assert constructs.read("keys") == "vmlinux 10 driver 0 call 3"
    constructs.edit(keys=(answers(10, 20), answers(11, 20)))
    assert constructs.read("keys") == "vmlinux 11 driver 0 call 3", "on when the patch is loaded"
    constructs.run(switch.format(0))
    assert constructs.read("keys") == "vmlinux 20 driver 0 call 3"


@one_kernel
def test_a_static_key_of_the_driver_in_changed_code_is_refused_by_name(constructs: Constructs) -> None:
    reasons = constructs.refusal(keys=("&keys_own))\n\t\treturn 1;", "&keys_own))\n\t\treturn 3;"))
    assert [(reason.code, reason.symbol) for reason in reasons] == [("HR2204", "keys_own")]


@one_kernel
def test_a_static_call_of_the_driver_in_changed_code_is_refused_by_name(constructs: Constructs) -> None:
    reasons = constructs.refusal(keys=("(n) + 1;", "(n) + 2;"))
    assert {reason.code for reason in reasons} == {"HR2204"}
    assert any("keys_call" in (reason.symbol or "") for reason in reasons)


def test_a_static_key_that_an_edit_adds_flips_patched_code(constructs: Constructs) -> None:
    constructs.edit(
        keys=(
            ("(keys_own);", "(keys_own);\nstatic DEFINE_STATIC_KEY_FALSE(keys_new);"),
            (
                'seq_printf(m, "vmlinux %d',
                """if (input == 1)
		static_branch_enable(&keys_new);
	if (input == 2)
		static_branch_disable(&keys_new);
	if (static_branch_unlikely(&keys_new))
		seq_puts(m, "new ");
	seq_printf(m, "vmlinux %d""",
            ),
        )
    )
    assert constructs.read("keys") == "vmlinux 0 driver 0 call 3"
    assert constructs.read("keys", 1) == "new vmlinux 0 driver 0 call 3"
    assert constructs.read("keys", 2) == "vmlinux 0 driver 0 call 3"


def test_a_tracepoint_of_the_kernel_in_patched_code_is_traced(constructs: Constructs) -> None:
    constructs.edit(tracing=("trace_cpu_frequency(n, 0);", "trace_cpu_frequency(1000 + n, 0);"))
    constructs.read("tracing", 1)
    constructs.run(f"cd {TRACING} && echo >trace && echo 1 >events/power/cpu_frequency/enable")
    constructs.read("tracing", 2)
    constructs.run(f"echo 0 >{TRACING}/events/power/cpu_frequency/enable")
    constructs.read("tracing", 3)
    lines = [line for line in constructs.run(f"cat {TRACING}/trace").splitlines() if "cpu_frequency" in line]
    assert [line.partition("cpu_frequency: ")[2] for line in lines] == ["state=1002 cpu_id=0"]


@one_kernel
def test_a_tracepoint_of_the_driver_in_changed_code_is_refused_by_name(constructs: Constructs) -> None:
    reasons = constructs.refusal(tracing=("trace_constructs_came(n);", "trace_constructs_came(n + 1);"))
    assert {reason.code for reason in reasons} == {"HR2204"}
    assert any("constructs_came" in (reason.symbol or "") for reason in reasons)


def test_trace_printk_that_an_edit_adds_is_traced(constructs: Constructs) -> None:
    constructs.edit(tracing=("\tpr_debug(", '\ttrace_printk("printed %ld\\n", n);\n\tpr_debug('))
    constructs.run(f"echo >{TRACING}/trace")
    constructs.read("tracing", 42)
    assert "printed 42" in constructs.run(f"cat {TRACING}/trace")
    # The kernel has a copy of the format: the line can be read when the patch that printed it has gone.
    patch = constructs.patch
    constructs.edit(warn=("n * 10", "n * 30"))
    assert constructs.patch != patch
    assert "printed 42" in constructs.run(f"cat {TRACING}/trace")


def test_a_debugging_message_of_patched_code_is_switched_on_and_off(constructs: Constructs) -> None:
    constructs.edit(tracing=('"debugged %ld', '"debugged anew %ld'))
    control = "/sys/kernel/debug/dynamic_debug/control"
    assert "debugged" not in constructs.log_of_reading("tracing", 42)
    constructs.run(f"echo 'module {constructs.patch} +p' >{control}")
    assert "debugged anew 42" in constructs.log_of_reading("tracing", 42)
    constructs.run(f"echo 'module {constructs.patch} -p' >{control}")
    assert "debugged" not in constructs.log_of_reading("tracing", 42)


def test_a_debugging_message_that_is_switched_on_stays_on_in_patched_code(constructs: Constructs) -> None:
    control = "/sys/kernel/debug/dynamic_debug/control"
    constructs.run(f"echo 'func tracing_print +p' >{control}")
    for was, now in (("debugged", "debugged once"), ("debugged once", "debugged twice")):
        constructs.edit(tracing=(f'"{was} %ld', f'"{now} %ld'))
        assert f"{now} 42" in constructs.log_of_reading("tracing", 42)
    constructs.run(f"echo 'func tracing_print -p' >{control}")
