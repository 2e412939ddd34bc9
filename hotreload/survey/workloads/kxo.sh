# SPDX-License-Identifier: MIT
# Opens and reads the device, and reads and writes its attribute. The moves of the players are not printed,
# because they differ each time. The host command makes changes that newer kernels need to earlier commits.
# host: for file in $(git ls-files '*.c'); do sed -i 's/= no_llseek/= noop_llseek/' $file; grep -q vmalloc.h $file || sed -i 's/^#include <linux.version.h>$/&\n#include <linux\/vmalloc.h>/' $file; done
exec 2>&1
state=$(ls -d /sys/class/kxo/kxo/kxo_state /sys/devices/virtual/kxo/kxo/kxo_state 2>/dev/null | head -n 1)
[ -n "$state" ] && cat "$state" | tr -d '\0'
ls /dev/kxo
for turn in 1 2; do
    timeout 3 dd if=/dev/kxo of=/tmp/kxo bs=1 count=1 2>/dev/null
    wc -c </tmp/kxo
done
[ -n "$state" ] && for value in '0 1 0' '1 0 0' '1 1 1' '1 1 0'; do
    echo "$value" >"$state"
    cat "$state" | tr -d '\0'
done
[ -c /dev/kxo ] && echo x >/dev/kxo  # otherwise a file of that name would be created
dd if=/dev/kxo of=/dev/null bs=1 count=0
rm -f /tmp/kxo
lsmod | awk '$1 == "kxo" { print $3 }'
