# SPDX-License-Identifier: MIT
#
# Runs in a guest that somebody else started, as long as a connection to it lasts. It brings the agent and
# removes it again, and keeps other sessions out. See attached_guest.py.
#
#   sh -c THIS hotreload TOKEN BYTES <the agent, BYTES long, then nothing until the end
#
# TOKEN identifies the session. Prints one line: "ready BOOT-ID", "refused WHY", or "busy" if another session
# is attached.

me="$$ $1"
folder=/run/hotreload
lock=$folder.lock
PATH=$PATH:/usr/sbin:/sbin

refuse() {
    echo "refused $*"
    exit
}

[ "$(id -u)" = 0 ] || refuse "its user is not root"
missing=
for tool in awk cat chmod cut dmesg grep head insmod ln ls mkdir mv od rm rmdir rmmod sed sleep sort tail tr; do
    command -v $tool >/dev/null || missing="$missing $tool"
done
[ ! "$missing" ] || refuse "it has no$missing"
[ -d /sys/kernel/livepatch ] || refuse "it has no /sys/kernel/livepatch: CONFIG_LIVEPATCH is off, or /sys is not mounted"
[ -r /proc/kallsyms ] || refuse "it has no /proc/kallsyms"

# The lock names the owner of the guest: "PID TOKEN" of a program like this one. ln creates it with its
# content.
owner() {
    read -r pid token <$lock
} 2>/dev/null

# The guest notices a dropped connection late. The same session may return by another connection before that.
lives() { # succeeds if the owner is another session and still runs
    [ "$token" != "${me#* }" ] && tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF "$token"
} 2>/dev/null

# Of all that want to change a lock with PID TOKEN, only one succeeds: COMMAND.. is run if it still has that
# text.
as_heir_of() { # PID TOKEN COMMAND..
    heir=$lock.$1.$2 was="$1 $2"
    mkdir "$heir" 2>/dev/null || return
    shift 2
    owner && [ "$pid $token" = "$was" ] && "$@"
    set -- $?
    rmdir "$heir"
    return $1
}

take() {
    ln "$folder.$$" $lock 2>/dev/null && return
    owner && ! lives && as_heir_of "$pid" "$token" mv -f "$folder.$$" $lock
}

leave() {
    rm -rf $folder $lock
}

umask 077
trap '' HUP PIPE TERM
echo "$me" >$folder.$$ && written=true || written=
[ "$written" ] && take && taken=true || taken=
rm -f $folder.$$
[ "$written" ] || refuse "$folder.$$ cannot be written"
if [ ! "$taken" ]; then
    echo busy
    exit
fi
rm -rf $folder
if mkdir $folder && head -c "$2" >$folder/agent && [ "$(wc -c <$folder/agent)" -eq "$2" ]; then
    read -r boot </proc/sys/kernel/random/boot_id
    echo "ready $boot"
    cat >/dev/null
else
    echo "refused $folder cannot be written"
fi
as_heir_of $me leave
