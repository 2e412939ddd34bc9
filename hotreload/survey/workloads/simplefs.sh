# SPDX-License-Identifier: MIT
# Files, directories and their limits on a file system of simplefs, twice mounted.
# load: loop
# load: simplefs
# host: gcc -std=gnu99 -static -O1 -w -o "$OUT/mkfs" mkfs.c
exec 2>&1
umount /tmp/mnt 2>/dev/null
mkdir -p /tmp/mnt
dd if=/dev/zero of=/tmp/img bs=1M count=60 2>/dev/null
./mkfs /tmp/img >/dev/null || echo mkfs failed
losetup -d /dev/loop3 2>/dev/null
losetup /dev/loop3 /tmp/img
mount -t simplefs /dev/loop3 /tmp/mnt || { losetup -d /dev/loop3; exit; }

show() {
    find . | sort | while read -r name; do stat -c '%n %F %s %h %a' "$name"; done
    df -k . | awk 'NR == 2 { print $2, $3, $4 }'
    stat -f -c '%t %s %b %f %a %c %d %l' .
}

cd /tmp/mnt
echo hello >one
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "text $n" >"file$n"; done
mkdir -p dir/sub
echo deep >dir/sub/deep
ln one linked
ln -s one symbolic
ln -s "$(yes x | head -c 100 | tr -d '\n')" long
chmod 640 one
cat one linked symbolic dir/sub/deep
mkdir dir
rmdir dir
rm nothing
show
mv file1 moved
mv moved dir/moved
mv file2 file3
mv dir/sub other
touch "$(yes n | head -c 510 | tr -d '\n')"
dd if=/dev/zero bs=4k count=300 2>/dev/null | tr '\0' a >big
md5sum big
timeout 5 sh -c 'echo more >>one'
truncate -s 10000 big
md5sum big
truncate -s 20000 big
md5sum big
rm -f file4 file5
rm -r dir
show
cd /
umount /tmp/mnt
mount -t simplefs /dev/loop3 /tmp/mnt
cd /tmp/mnt
cat other/deep file3 file12
md5sum big
for n in $(seq 60); do : >"many$n"; done
ls | wc -l
rm many*
show
cd /
umount /tmp/mnt
losetup -d /dev/loop3
rm -f /tmp/img
