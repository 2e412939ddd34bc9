#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The load of the guest while patches are loaded and undone: files, network and processes, each in a loop of
# its own. Each finished round adds a line to rounds.NAME, each failed one a line to the file `wrong`.

mkdir /tmp/load /disk && cd /tmp/load || exit
dd if=/dev/urandom of=in bs=64k count=8
dd if=/dev/zero of=image bs=1M count=16
mke2fs -F image
losetup /dev/loop0 image
mount -t ext4 /dev/loop0 /disk || echo "no ext4 file system on /dev/loop0" >>wrong
nc -ll -p 4000 -e cat in &

files() { # on ext4 below a loop device, and in memory
    for place in /disk /tmp/load; do
        mkdir $place/folder
        cp in $place/folder/one
        mv $place/folder/one $place/two
        dd if=$place/two of=$place/three bs=4k conv=fsync
        # 1 drops the page cache, so that the files are read from the disk; 4 suppresses the log message.
        echo 5 >/proc/sys/vm/drop_caches
        cmp in $place/three && rm $place/two $place/three && rmdir $place/folder || return 1
    done
}

network() { # ICMP on both protocols and on the network card, TCP
    ping -c 1 -w 10 127.0.0.1 && ping -c 1 -w 10 ::1 && ping -c 1 -w 10 10.0.2.2 || return 1
    nc 127.0.0.1 4000 </dev/null >received && cmp in received
}

processes() { # started, waited for, connected by a pipe, listed; one in a namespace of its own
    for _ in 1 2 3 4; do
        (exec true) &
    done
    wait
    ps >/dev/null
    find /proc/self /sys/kernel/livepatch >/dev/null
    unshare -m true || return 1
    [ "$(yes | head -c 100000 | wc -c)" = 100000 ]
}

again_and_again() {
    while :; do
        if said=$($1 2>&1); then echo >>"rounds.$1"; else echo "$1: $said" >>wrong; fi
        usleep 20000
    done
}

for each in files network processes; do
    again_and_again $each &
done
