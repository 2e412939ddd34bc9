# SPDX-License-Identifier: MIT
"""The verb ``hotreload guest attach``: work on a guest that somebody else started."""

from __future__ import annotations

from pathlib import Path

import click

from hotreload.cli.command import Globals, json_option, load_option, make_option, verb
from hotreload.cli.guest_verbs import guest, start_session
from hotreload.cli.verbs import one_folder, path_argument, watched

_existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@verb("attach", guest)
@path_argument
@click.option(
    "--ssh",
    "address",
    metavar="[USER@]HOST[:PORT]",
    required=True,
    help="SSH address of the guest; the user must be root.",
)
@click.option(
    "--identity",
    metavar="KEYFILE",
    type=_existing_file,
    help="Private key; default: your own keys and ssh-agent's.",
)
@click.option(
    "--host-key",
    metavar="FILE",
    type=_existing_file,
    help="Public key of the guest; default: your known_hosts.",
)
@click.option("--qmp", metavar="SOCKET", type=click.Path(path_type=Path), help="QMP socket of its QEMU.")
@click.option(
    "--console", metavar="LOGFILE", type=click.Path(path_type=Path), help="Log file of its console."
)
@load_option
@make_option
@json_option
def attach(
    options: Globals,
    paths: tuple[Path, ...],
    address: str,
    identity: Path | None,
    host_key: Path | None,
    qmp: Path | None,
    console: Path | None,
) -> None:
    """Work on a guest that somebody else started, with the modules of PATH (default: of this folder).

    -K names the kernel that it booted. `guest stop` leaves the guest running, as it was before.
    """
    from hotreload.deploy.attached_guest import Login, parse_address, pinned_key
    from hotreload.session.attached import Attachment, require_attachable

    user, host, port = parse_address(address)
    if host_key is not None:
        pinned_key(host_key)
    # The session runs in another current folder, so make the paths absolute.
    login = Login(host, port, user, _absolute(identity), _absolute(host_key))
    attachment = Attachment(login, _absolute(qmp), _absolute(console))
    require_attachable(attachment)
    start_session(options, *watched(one_folder(paths), options), attachment)


def _absolute(file: Path | None) -> Path | None:
    return None if file is None else file.absolute()
