# SPDX-License-Identifier: MIT
"""What ends the programs that hotreload has started when hotreload itself is killed, and theirs.

The kernel's PR_SET_PDEATHSIG reaches our own children alone; of make it leaves the compilers, of gcc cc1 and
the assembler, and those write on into the user's folders. So everything that is started here has a word in
its environment, which its children inherit, and beside us lives a shell that reads from a pipe which nobody
writes to. When that ends, so have we, whatever killed us; then it ends every process that has the word, with
SIGTERM first: make and gcc delete what they were about to write.

A word, and not the numbers of process groups: it says nothing of a process that got the number of another one
later, nobody has to be told when a program starts or ends, and one that leaves its group is found, too.
To start the shell takes 0.4 ms, once, and it has 0.1 MB of its own; a program that is started costs nothing.
"""

from __future__ import annotations

import os
import secrets

VARIABLE = "HOTRELOAD_STARTED_BY"
# Looks, 50 ms apart, until what does not end is killed, and until nobody looks any more.
ASKED, LOOKED = 80, 160

# A program may be missed while it is between fork and exec: two looks must find none. Who was found at the
# first look may start others to clean up with: they are left alone for a second.
GUARD = """
cd /
trap '' HUP INT QUIT TERM
read -r _
told=' ' look=0 none=0
while [ $none -lt 2 ] && [ $look -lt $3 ]; do
    none=$((none + 1))
    for place in $(grep -lsxzF -e "$1" /proc/[0-9]*/environ); do
        none=0 place=${place%/environ} pid=${place#/proc/}
        case $look:$told in
            *" $pid "*) [ $look -lt $2 ] || kill -KILL "$pid" ;;
            0:* | [2-9]?:* | ???:*) kill -TERM "$pid" && told="$told$pid " ;;
        esac
    done
    look=$((look + 1))
    sleep 0.05
done
"""

_guards: dict[int, tuple[str, int]] = {}  # of this process: its number, the word, the pipe


def word() -> dict[str, str]:
    """What a program's environment needs, so that the program ends with us; the guard is there then.

    Raises OSError when no process can be started.
    """
    if os.getpid() not in _guards:
        _guards[os.getpid()] = _start()
    return {VARIABLE: _guards[os.getpid()][0]}


def _start() -> tuple[str, int]:
    name = f"{os.getpid()}-{secrets.token_hex(8)}"
    reading, writing = os.pipe()  # no program that we start has an end of it
    try:
        os.posix_spawnp(
            "sh",
            ["sh", "-c", GUARD, "hotreload-guard", f"{VARIABLE}={name}", str(ASKED), str(LOOKED)],
            # Not ours: it would have the word of the hotreload that has started this one.
            {"PATH": f"{os.environ.get('PATH', '')}:{os.defpath}", "LC_ALL": "C"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,  # what a terminal says to us is not for it
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return name, writing


def _forget() -> None:
    """A fork of us has programs of its own, and must not keep our guard from seeing our end."""
    for _word, pipe in _guards.values():
        os.close(pipe)
    _guards.clear()


os.register_at_fork(after_in_child=_forget)
