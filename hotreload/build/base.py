# SPDX-License-Identifier: MIT
"""The base: the sources and objects the guest booted. Every reload is compared with it.

``cache/base/ID/`` (ID is a hash of the content) holds ``shadow/`` (a mirror, by absolute path, of the user's
sources and headers that went into the modules), ``modules/NAME.ko`` and ``objects/`` (copies of what kbuild
had made at that moment), and ``base.json``. The mirrored files are links to ``cache/base/files``, where each
content is kept once, so that the next build of the same kernel only adds the few files that differ. A unit's
base object is compiled from the shadow, never from the user's tree. It is kept in ``cache/base/objects``,
keyed by the content of everything that went into it.

Base objects are compiled with one section per function. kbuild's objects are not, and that makes one
difference: a tail call to a neighbouring function is a two-byte jump in kbuild's object, but takes five bytes
across sections (1 of 460 functions in seven drivers). Therefore compare what the guest runs with
``plain_object()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from hotreload.build.built import Build, BuiltModule, Carried, UnitInputs, is_users, sha256
from hotreload.build.cmd_files import TranslationUnit, parse_dependency_file, split_command, split_late
from hotreload.build.external_module import Progress, build_modules
from hotreload.build.gcc import compile_as_kbuild, compile_object, finish_object, program_identity
from hotreload.build.kernel_tree import KernelTree
from hotreload.build.replay import Shadow, include_folders
from hotreload.errors import CompileError, CompilerDiedError, InputError
from hotreload.paths import cache_folder, writing_to

MANIFEST = "base.json"
FILES = "files"
TRIES = 5
# Part of the key of every base object. Increment it when the way base objects are compiled changes.
SCHEME = "6"
EVERYTHING_IN_PLACE: Mapping[Path, Path] = MappingProxyType({})
# Ages, in seconds, at which an entry of the cache is removed.
HALF_MADE = 3600
UNUSED = 30 * 24 * 3600


class SourceMovedError(InputError):
    """A source was saved between the kbuild run and the recording of the base."""

    default_code = "HR1006"


class AnyBase(Protocol):
    """A base with one part, or with several (guest_base.py)."""

    @property
    def modules(self) -> tuple[BuiltModule, ...]:
        """The modules, with the ``.ko`` files that the guest has."""

    @property
    def units(self) -> tuple[TranslationUnit, ...]:
        """All units; one that belongs to several modules appears once for each."""

    @property
    def tree(self) -> KernelTree:
        """The kernel."""

    @property
    def is_kernel(self) -> bool:
        """Return whether the base is a kernel's own tree."""

    def of(self, unit: TranslationUnit) -> Base:
        """Return the base of one unit."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the guest booted: ``modules`` with copies of their ``.ko`` files, and the files they consist of.

    ``digests``, ``inputs``, ``carried`` and ``variables`` are as in Build. ``makefiles`` maps each Makefile
    to its digest. ``kernel`` is a digest of the kernel headers used. ``objects`` maps each unit's object to
    the digest of the object that kbuild made.
    """

    folder: Path
    tree: KernelTree
    users_folder: Path
    modules: tuple[BuiltModule, ...]
    inputs: UnitInputs
    digests: Mapping[Path, str]
    makefiles: Mapping[Path, str]
    kernel: str
    carried: Mapping[Carried, str] = field(default_factory=dict)
    objects: Mapping[Path, str] = field(default_factory=dict)
    variables: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def units(self) -> tuple[TranslationUnit, ...]:
        return tuple(unit for module in self.modules for unit in module.units)

    @property
    def shadow(self) -> Shadow:
        def mirrored(path: Path) -> bool:
            return is_users(path, self.users_folder, self.tree)

        return Shadow(self.folder / "shadow", mirrored, self.users_folder)

    @property
    def is_kernel(self) -> bool:
        """Return whether the base is a kernel's own tree."""
        return self.users_folder == self.tree.source

    @property
    def build(self) -> Build:
        """The recorded build, as kbuild left it at that time."""
        makefiles = tuple(self.makefiles)
        return Build(
            self.users_folder, self.tree, self.modules, makefiles, self.inputs, self.digests, (),
            self.carried, variables=self.variables,
        )  # fmt: skip

    def of(self, unit: TranslationUnit) -> Base:  # noqa: ARG002
        """Return the base of one unit, which is this one."""
        return self

    def plain_object(self, unit: TranslationUnit) -> Path:
        """Return the object that kbuild made, which is linked into the guest's module."""
        return _plain(self.folder, unit.object)

    def source(self, path: Path) -> Path | None:
        """Return the base version of one of the user's files, or None if it was not part of the build."""
        mirrored = Path(f"{self.folder}/shadow{os.path.normpath(path)}")
        return mirrored if mirrored.is_file() else None


async def build_base(
    tree: KernelTree, folder: Path, progress: Progress | None = None, variables: tuple[str, ...] = ()
) -> tuple[Build, Base]:
    """Build the modules and record them. Try again if a source is saved in between.

    Raises what build_modules and record_base raise.
    """
    for _ in range(TRIES - 1):
        module = await build_modules(tree, folder, progress, variables)
        try:
            return module, await record_base(module)
        except SourceMovedError:
            continue
    module = await build_modules(tree, folder, progress, variables)
    return module, await record_base(module)


async def record_base(module: Build, made: Mapping[Path, Path] = EVERYTHING_IN_PLACE) -> Base:
    """Record what the modules were made of. Raises SourceMovedError (HR1006) if a source has changed since.

    ``made`` maps objects that are not where kbuild makes them to where they are.
    """
    bases = cache_folder() / "base"
    with writing_to(bases):
        bases.mkdir(exist_ok=True)
        _sweep(bases)
        final = bases / await asyncio.to_thread(_identity, module, made)
        if final.is_dir():
            os.utime(final)
            return _base_of(module, final, made)
        temporary = Path(tempfile.mkdtemp(prefix=".record-", dir=bases))
        try:
            await asyncio.to_thread(_copy_all, module, made, temporary)
            for unit in module.units:
                await finish_object(unit, _plain(temporary, unit.object))
            manifest = json.dumps(_to_json(_base_of(module, temporary, made)))
            (temporary / MANIFEST).write_text(manifest)
            if _identity(module, made) != final.name:
                raise SourceMovedError(
                    f"{module.folder} was rebuilt meanwhile", hint="start again when the build is done"
                )
            temporary.rename(final)
        except OSError:
            if not final.is_dir():  # else another process recorded the same base at the same time
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _base_of(module, final, made)


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Create a temporary folder for mirrors and objects.

    Its name is one that is swept if hotreload is killed.
    """
    place = cache_folder() / "base"
    with (
        writing_to(place),
        tempfile.TemporaryDirectory(prefix=".patch-", dir=place, ignore_cleanup_errors=True) as work,
    ):
        yield Path(work)


def _sweep(bases: Path) -> None:
    """Remove what a killed hotreload left unfinished, and what has not been used for a month."""
    now = time.time()
    for entry in (*bases.iterdir(), *bases.glob("objects/*"), *bases.glob(f"{FILES}/*")):
        # Another hotreload may compile or sweep here at the same time.
        with contextlib.suppress(FileNotFoundError):
            if _is_due(entry, now):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _is_due(entry: Path, now: float) -> bool:
    """Return whether the entry is to be removed. Raises FileNotFoundError if it no longer exists."""
    if entry.is_symlink():  # the record of a kernel; it is removed together with its base
        return not entry.exists()
    stat = entry.stat()
    age = now - stat.st_mtime
    if entry.parent.name == FILES:
        return stat.st_nlink == 1 and age > HALF_MADE  # no base links to it
    return entry.name not in ("objects", FILES) and age > (HALF_MADE if entry.name[0] == "." else UNUSED)


def open_base(folder: Path, tree: KernelTree) -> Base:
    """Open a base recorded earlier, for a guest that still runs.

    Raises InputError (HR1006) if it was removed.
    """
    try:
        data = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"the base of this guest is no longer in {folder}", code="HR1006", hint="restart the guest"
        ) from error
    os.utime(folder)
    return _from_json(data, folder, tree)


def _copy_all(module: Build, made: Mapping[Path, Path], into: Path) -> None:
    store = into.parent / FILES
    store.mkdir(exist_ok=True)
    for file, digest in module.digests.items():
        _mirror(file, digest, into / "shadow", store)
    _make_include_folders(module, into)
    (into / "modules").mkdir()
    (into / "objects").mkdir()
    for built in module.modules:
        shutil.copyfile(built.ko, into / "modules" / f"{built.name}.ko")
        for unit in built.units:
            shutil.copyfile(made.get(unit.object, unit.object), _plain(into, unit.object))


def _mirror(file: Path, digest: str, shadow: Path, store: Path) -> None:
    """Put a file into the shadow, by the path that gcc used, because ``a/../b.h`` needs an ``a``."""
    mirrored = f"{shadow}{file}"
    os.makedirs(os.path.dirname(mirrored), exist_ok=True)
    if os.path.lexists(mirrored):
        return
    kept = store / digest
    if not kept.is_file():
        _keep(file, digest, kept)
    try:
        os.link(kept, mirrored)
    except OSError:  # no hard links on this file system, or too many to this file
        shutil.copyfile(kept, mirrored)


def _keep(file: Path, digest: str, kept: Path) -> None:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise SourceMovedError(
            f"{file} was saved after the modules were built", hint="start again: the modules are then rebuilt"
        )
    new = kept.with_name(f".{digest}-{os.getpid()}")
    new.write_bytes(content)
    new.chmod(0o444)  # every base has a link to it
    new.replace(kept)


def _make_include_folders(module: Build, into: Path) -> None:
    shadow = Shadow(into / "shadow", module.is_users, module.folder)
    for unit in module.units:
        for spelled in include_folders(split_command(unit.command).compile):
            for folder in shadow.folders(spelled, unit.cwd):
                if folder.startswith(f"{shadow.root}/"):
                    os.makedirs(folder, exist_ok=True)


def _plain(folder: Path, target: Path) -> Path:
    return folder / "objects" / f"{target.stem}-{hashlib.sha256(bytes(target)).hexdigest()[:8]}.o"


def _base_of(module: Build, folder: Path, made: Mapping[Path, Path]) -> Base:
    return _moved(
        Base(
            folder,
            module.tree,
            module.folder,
            module.modules,
            module.inputs,
            module.digests,
            {file: sha256(file) for file in module.makefiles},
            _kernel_digest(module.tree, module.kernel_files),
            module.carried,
            # make is not asked what it would rebuild in a kernel tree, so the digests are not needed.
            {}
            if module.is_kernel
            else {unit.object: sha256(made.get(unit.object, unit.object)) for unit in module.units},
            module.variables,
        ),
        folder,
    )


def _moved(base: Base, folder: Path) -> Base:
    modules = tuple(replace(built, ko=folder / "modules" / f"{built.name}.ko") for built in base.modules)
    return replace(base, folder=folder, modules=modules)


def _kernel_digest(tree: KernelTree, files: Iterable[Path]) -> str:
    """Hash the size and time of each header: hundreds of stats take a millisecond, and no header is read."""
    digest = hashlib.sha256(f"{tree.release}\0{tree.output}\0".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _identity(module: Build, made: Mapping[Path, Path]) -> str:
    """Hash the content of everything that is recorded."""
    kernel = _kernel_digest(module.tree, module.kernel_files)
    digest = hashlib.sha256(f"{SCHEME}\0{module.folder}\0{kernel}\0".encode())
    for unit in module.units:
        content = sha256(made.get(unit.object, unit.object))
        digest.update(f"{unit.object}\0{unit.command}\0{unit.late}\0{content}\0".encode())
    for built in module.modules:
        digest.update(f"{built.name}\0{sha256(built.ko)}\0".encode())
    for file, content in sorted(module.digests.items()):
        digest.update(f"{file}\0{content}\0".encode())
    for file in module.makefiles:
        digest.update(f"{file}\0{sha256(file)}\0".encode())
    for (name, file), content in sorted(module.carried.items()):
        digest.update(f"{name}\0{file}\0{content}\0".encode())
    digest.update("\0".join(module.variables).encode())
    return digest.hexdigest()[:24]


def _to_json(base: Base) -> dict[str, Any]:
    return {
        "users_folder": str(base.users_folder),
        "kernel": base.kernel,
        "modules": [
            {"name": built.name, "units": [_texts(asdict(unit)) for unit in built.units]}
            for built in base.modules
        ],
        "inputs": base.inputs.to_json(),
        "digests": {str(file): digest for file, digest in base.digests.items()},
        "makefiles": {str(file): digest for file, digest in base.makefiles.items()},
        "carried": [[name, str(file), digest] for (name, file), digest in base.carried.items()],
        "objects": {str(file): digest for file, digest in base.objects.items()},
        "variables": list(base.variables),
    }


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _from_json(data: Mapping[str, Any], folder: Path, tree: KernelTree) -> Base:
    return Base(
        folder,
        tree,
        Path(data["users_folder"]),
        tuple(_module_from_json(item, folder) for item in data["modules"]),
        UnitInputs.from_json(data["inputs"]),
        {Path(file): digest for file, digest in data["digests"].items()},
        {Path(file): digest for file, digest in data["makefiles"].items()},
        data["kernel"],
        # Older records do not have these keys.
        {(name, Path(file)): digest for name, file, digest in data.get("carried", ())},
        {Path(file): digest for file, digest in data.get("objects", {}).items()},
        tuple(data.get("variables", ())),
    )


def _module_from_json(item: Mapping[str, Any], folder: Path) -> BuiltModule:
    units = tuple(
        TranslationUnit(
            Path(unit["source"]),
            Path(unit["object"]),
            unit["command"],
            Path(unit["cwd"]),
            unit["module"],
            unit["late"],
        )
        for unit in item["units"]
    )
    return BuiltModule(item["name"], folder / "modules" / f"{item['name']}.ko", units)


async def base_object(base: Base, unit: TranslationUnit) -> Path:
    """Return the unit's object as the guest booted it, with one section per function.

    Compile it at most once. Raises InputError (HR1006) when the base source does not compile, or includes a
    file that was not recorded; CompilerDiedError.
    """
    if unit.is_assembly:
        # Assembly code defines its own sections and lines, and only kbuild's object has the bytes it
        # includes.
        return base.plain_object(unit)
    return await _made_once(base, unit, f"{_object_key(base, unit)}.o", compile_object)


async def object_as_kbuild(base: Base, unit: TranslationUnit) -> Path:
    """Like base_object, but with kbuild's own flags.

    It proves that the base source and the command are right. Raises what base_object raises.
    """
    return await _made_once(base, unit, f"{_object_key(base, unit)}-kbuild.o", compile_as_kbuild)


async def _made_once(
    base: Base,
    unit: TranslationUnit,
    name: str,
    make: Callable[[TranslationUnit, Path, Shadow], Awaitable[str]],
) -> Path:
    target = cache_folder() / "base" / "objects" / name
    if target.is_file():
        os.utime(target)
        return target
    # A file only gets its final name after it has passed the check.
    unchecked = target.with_name(f".{target.stem}.{os.getpid()}-unchecked.o")
    try:
        await make(unit, unchecked, base.shadow)
        _require_same_inputs(unchecked, unit, base)
        unchecked.with_suffix(".d").replace(target.with_suffix(".d"))
        unchecked.replace(target)
    except CompilerDiedError:
        raise
    except CompileError as error:
        told = error.message.replace(str(base.shadow.root), "")
        raise _unusable(f"the base source of {unit.source} does not compile: {told}") from error
    finally:
        unchecked.unlink(missing_ok=True)
        unchecked.with_suffix(".d").unlink(missing_ok=True)
    return target


def _unusable(fact: str) -> InputError:
    return InputError(fact, code="HR1006", hint="build the module and restart the guest")


def _require_same_inputs(compiled: Path, unit: TranslationUnit, base: Base) -> None:
    """Check that gcc read, in the shadow, the files that the kbuild run used, and no edited file.

    Raises InputError (HR1006) otherwise.
    """
    root = str(base.shadow.root)
    used = set()
    for spelled in parse_dependency_file(_read(compiled.with_suffix(".d"))):
        file = os.path.join(unit.cwd, spelled)
        if spelled.startswith(f"{root}/"):
            used.add(os.path.normpath(spelled.removeprefix(root)))
        elif base.shadow.is_users(Path(os.path.normpath(file))):
            raise _unusable(f"the base of {unit.source} includes {file}, which was not recorded")
    recorded = {os.path.normpath(file) for file in base.inputs[unit.object]}
    if used != recorded:
        others = ", ".join(sorted(used ^ recorded))
        raise _unusable(f"the base of {unit.source} does not include the same files as its build: {others}")


def _read(file: Path) -> str:
    return file.read_text(errors="surrogateescape")


def _object_key(base: Base, unit: TranslationUnit) -> str:
    recorded = split_command(unit.command)
    programs = [recorded.compile[0], *(step[0] for step in (*recorded.after, *split_late(unit.late)))]
    digest = hashlib.sha256(f"{SCHEME}\0{base.kernel}\0{unit.cwd}\0{unit.command}\0{unit.late}\0".encode())
    digest.update(program_identity(programs, unit.cwd).encode())
    for file in base.inputs[unit.object]:
        digest.update(f"{file}\0{base.digests[file]}\0".encode())
    return digest.hexdigest()[:32]
