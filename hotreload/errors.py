# SPDX-License-Identifier: MIT
"""The error tree: what can go wrong, and whether the session goes on.

    HotReloadError
    |-- EditError                 the edit failed; the loop goes on, the guest keeps its last good code
    |   |-- CompileError          3  HR1003  the compiler refused the source
    |   |   `-- CompilerDiedError              it was killed, for example by a lack of memory
    |   |-- NotPatchableError     4  HR2xxx  the edit cannot become a live patch; carries every obstacle
    |   |-- PatchRejectedError    4  HR3103  the guest's kernel refused the patch module
    |   |   `-- ValueChangedError   4  HR2103  a value with a new initial value has changed
    |   |-- TransitionStalledError 6 HR3104  tasks sleep in the old code
    |   `-- GuestCrashedError     5  HR41xx  the guest's kernel died
    `-- SessionError              the command ends; in a cycle of a session, only the edit fails
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
    """Base of everything that this package raises on purpose.

    ``message`` is one line that states the fact. ``hint`` is one line that says what to do.
    """

    exit_status = 1
    default_code = "HR0000"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint


class EditError(HotReloadError):
    """The edit failed. The guest still runs its last good code."""


class CompileError(EditError):
    """The compiler refused the source. ``diagnostics`` is its output, in gcc's own form."""

    exit_status = 3
    default_code = "HR1003"

    def __init__(self, message: str, diagnostics: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.diagnostics = diagnostics


class CompilerDiedError(CompileError):
    """The compiler was killed without saying anything about the source."""


class PatchRejectedError(EditError):
    """The guest's kernel refused to load or enable the patch. The message is its reason."""

    exit_status = 4
    default_code = "HR3103"


class ValueChangedError(PatchRejectedError):
    """The kernel has changed a value that has a new initial value in the source. ``name`` is its C name."""

    default_code = "HR2103"

    def __init__(self, name: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class TransitionStalledError(EditError):
    """The livepatch transition did not finish in time and was reversed. ``tasks`` held it up."""

    exit_status = 6
    default_code = "HR3104"

    def __init__(self, message: str, tasks: tuple[str, ...] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tasks = tasks


class GuestCrashedError(EditError):
    """The guest's kernel oopsed or panicked. ``excerpt`` is the console output about it.

    ``place`` is the module, the function in it that is to blame, and the offset of the instruction, in bytes.
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
    """A mistake in usage or configuration, or a file or tree that cannot be read as what it should be."""

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
    """The guest did not boot, or no longer answers.

    ``excerpt`` is the end of its console output, if known.
    """

    exit_status = 8
    default_code = "HR4103"

    def __init__(
        self, message: str, excerpt: str = "", *, code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.excerpt = excerpt
