# SPDX-License-Identifier: MIT
#
# Run in a guest that somebody else started, for as long as a connection to it lasts: it brings the agent and
# takes it away again, and keeps others out. See attached_guest.py.
#
#   sh -c THIS hotreload TOKEN BYTES <the agent of so many BYTES, then nothing until the end
#
# TOKEN is the session's. Tells one line: "ready BOOT-ID", "refused WHY", or "busy" with another session.

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

# The lock says whose the guest is: "PID TOKEN" of a program like this one. It comes with its content, by ln.
owner() {
    read -r pid token <$lock
} 2>/dev/null

# A connection that dropped is noticed late here; the same session may come by another one first.
lives() { # the session that is here, if it is not ours
    [ "$token" != "${me#* }" ] && tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF "$token"
} 2>/dev/null

# Of all who want to change a lock that says PID TOKEN one gets to: COMMAND.. is run while it still says so.
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
