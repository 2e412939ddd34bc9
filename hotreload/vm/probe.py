# SPDX-License-Identifier: MIT
"""Find out whether KVM runs guests here. Only running one can tell.

``/dev/kvm`` may open and answer every ioctl, but still run no guest: if the host itself is a virtual machine,
KVM may only interpret guest instructions, a microsecond each, until it finds one that it cannot interpret.
Therefore QEMU gets a ROM with a hundred bytes of code instead of a BIOS, with the same processor model as the
guest. The code switches to 64-bit mode with paging, counts down from 67 million (30 ms on a real processor, a
minute when interpreted), and exits through QEMU's debug exit device with a unique status. The answer is
cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hotreload import process
from hotreload.errors import EnvironmentFault
from hotreload.paths import cache_folder, writing_to
from hotreload.vm.qemu import main_complaint
from hotreload.vm.spec import cpu_model

KVM = Path("/dev/kvm")
# Seconds. Ten times what a slow machine needs; a KVM that only interprets takes a minute, or never ends.
PROBE_LIMIT = 5.0

EXIT_PORT = 0xF4
EXIT_VALUE = 0x21
# QEMU's docs/specs: isa-debug-exit ends QEMU with (value << 1) | 1.
EXIT_STATUS = EXIT_VALUE << 1 | 1
ROUNDS = 1 << 26

ROM_SIZE = 64 * 1024
# An x86 processor executes its first instruction at 16 bytes below 4 GiB (Intel SDM vol. 3, 10.1.4).
RESET_VECTOR = ROM_SIZE - 16


@dataclass(frozen=True, slots=True)
class Accel:
    """How the guest is run, and why. ``code`` is HR5101 if it is not KVM."""

    name: Literal["kvm", "tcg"]
    reason: str

    @property
    def code(self) -> str | None:
        return None if self.name == "kvm" else "HR5101"


async def choose_accel(qemu: str = "qemu-system-x86_64") -> Accel:
    """Return ``kvm`` if it was seen to run a guest, else ``tcg``. Raises EnvironmentFault (HR5104)."""
    program = shutil.which(qemu)
    if program is None:
        raise EnvironmentFault(
            f"{qemu} is not installed", code="HR5104", hint="apt-get install qemu-system-x86"
        )
    # Presence and permission are not cached, because no key would show their change, and they cost nothing to
    # check.
    if not KVM.exists():
        return Accel("tcg", f"there is no {KVM}: the guest runs under TCG, several times slower")
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Accel(
            "tcg",
            f"no permission to open {KVM}: add yourself to the group kvm (adduser $USER kvm) and log in"
            " again",
        )
    cache = cache_folder() / "accel.json"
    key = _fingerprint(Path(program))
    known = _cached(cache, key)
    if known is None:
        known = await probe_kvm(program)
        _remember(cache, key, known)
    return known


async def probe_kvm(qemu: str) -> Accel:
    """Run the ROM under KVM."""
    try:
        status, complaint = await run_rom(qemu, "kvm")
    except TimeoutError:
        return Accel("tcg", f"{KVM} can be opened, but no guest ran within {PROBE_LIMIT:g} s")
    if status == EXIT_STATUS:
        return Accel("kvm", "a trial guest ran")
    return Accel("tcg", f"KVM does not run guests: {complaint or f'QEMU ended with status {status}'}")


async def run_rom(qemu: str, accel: str) -> tuple[int, str]:
    """Return QEMU's exit status and error line. Raises TimeoutError if the ROM did not run."""
    rom = cache_folder() / "probe.rom"
    with writing_to(rom):
        _replace(rom, probe_rom())
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"]
    leave = f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"
    done = await process.run(
        [
            qemu,
            *words,
            "-machine",
            "pc",
            "-accel",
            accel,
            "-cpu",
            cpu_model(accel),
            "-bios",
            rom,
            "-device",
            leave,
        ],
        timeout=PROBE_LIMIT,
    )
    return done.status, main_complaint(done.complaint)


def probe_rom() -> bytes:
    """Return a ROM whose code enters 64-bit mode, counts, and writes EXIT_VALUE to EXIT_PORT."""
    enter = bytes(
        (
            *(0x66, 0x2E, 0x0F, 0x01, 0x16, *_word(_GDT_REGISTER)),  # lgdtl %cs:GDT_REGISTER
            *(0x66, 0xB8, *_long(0x20), 0x0F, 0x22, 0xE0),  # mov $CR4_PAE, %eax; mov %eax, %cr4
            *(0x66, 0xB8, *_long(_ROM_BASE + _PML4), 0x0F, 0x22, 0xD8),  # mov $PML4, %eax; mov %eax, %cr3
            *(0x66, 0xB9, *_long(0xC0000080), 0x0F, 0x32),  # mov $MSR_EFER, %ecx; rdmsr
            *(0x66, 0x0D, *_long(0x100), 0x0F, 0x30),  # or $EFER_LME, %eax; wrmsr
            *(0x66, 0xB8, *_long(0x80000011), 0x0F, 0x22, 0xC0),  # mov $(CR0_PG|ET|PE), %eax; mov %eax, %cr0
            *(0x66, 0xEA, *_long(_ROM_BASE + _COUNT), *_word(8)),  # ljmpl $8, $COUNT
        )
    )
    count = bytes(
        (
            *(0xB9, *_long(ROUNDS)),  # mov $ROUNDS, %ecx
            *(0xFF, 0xC9, 0x75, 0xFC),  # 1: dec %ecx; jnz 1b
            *(0xB0, EXIT_VALUE, 0xE6, EXIT_PORT),  # mov $EXIT_VALUE, %al; out %al, $EXIT_PORT
            *(0xEB, 0xFE),  # 1: jmp 1b
        )
    )
    # The accessed and dirty bits are set, because a processor cannot write them to a ROM.
    present_writable = 0x63
    last_2_mb = (1 << 32) - (2 << 20)
    rom = bytearray(ROM_SIZE)
    for place, part in (
        (_PML4, _quad(_ROM_BASE + _PDPT | present_writable)),
        (_PDPT + 3 * 8, _quad(_ROM_BASE + _PD | present_writable)),
        (_PD + 511 * 8, _quad(last_2_mb | present_writable | 0x80)),
        (_ENTER, enter),
        (_COUNT, count),
        (_GDT + 8, _quad(0x00AF_9B00_0000_FFFF)),  # selector 8: 64-bit code
        (_GDT_REGISTER, _word(2 * 8 - 1) + _long(_ROM_BASE + _GDT)),
        (RESET_VECTOR, b"\xe9" + _word(_ENTER - (RESET_VECTOR + 3) & 0xFFFF)),  # jmp ENTER
    ):
        rom[place : place + len(part)] = part
    return bytes(rom)


# The ROM ends at 4 GiB. Offsets in it: page tables, code, descriptor table.
_ROM_BASE = (1 << 32) - ROM_SIZE
_PML4, _PDPT, _PD = 0xA000, 0xB000, 0xC000
_ENTER, _COUNT = 0xFE00, 0xFE80
_GDT, _GDT_REGISTER = 0xFF00, 0xFF20


def _word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _long(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _quad(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _fingerprint(qemu: Path) -> str:
    """Hash what may change the answer: the probe itself, the host's kernel, QEMU, the processor."""
    about = qemu.resolve().stat()
    question = (probe_rom(), cpu_model("kvm"))
    facts = (question, *platform.uname()[2:4], str(qemu), about.st_size, about.st_mtime_ns, _processor())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _processor() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("vendor_id", "model name", "stepping", "flags"))]


def _cached(cache: Path, key: str) -> Accel | None:
    try:
        return Accel(**json.loads(cache.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(cache: Path, key: str, answer: Accel) -> None:
    # Only keep one answer: an older one is of a kernel or QEMU that is no longer used.
    with writing_to(cache):
        _replace(cache, json.dumps({key: asdict(answer)}).encode())


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.rename(path)
