# SPDX-License-Identifier: MIT
# Tests files, directories and their limits on simplefs. Each part makes a file system and mounts it twice.
# load: loop
# load: simplefs
# host: gcc -std=gnu99 -static -O1 -w -o "$OUT/mkfs" mkfs.c
exec 2>&1
umount /tmp/mnt 2>/dev/null
losetup -d /dev/loop3 2>/dev/null
mkdir -p /tmp/mnt
dd if=/dev/zero of=/tmp/img bs=1M count=60 2>/dev/null
./mkfs /tmp/img >/dev/null || echo mkfs failed
# The kernel may still be detaching the file of the previous part.
for n in $(seq 50); do losetup /dev/loop3 /tmp/img 2>/dev/null && break; sleep 0.2; done
mount -t simplefs /dev/loop3 /tmp/mnt || { losetup -d /dev/loop3; exit; }
cd /tmp/mnt

show() {
    find . | sort | while read -r name; do stat -c '%n %F %s %h %a' "$name"; done
    df -k . | awk 'NR == 2 { print $2, $3, $4 }'
    stat -f -c '%t %s %b %f %a %c %d %l' .
}

again() {
    cd /
    umount /tmp/mnt
    mount -t simplefs /dev/loop3 /tmp/mnt
    cd /tmp/mnt
}

done_with_it() {
    cd /
    umount /tmp/mnt
    losetup -d /dev/loop3
    rm -f /tmp/img
}

# part: files and directories
echo hello >one
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "text $n" >"file$n"; done
mkdir -p dir/sub
echo deep >dir/sub/deep
chmod 640 one
cat one dir/sub/deep
mkdir dir
rm nothing
touch "$(yes n | head -c 510 | tr -d '\n')"
show
again
cat one dir/sub/deep file12
for n in $(seq 60); do : >"many$n"; done
ls | wc -l
show
done_with_it

# part: contents
dd if=/dev/zero bs=4k count=300 2>/dev/null | tr '\0' a >big
md5sum big
truncate -s 10000 big
md5sum big
truncate -s 20000 big
md5sum big
show
again
md5sum big
done_with_it

# part: appending
echo hello >one
timeout 5 sh -c 'echo more >>one'
cat one
done_with_it

# part: links
echo hello >one
ln one linked
ln -s one symbolic
ln -s "$(yes x | head -c 100 | tr -d '\n')" long
cat one linked symbolic
show
again
cat linked symbolic
done_with_it

# part: renaming
for n in 1 2 3; do echo "text $n" >"file$n"; done
mkdir -p dir/sub
mv file1 moved
mv moved dir/moved
mv file2 file3
mv dir/sub other
show
again
cat dir/moved file3
done_with_it

# part: removing
for n in 1 2 3 4 5 6; do echo "text $n" >"file$n"; done
mkdir -p dir/sub
rm -f file4 file5
rmdir dir/sub
rm -r dir
show
again
show
for n in $(seq 60); do : >"many$n"; done
rm many*
show
done_with_it
