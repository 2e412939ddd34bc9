# SPDX-License-Identifier: MIT
#
# Run in a guest that somebody else started, for as long as a connection to it lasts: it brings the agent and
# takes it away again, and keeps others out. See attached_guest.py.
#
#   sh -c THIS hotreload TOKEN BYTES <the agent of so many BYTES, then nothing until the end
#
# TOKEN is the session's. Tells one line: "ready BOOT-ID", "refused WHY", or "busy" with another session.

token=$1
folder=/run/hotreload
PATH=$PATH:/usr/sbin:/sbin

refuse() {
    echo "refused $*"
    exit
}

[ "$(id -u)" = 0 ] || refuse "its user is not root"
missing=
for tool in awk cat chmod cut dmesg grep head insmod ls mkdir mv od rm rmmod sed sleep sort tail tr; do
    command -v $tool >/dev/null || missing="$missing $tool"
done
[ ! "$missing" ] || refuse "it has no$missing"
[ -d /sys/kernel/livepatch ] || refuse "it has no /sys/kernel/livepatch: CONFIG_LIVEPATCH is off, or /sys is not mounted"
[ -r /proc/kallsyms ] || refuse "it has no /proc/kallsyms"

# A connection that dropped is noticed late here; the same session may come by another one first.
lives() { # the session that is here, if it is not ours
    read -r pid owner <$folder/owner && [ "$owner" != "$token" ] && tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF "$owner"
} 2>/dev/null

umask 077
if ! mkdir $folder 2>/dev/null; then
    if lives; then
        echo busy
        exit
    fi
    rm -rf $folder
    mkdir $folder || refuse "$folder cannot be made"
fi
echo "$$ $token" >$folder/owner
trap '' HUP PIPE TERM
if head -c "$2" >$folder/agent && [ "$(wc -c <$folder/agent)" -eq "$2" ]; then
    read -r boot </proc/sys/kernel/random/boot_id
    echo "ready $boot"
    cat >/dev/null
else
    echo "refused $folder cannot be written"
fi
read -r pid owner <$folder/owner && [ "$pid" != $$ ] || rm -rf $folder
