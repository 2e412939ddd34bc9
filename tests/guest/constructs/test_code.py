# SPDX-License-Identifier: MIT
"""What special sections say of patched code holds: it warns, faults, chooses and calls as its source says."""

from __future__ import annotations

import re

from tests.guest.constructs.conftest import Constructs


def test_warnings_of_patched_code_tell_their_lines_and_callers_and_it_goes_on(constructs: Constructs) -> None:
    constructs.edit(
        warn=(
            ("WARN_ON(n == 1);", "WARN_ON(n == 1 || n == 11);"),
            ('\tWARN(n == 2, "two came', '\t/* Once more. */\n\tWARN(n == 2, "two came again'),
            ("if (WARN_ON_ONCE(n == 3))", "if (WARN_ON_ONCE(n == 3 || n == 13))"),
            ("n * 10", "n * 100"),
            ('"%d\\n"', '"= %d\\n"'),
        )
    )
    assert constructs.read("warn", 5) == "= 500"

    log = constructs.log_of_reading("warn", 11)
    place = constructs.line_of("warn.c", "WARN_ON(n == 1")
    assert re.search(rf"WARNING: CPU: 0 PID: \d+ at .*/{place} warn_check\+.* \[{constructs.patch}\]", log)
    # Unwound without a doubt (no "?"): the patched function that called it, and the kernel's behind.
    frames = re.findall(r"^\[.*?\]  (\? )?(\w+)\+0x", log.partition("Call Trace:")[2], re.MULTILINE)
    known = [name for doubt, name in frames if not doubt]
    assert re.search(rf" warn_show\+.* \[{constructs.patch}\]", log)
    assert known[:2] == ["warn_show", "seq_read_iter"], log
    assert known[-1] == "entry_SYSCALL_64_after_hwframe"
    assert constructs.read("warn", 11) == "= 1100"

    log = constructs.log_of_reading("warn", 2)
    assert "two came again to warn_check" in log
    assert constructs.line_of("warn.c", "two came again") in log

    assert constructs.line_of("warn.c", "WARN_ON_ONCE") in constructs.log_of_reading("warn", 13)
    assert "WARNING" not in constructs.log_of_reading("warn", 13)
    assert constructs.read("warn", 3) == "= -3"


def test_faults_of_patched_code_are_caught(constructs: Constructs) -> None:
    constructs.edit(
        faults=(
            ("(value, NO_KERNEL);", "(value, NO_KERNEL) - 1;"),
            (
                "failed:\n\tuser_access_end();\n\treturn -EFAULT",
                "failed:\n\tuser_access_end();\n\treturn -99",
            ),
            ("savesegment(es, now);\n\treturn now;", "savesegment(es, now);\n\treturn now + 7;"),
            ("memset(page, 0x11, PAGE_SIZE);", "memset(page, 0x22, PAGE_SIZE);"),
        )
    )
    assert constructs.read("faults") == "kernel -15 user -99 segment 7 end 22222222"
    # STAC and CLAC around the access are alternatives: there, if the processor has SMAP.
    opened = b"\x0f\x01\xcb" in constructs.code("faults_user").content
    assert opened == (" smap " in constructs.run("cat /proc/cpuinfo"))


def test_alternatives_of_patched_code_are_applied(constructs: Constructs) -> None:
    constructs.edit(
        features=(
            ("return before + after;", "return 100 + before + after;"),
            ('"movl $2, %0"', '"movl $200, %0"'),
            ("memset(page, 0xff, PAGE_SIZE);", "memset(page, 0xee, PAGE_SIZE);"),
            ("TELL(HYPERVISOR);", "TELL(PGE);\n\tTELL(HYPERVISOR);"),
        )
    )
    first, *features = constructs.read("features").splitlines()
    assert first == "settled 100 chosen 200 uncleared 0"
    assert len(features) == 6
    has = {}
    for name, ours, truth in map(str.split, features):
        assert ours == truth, name
        has[name] = truth == "1"
    assert has["HYPERVISOR"], "the test needs a feature that is there"
    assert not has["AVX512F"], "and one that is not"
    # Which of the kernel's functions clears a page is an alternative as well: a call in a replacement.
    chosen = "erms" if has["ERMS"] else "rep" if has["REP_GOOD"] else "orig"
    clears = constructs.code("features_clear")
    for kind in ("orig", "rep", "erms"):
        assert clears.goes_to(constructs.address(f"clear_page_{kind}")) == (kind == chosen), kind


def test_call_sites_of_patched_code_are_rewritten_for_this_processor(constructs: Constructs) -> None:
    constructs.edit(
        sites=(
            ("return sites_what[n & 1](n) + 1;", "return sites_what[n & 1](n) + 2;"),
            ("return were + 2 * irqs_disabled();", "return were + 10 + 2 * irqs_disabled();"),
            ("EFER_LMA ? 1 : 0", "EFER_LMA ? 2 : 3"),
            ("return cond_resched() ? n : n + 1;", "return cond_resched() ? n : n + 2;"),
        )
    )
    assert constructs.read("sites", 4) == "result 10 calls 1 quiet 11 msr 2 polite 1"
    assert constructs.read("sites", 5) == "result 17 calls 2 quiet 11 msr 2 polite 1"

    indirect = constructs.code("sites_indirect")
    # .smp_locks: a guest of one processor needs no lock prefix (f0), and has a harmless one (3e) there.
    assert re.search(rb"\x3e\xff\x05|\x3e\x83\x05", indirect.content), indirect.content.hex()
    assert not re.search(rb"\xf0\xff\x05|\xf0\x83\x05", indirect.content)
    # .retpoline_sites: without the mitigation a plain CALL through the register, not one of the thunk.
    assert re.search(rb"\xff[\xd0-\xd7]", indirect.content)
    assert not indirect.goes_to(constructs.address("__x86_indirect_thunk_rax"))

    for name in ("sites_indirect", "sites_quiet", "sites_polite"):
        code = constructs.code(name)
        # .return_sites: a plain RET.
        assert b"\xc3\xcc" in code.content, name
        assert not code.goes_to(constructs.address("__x86_return_thunk")), name

    # .parainstructions, or .altinstructions since 6.8: a call through pv_ops becomes one of the function
    # itself, or PUSHF; POP %REG.
    assert re.search(rb"\x9c[\x58-\x5f]", constructs.code("sites_quiet").content)
    assert constructs.code("sites_msr").goes_to(constructs.address("native_read_msr"))
    for name in ("sites_quiet", "sites_msr"):
        assert not re.search(rb"\xff(\x14\x25|\x15)", constructs.code(name).content), name

    # .call_sites (call depth tracking, since 6.2) changes nothing on this processor: it is there, or not.
    driver, patch = (
        constructs.run(f"ls -A /sys/module/{name}/sections").split()
        for name in ("constructs", constructs.patch)
    )
    assert (".call_sites" in driver) == (".call_sites" in patch)

    # .static_call_sites: straight to the function, past the trampoline.
    polite = constructs.code("sites_polite")
    assert polite.goes_to(constructs.address("__cond_resched"))
    assert not polite.goes_to(constructs.address("__SCT__cond_resched"))
    assert not polite.goes_to(constructs.address("__SCT__might_resched"))


def test_patched_code_can_be_traced(constructs: Constructs) -> None:
    constructs.edit(warn=("return n * 10;", "return n * 1000;"))
    tracing, function = "/sys/kernel/tracing", f"warn_check:mod:{constructs.patch}"
    constructs.run(f"cd {tracing} && echo {function} >set_ftrace_filter && echo function >current_tracer")
    assert constructs.read("warn", 6) == "6000"
    trace = constructs.run(f"cd {tracing} && cat trace; echo nop >current_tracer; echo >set_ftrace_filter")
    assert re.search(r"warn_check <-warn_show", trace)
