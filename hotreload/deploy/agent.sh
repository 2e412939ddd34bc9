#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The guest's side of a reload: each call prints one line of JSON on standard output. See livepatch.py.
#
# Without KVM each program costs the guest 5-15 ms, so a successful apply only starts cat, insmod and rm; the
# shell does the rest. Every wait has a limit, because the caller may be gone.
#
#   agent apply NAME SECONDS [MODULE=BUILDID..] [SECTION..]
#                                 load the patch module on standard input, and wait for its transition; print
#                                 the addresses of these sections. Refuse if a module has another build-id.
#                                 With __dyndbg among the sections, keep each enabled pr_debug enabled
#   agent disable NAME SECONDS    return to the kernel's own functions; sweep removes the module
#   agent sweep [KEEP..]          remove our replaced patch modules, except code that a task is in; print
#                                 where the code of the live one is
#   agent status                  the live patches, and what holds up a transition
#   agent load NAME [PARAMETERS]  load an ordinary module from standard input
#   agent fits                    check for space for the module on standard input; do nothing with it
#   agent modules NAME..          which of these modules are loaded, and who uses them
#   agent unload NAME             remove an ordinary module; print which devices its drivers had
#   agent rebind DEVICE..         bind devices, as unload printed them, to their drivers again
#   agent buildid MODULE          the build-id of a loaded module

LIVE=/sys/kernel/livepatch
SCRATCH=${TMPDIR:-/tmp}
# A kick returns after this time at the latest; then the time limit is checked.
KICK_MS=100
# How long reverting a transition may take, in hundredths of a second.
UNDO_CS=1000
NULL=0000000000000000
# A stall has few causes: a hundred readers of one file have the same one.
TASKS_TOLD=16

now_cs() { # hundredths of a second, for limits
    # /proc/uptime cannot be set like a clock, but a developer who works on that file can make it say anything.
    cs=${EPOCHREALTIME:-}
    if [ "$cs" ]; then cs=${cs%.*}${cs#*.} cs=${cs%????}; else
        read -r cs _ </proc/uptime
        cs=$((${cs%.*} * 100 + 1${cs#*.} - 100))
    fi
}

now_us() { # microseconds, for durations
    us=${EPOCHREALTIME:-}
    if [ "$us" ]; then us=${us%.*}${us#*.}; else now_cs; us=${cs}0000; fi
}

# Print standard input as one JSON string; with "lines", as one string for each line, with commas.
json() {
    LC_ALL=C awk -v lines="$1" '
    BEGIN {
        for (i = 1; i < 32; i++) escape[sprintf("%c", i)] = sprintf("\\u%04x", i)
        escape["\""] = "\\\""; escape["\\"] = "\\\\"
        if (!lines) printf "\""
    }
    {
        if (NR > 1) printf "%s", lines ? "," : "\\n"
        if (lines) printf "\""
        if ($0 !~ /[\001-\037"\\]/) printf "%s", $0
        else for (i = 1; (c = substr($0, i, 1)) != ""; i++) printf "%s", (c in escape) ? escape[c] : c
        if (lines) printf "\""
    }
    END { if (!lines) printf "\"" }'
}

first_line() { # read the first line of a kernel file into $value; empty if there is no such file
    value=
    [ ! -e "$1" ] || read -r value <"$1"
} 2>/dev/null

transition_of() { # succeeds while the patch $1 is in transition
    first_line "$LIVE/$1/transition"
    [ "$value" = 1 ]
}

find_transition() { # find the patch that is in transition: $busy
    for busy in "$LIVE"/*; do
        busy=${busy##*/}
        ! transition_of "$busy" || return 0
    done
    busy=
    return 1
}

# Make the kernel check, at once and repeatedly, whether the tasks have left the old code.
kick() {
    echo $KICK_MS >"/sys/module/$1/parameters/kick" || sleep 0.05
} 2>/dev/null

settle() { # wait until the patch $1 is not in transition; fail at the time $2 (as in $cs)
    while transition_of "$1"; do
        now_cs
        [ "$cs" -lt "$2" ] || return 1
        kick "$1"
    done
}

# Print the tasks that are not switched yet, as the inside of a JSON array.
tasks() {
    first_line "$LIVE/$1/enabled"
    target=$value
    told=0
    for task in /proc/[0-9]*/task/[0-9]*; do
        first_line "$task/patch_state"
        case $value in "$target" | -1 | '') continue ;; esac
        [ $told -lt $TASKS_TOLD ] || break
        comm=$(json <"$task/comm") && stack=$(sed 's/^\[<[0-9a-f]*>\] //' "$task/stack" | json lines) || continue
        [ $told = 0 ] || printf ,
        told=$((told + 1))
        printf '{"pid":%d,"comm":%s,"stack":[%s]}' "${task##*/}" "$comm" "$stack"
    done
} 2>/dev/null

take_back() { # revert the transition of $1 by writing $2 to it; $undone is true if that succeeded
    undone=false
    # The transition may have ended since the last check; then the whole patch is reverted.
    echo "$2" >"$LIVE/$1/enabled"
    now_cs
    # The module is only removed by a sweep, because tasks that were switched may have left pointers into it.
    settle "$1" $((cs + UNDO_CS)) && undone=true
} 2>/dev/null

canary() { # mark the kernel's log: messages after the mark are about $1
    mark="hotreload: $1 ($$)"
    echo "$mark" >/dev/kmsg
}

kernel_says() { # print the kernel's messages since the mark, at most 40 lines, as a JSON string
    dmesg | awk -v mark="$mark" 'index($0, mark) { text = ""; next } { text = text $0 "\n" } END { printf "%s", text }' |
        tail -n 40 | json
}

ours() { # succeeds if the live patch $1 is one of ours; no other has our parameter
    [ -e "/sys/module/$1/parameters/kick" ]
}

foreign_patches() { # list foreign live patches, as the inside of a JSON array: $foreign
    foreign=
    for patch in "$LIVE"/*; do
        ours "${patch##*/}" && continue
        first_line "$patch/enabled"
        [ "$value" != 1 ] || foreign="$foreign${foreign:+,}\"${patch##*/}\""
    done
}

with_mounted() { # TYPE PLACE FILE COMMAND..: run the command in PLACE, or if it lacks FILE in a temporary mount
    type=$1 place=$2 wanted=$3
    shift 3
    if [ -e "$place/$wanted" ]; then
        (cd "$place" && "$@")
        return
    fi
    place=$SCRATCH/hotreload-agent.$$.$type
    mkdir "$place" && mount -t "$type" "$type" "$place" && (cd "$place" && "$@")
    umount "$place"
    rmdir "$place"
} 2>/dev/null

words() { # print $2 words of /proc/kcore, after the first $1, in hexadecimal
    dd if=/proc/kcore bs=8 skip="$1" count="$2" | od -A n -v -t x8
} 2>/dev/null

words_at() { # print $2 words of the kernel's memory at the address $1
    wanted=$1 count=$2
    # The segments of the file are the regions of memory: type, offset, address, -, size, -, alignment, from
    # word 8.
    set -- $(words 8 224)
    while [ $# -ge 7 ]; do
        within=$((0x$wanted - 0x$3))
        if [ $within -ge 0 ] && [ $within -lt $((0x$5)) ]; then
            words $(((0x$2 + within) / 8)) "$count"
            return
        fi
        shift 7
    done
}

# Only memory tells which kprobe has a function: print the functions that the kprobes at the address $1 call
# after the instruction, as "NAME [MODULE]". Print nothing without CONFIG_PROC_KCORE.
probe_handlers() {
    table=$(awk '$3 == "kprobe_table" { print $1 }' /proc/kallsyms)
    for probe in $(words_at "$table" 64); do # KPROBE_TABLE_SIZE lists
        while [ "${probe:-$NULL}" != $NULL ]; do
            # struct kprobe: hlist (2 words), list (2), nmissed, addr, symbol_name, offset, pre_,
            # post_handler.
            set -- "$1" $(words_at "$probe" 10)
            list=$(printf %x $((0x$probe + 16)))
            probe=$2
            [ "$7" = "$1" ] || continue
            symbol_of "${11}"
            # A kprobe that stands for several (aggregate) has them in its list.
            next=$4
            while [ "${next:-$list}" != "$list" ]; do
                set -- "$1" $(words_at "$next" 8)
                next=$2
                symbol_of "$9"
            done
        done
    done
}

symbol_of() {
    [ "${1:-$NULL}" = $NULL ] || grep "^$1 " /proc/kallsyms | cut -d' ' -f3 | tr '\t' ' ' | grep -v '^aggr_post_handler$'
}

kprobes_on() { # in debugfs: print the addresses of the kprobes that use ftrace's call at the start of $1
    awk -v start="$1+0x" 'index($3, start) == 1 && /\[FTRACE\]/ && !/\[GONE\]|\[DISABLED\]/ { print $1 }' kprobes/list |
        sort -u
}

ftrace_users() { # in tracefs: print the users of ftrace's call at the start of $1
    awk -v name="$1" '/^[^\t]/ { on = $1 == name } on' enabled_functions
}

blocked() { # print who kept the patch from a function, if anyone, as a JSON field. $1: the kernel's messages
    case $1 in *"ftrace handler for function '"*"' (-16)"*) ;; *) return ;; esac
    function=${1#*"ftrace handler for function '"}
    function=${function%%"'"*}
    first_line /proc/sys/kernel/ftrace_enabled
    probes=$(with_mounted debugfs /sys/kernel/debug kprobes/list kprobes_on "$function")
    handlers=$(for place in $probes; do probe_handlers "$place"; done)
    printf ',"blocked":{"function":"%s","ftrace_enabled":%d,"kprobes":%s,"handlers":[%s],"users":[%s]}' \
        "$function" "${value:-1}" "$([ "$probes" ] && echo true || echo false)" \
        "$(printf %s "$handlers" | json lines)" \
        "$(with_mounted tracefs /sys/kernel/tracing enabled_functions ftrace_users "$function" | json lines)"
}

receive() { # write standard input to a file, $file, which is removed on exit
    file=$SCRATCH/hotreload-agent.$$.ko
    trap 'rm -f "$file"' EXIT
    trap 'exit 129' HUP INT TERM PIPE
    if ! error=$( { cat >"$file"; } 2>&1); then
        printf '{"ok":false,"stage":"receive","folder":"%s","error":%s}\n' "$SCRATCH" "$(echo "$error" | json)"
        exit
    fi
}

fits() {
    receive
    echo '{"ok":true}'
}

sections() { # NAME SECTION..: print "section":"address" for the sections of a module
    place=/sys/module/$1/sections
    shift
    comma=
    for section; do
        # Such a file must be read in one go, but the shell's read does not do that.
        printf '%s"%s":"%s"' "$comma" "$section" "$(cat "$place/$section")"
        comma=,
    done
} 2>/dev/null

enabled_patches() { # print "name":enabled for each live patch
    comma=
    for patch in "$LIVE"/*; do
        first_line "$patch/enabled"
        [ "$value" ] || continue
        printf '%s"%s":%d' "$comma" "${patch##*/}" "$value"
        comma=,
    done
}

other_builds() { # MODULE=BUILDID..: list the loaded modules that have another build-id: $others
    others=
    for pair; do
        case $pair in *=*) ;; *) continue ;; esac
        note=/sys/module/${pair%%=*}/notes/.note.gnu.build-id
        [ ! -e "$note" ] || [ "$(build_id_in "$note")" = "${pair#*=}" ] || others="$others${others:+,}\"${pair%%=*}\""
    done
}

keep_debugging() { # in the patch $1, enable each pr_debug that is enabled at the same place elsewhere
    control=/proc/dynamic_debug/control
    [ -e $control ] || return
    # FILE:LINE [MODULE]FUNCTION =FLAGS "FORMAT"
    awk -v patch="[$1]" '
    {
        at = index($2, "]")
        place = $1 " " substr($2, at + 1)
        if (substr($2, 1, at) == patch) mine[place] = 1
        else if ($3 != "=_") flags[place] = $3
    }
    END {
        for (place in mine) if (place in flags) {
            line = place
            sub(/ .*/, "", line)
            file = line
            sub(/:[0-9]+$/, "", file)
            sub(/.*:/, "", line)
            print "module " substr(patch, 2, length(patch) - 2), "file", file, "line", line, flags[place]
        }
    }' $control | while read -r query; do echo "$query" >$control; done
} 2>/dev/null

apply() { # NAME SECONDS [MODULE=BUILDID..] [SECTION..]
    now_cs
    limit=$((cs + $2 * 100))
    receive
    while find_transition; do
        if ! settle "$busy" $limit; then
            printf '{"ok":false,"stage":"busy","patch":"%s","tasks":[%s]}\n' "$busy" "$(tasks "$busy")"
            return
        fi
    done
    other_builds "$@"
    if [ "$others" ]; then
        printf '{"ok":false,"stage":"other","modules":[%s]}\n' "$others"
        return
    fi
    # Our patch would silently replace every other live patch.
    foreign_patches
    if [ "$foreign" ]; then
        printf '{"ok":false,"stage":"foreign","patches":[%s]}\n' "$foreign"
        return
    fi
    canary "apply $1"
    now_us
    start=$us
    if ! error=$(insmod "$file" 2>&1); then
        said=$(kernel_says)
        printf '{"ok":false,"stage":"load","error":%s,"dmesg":%s%s}\n' \
            "$(echo "$error" | json)" "$said" "$(blocked "$said")"
        return
    fi
    now_us
    load=$((us - start))
    case " $* " in *' __dyndbg '*) keep_debugging "$1" ;; esac
    # Loading may take long, too, and is not limited, so start the time again.
    now_cs
    limit=$((cs + $2 * 100))
    if [ ! -e "$LIVE/$1" ]; then
        printf '{"ok":false,"stage":"load","error":"the module is loaded, but is not the live patch %s","dmesg":%s}\n' \
            "$1" "$(kernel_says)"
        return
    fi
    if ! settle "$1" $limit; then
        stuck=$(tasks "$1")
        # The transition may have ended meanwhile; reverting would then revert the whole patch.
        if transition_of "$1"; then
            take_back "$1" 0
            printf '{"ok":false,"stage":"transition","undone":%s,"tasks":[%s]}\n' $undone "$stuck"
            return
        fi
    fi
    now_us
    printf '{"ok":true,"load_ms":%d.%03d,' $((load / 1000)) $((load % 1000))
    us=$((us - start))
    printf '"complete_ms":%d.%03d,"patches":{' $((us / 1000)) $((us % 1000))
    enabled_patches
    printf '},"sections":{'
    name=$1
    shift 2
    while :; do case $1 in *=*) shift ;; *) break ;; esac done
    sections "$name" "$@"
    echo '}}'
}

disable() { # NAME SECONDS
    now_cs
    limit=$((cs + $2 * 100))
    if [ ! -e "$LIVE/$1" ]; then
        echo '{"ok":false,"stage":"absent"}'
        return
    fi
    while find_transition; do
        if ! settle "$busy" $limit; then
            printf '{"ok":false,"stage":"busy","patch":"%s","tasks":[%s]}\n' "$busy" "$(tasks "$busy")"
            return
        fi
    done
    canary "disable $1"
    now_us
    start=$us
    if ! error=$( { echo 0 >"$LIVE/$1/enabled"; } 2>&1); then
        printf '{"ok":false,"stage":"disable","error":%s,"dmesg":%s}\n' "$(echo "$error" | json)" "$(kernel_says)"
        return
    fi
    now_cs
    limit=$((cs + $2 * 100))
    if ! settle "$1" $limit; then
        stuck=$(tasks "$1")
        if transition_of "$1"; then
            take_back "$1" 1
            printf '{"ok":false,"stage":"transition","undone":%s,"tasks":[%s]}\n' $undone "$stuck"
            return
        fi
    fi
    now_us
    us=$((us - start))
    # The next sweep removes the module: something may point into it, or a task may be in it.
    printf '{"ok":true,"complete_ms":%d.%03d}\n' $((us / 1000)) $((us % 1000))
}

replaced() { # list our loaded patch modules that are not live: $names
    names=
    for module in /sys/module/hotreload_*; do
        [ -e "$module/parameters/kick" ] && [ ! -e "$LIVE/${module##*/}" ] || continue
        names="$names ${module##*/}"
    done
}

# A task may sleep in code of a replaced patch that the kernel did not look for on the stack: a function that
# the patch added and that was reached by a jump, or the cold part of a function. Such a module has to wait.
stands_in() {
    grep -qsF "[$1]" /proc/[0-9]*/task/[0-9]*/stack
}

sweep() { # KEEP..
    replaced
    candidates=
    for name in $names; do
        first_line "/sys/module/$name/refcnt"
        case " $* " in *" $name "*) continue ;; esac
        [ "$value" != 0 ] || stands_in "$name" || candidates="$candidates $name"
    done
    # The stack of a running task cannot be read. A task that ran old code has left it by now, or sleeps.
    [ ! "$candidates" ] || sleep 0.1
    removed=
    for name in $candidates; do
        stands_in "$name" || ! rmmod "$name" 2>/dev/null || removed="$removed${removed:+,}\"$name\""
    done
    replaced
    left=
    for name in $names; do left="$left${left:+,}\"$name\""; done
    text=
    for patch in "$LIVE"/*; do
        ! ours "${patch##*/}" || text="$text${text:+,}\"${patch##*/}\":\"$(cat "/sys/module/${patch##*/}/sections/.text")\""
    done 2>/dev/null
    printf '{"ok":true,"removed":[%s],"left":[%s],"text":{%s}}\n' "$removed" "$left" "$text"
}

status_of() { # print one patch as a JSON object
    first_line "$1/enabled"
    printf '{"name":"%s","foreign":%s,"enabled":%s' "${1##*/}" "$(ours "${1##*/}" && echo false || echo true)" \
        "$([ "$value" = 1 ] && echo true || echo false)"
    first_line "$1/transition"
    printf ',"transition":%s,"objects":[' "$([ "$value" = 1 ] && echo true || echo false)"
    comma=
    for object in "$1"/*/; do
        object=${object%/}
        [ -e "$object/patched" ] || [ "${object##*/}" = vmlinux ] || continue
        first_line "$object/patched"
        printf '%s{"name":"%s","patched":%s,"functions":[' "$comma" "${object##*/}" \
            "$([ "$value" = 0 ] && echo false || echo true)"
        between=
        for function in "$object"/*,*/; do
            function=${function%/}
            function=${function##*/}
            [ "$function" = '*,*' ] || printf '%s{"name":"%s","position":%d}' "$between" "${function%,*}" "${function##*,}"
            between=,
        done
        printf ']}'
        comma=,
    done
    printf ']}'
}

status() {
    printf '{"ok":true,"patches":['
    separator=
    for patch in "$LIVE"/*/; do
        [ -e "$patch/enabled" ] || continue
        printf %s "$separator"
        status_of "${patch%/}"
        separator=,
    done
    replaced
    left=
    for name in $names; do left="$left${left:+,}\"$name\""; done
    printf '],"replaced":[%s],"tasks":[%s]}\n' "$left" "$(! find_transition || tasks "$busy")"
}

load() { # NAME [PARAMETERS]
    receive
    canary "load $1"
    # The kernel parses the parameters itself, including quotes.
    if ! error=$(insmod "$file" ${2:+"$2"} 2>&1); then
        printf '{"ok":false,"stage":"load","error":%s,"dmesg":%s}\n' "$(echo "$error" | json)" "$(kernel_says)"
        return
    fi
    echo '{"ok":true}'
}

holders() { # print the modules that use the module $1, as the inside of a JSON array
    comma=
    for holder in "/sys/module/$1/holders"/*; do
        [ ! -e "$holder" ] || printf '%s"%s"' "$comma" "${holder##*/}"
        comma=,
    done
}

# Print which programs may have a module's devices or files open: each program with an open device, or an open
# file of the kernel's. Nothing says which module a file belongs to, so those that every guest has are left
# out.
open_files() {
    ls -l /proc/[0-9]*/fd | awk -v us=$$ '
    function is_ours(pid, line, word) { # this agent, or a program that it has started
        while (pid > 1 && pid != us) {
            file_of = "/proc/" pid "/status"
            pid = 0
            while ((getline line <file_of) > 0) if (split(line, word) == 2 && word[1] == "PPid:") pid = word[2]
            close(file_of)
        }
        return pid == us
    }
    /^\/proc\// { split($1, part, "/"); pid = part[3] }
    / -> \/(dev|proc|sys)\// {
        file = $NF
        if (file ~ /^\/dev\/(null|zero|full|u?random|kmsg|console|ptmx|tty.*|pts\/.*)$/ || file ~ "^/proc/" pid "/") next
        if (is_ours(pid)) next
        if ((getline comm <("/proc/" pid "/comm")) > 0) print comm " (pid " pid "): " file
        close("/proc/" pid "/comm")
    }' | sort -u | head -n 8
} 2>/dev/null

parameters() { # print the readable parameters of the module $1, as the inside of a JSON object
    comma=
    for parameter in "/sys/module/$1/parameters"/*; do
        first_line "$parameter"
        case $value in '' | *[\\\"[:cntrl:]]*) continue ;; esac
        printf '%s"%s":"%s"' "$comma" "${parameter##*/}" "$value"
        comma=,
    done
}

modules() { # NAME..
    printf '{"ok":true,"modules":{'
    separator=
    users=0
    for name; do
        first_line "/sys/module/$name/refcnt"
        [ "$value" ] || continue
        users=$((users + value))
        printf '%s"%s":{"users":%d,"holders":[%s],"parameters":{%s}}' \
            "$separator" "$name" "$value" "$(holders "$name")" "$(parameters "$name")"
        separator=,
    done
    printf '},"open":[%s]}\n' "$([ $users = 0 ] || open_files | json lines)"
}

bound_devices() { # print BUS/DRIVER/DEVICE of each device of the module $1, as the inside of a JSON array
    comma=
    for driver in "/sys/module/$1/drivers"/*; do
        for device in "$driver"/*; do
            [ -L "$device" ] && [ -e "$device/driver" ] || continue
            # The folder of a driver is named BUS:DRIVER there.
            place=${driver##*/}
            printf '%s"%s/%s/%s"' "$comma" "${place%%:*}" "${place#*:}" "${device##*/}"
            comma=,
        done
    done
}

unload() { # NAME
    canary "unload $1"
    bound=$(bound_devices "$1")
    if ! error=$(rmmod "$1" 2>&1); then
        first_line "/sys/module/$1/refcnt"
        printf '{"ok":false,"stage":"unload","users":%d,"holders":[%s],"open":[%s],"error":%s,"dmesg":%s}\n' \
            "${value:--1}" "$(holders "$1")" "$([ "$value" = 0 ] || open_files | json lines)" "$(echo "$error" | json)" "$(kernel_says)"
        return
    fi
    printf '{"ok":true,"bound":[%s]}\n' "$bound"
}

rebind() { # BUS/DRIVER/DEVICE..
    left=
    for place; do
        device=${place##*/}
        driver=${place%/*}
        bus=/sys/bus/${place%%/*}
        # The bus gives its devices to a driver that appears, unless it was told not to.
        [ -e "$bus/devices/$device/driver" ] || echo "$device" >"$bus/drivers/${driver#*/}/bind"
        [ -e "$bus/devices/$device/driver" ] || left="$left${left:+,}\"$place\""
    done 2>/dev/null
    printf '{"ok":true,"left":[%s]}\n' "$left"
}

build_id_in() { # print the build-id in a file with an ELF note: three words, "GNU\0", then the id
    id=
    for byte in $(od -A n -v -t x1 -j 16 "$1"); do id=$id$byte; done
    echo "$id"
}

buildid() { # MODULE
    note=/sys/module/$1/notes/.note.gnu.build-id
    if [ ! -e "$note" ]; then
        echo '{"ok":false,"stage":"absent"}'
        return
    fi
    printf '{"ok":true,"buildid":"%s"}\n' "$(build_id_in "$note")"
}

case $1 in
apply | disable | sweep | status | load | fits | modules | unload | rebind | buildid) "$@" ;;
# For tests: convert standard input to a JSON string.
json) json ;;
*)
    echo "usage: agent apply|disable|sweep|status|load|fits|modules|unload|rebind|buildid ..." >&2
    exit 2
    ;;
esac
