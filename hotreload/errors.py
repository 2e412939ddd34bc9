# SPDX-License-Identifier: MIT
"""The error tree: what can go wrong, and whether the session goes on.

    HotReloadError
    |-- EditError                 the edit failed; the loop goes on, the guest keeps its last good code
    |   |-- CompileError          3  HR1003  the compiler said no
    |   |   `-- CompilerDiedError              it was killed, by a lack of memory, say
    |   |-- NotPatchableError     4  HR2xxx  the edit cannot become a live patch; carries every obstacle
    |   |-- PatchRejectedError    4  HR3103  the guest's kernel refused the patch module
    |   |   `-- ValueChangedError   4  HR2103  it has changed a value that has a new initial one
    |   |-- TransitionStalledError 6 HR3104  tasks sleep in the old code
    |   `-- GuestCrashedError     5  HR41xx  the guest's kernel died
    `-- SessionError              nothing can go on: the command ends; in a session's cycle, that edit
        |-- InputError            2  HR10xx  usage, configuration, an unreadable file or tree
        |-- EnvironmentFault      7  HR51xx  this machine lacks something (see `hotreload doctor`)
        |-- KernelUnfitError      7  HR3102  the kernel lacks an option that live patching needs
        |-- GuestBusyError        2  HR3106  another hotreload owns this guest
        `-- GuestUnreachableError 8  HR3107, HR4103  the guest did not boot, or does not answer

The number is the exit status (the table in README.md); every error carries a code that
`hotreload why CODE` explains.
"""

from __future__ import annotations


class HotReloadError(Exception):
    """Base of everything this package raises on purpose.

    ``message`` is one line that states the fact; ``hint`` one line that says what to do.
    """

    exit_status = 1
    default_code = "HR0000"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint


class EditError(HotReloadError):
    """The edit failed; the guest still runs its last good code."""


class CompileError(EditError):
    """The compiler refused the source. ``diagnostics`` is its output, in gcc's own form."""

    exit_status = 3
    default_code = "HR1003"

    def __init__(self, message: str, diagnostics: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.diagnostics = diagnostics


class CompilerDiedError(CompileError):
    """The compiler was killed, and said nothing about the source."""


class PatchRejectedError(EditError):
    """The guest's kernel refused to load or enable the patch; the message is its own reason."""

    exit_status = 4
    default_code = "HR3103"


class ValueChangedError(PatchRejectedError):
    """The kernel has changed a value that the source gives a new initial one; ``name`` as C has it."""

    default_code = "HR2103"

    def __init__(self, name: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class TransitionStalledError(EditError):
    """The livepatch transition did not finish in time; it was reversed. ``tasks`` hold it up."""

    exit_status = 6
    default_code = "HR3104"

    def __init__(self, message: str, tasks: tuple[str, ...] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tasks = tasks


class GuestCrashedError(EditError):
    """The guest's kernel oopsed or panicked; ``excerpt`` is what its console said.

    ``place``: the module, the function to blame in it, and the offset of the instruction there, in bytes.
    """

    exit_status = 5
    default_code = "HR4102"

    def __init__(
        self,
        message: str,
        excerpt: str = "",
        *,
        place: tuple[str | None, str, int] | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.excerpt = excerpt
        self.place = place


class SessionError(HotReloadError):
    """The command cannot go on."""


class InputError(SessionError):
    """Usage, configuration, or a file or tree that cannot be read as what it should be."""

    exit_status = 2
    default_code = "HR1009"


class EnvironmentFault(SessionError):
    """This machine lacks something: a program, space, a permission."""

    exit_status = 7
    default_code = "HR5106"


class KernelUnfitError(SessionError):
    """The kernel lacks an option that live patching or the guest needs."""

    exit_status = 7
    default_code = "HR3102"


class GuestBusyError(SessionError):
    """Another hotreload owns this guest."""

    exit_status = 2
    default_code = "HR3106"


class GuestUnreachableError(SessionError):
    """The guest did not boot, or does not answer any more; ``excerpt``: its console's end, if known."""

    exit_status = 8
    default_code = "HR4103"

    def __init__(
        self, message: str, excerpt: str = "", *, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.excerpt = excerpt
