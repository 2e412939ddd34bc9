# SPDX-License-Identifier: MIT
# Tests the attributes of a device and its formats with the driver's own producer and consumer.
# load: v4l2loopback devices=2 max_buffers=4
# host: for t in producer consumer test_dqbuf; do [ ! -f "tests/$t.c" ] || gcc -static -O1 -w -o "$OUT/$t" "tests/$t.c" || true; done
exec 2>&1
of=/sys/devices/virtual/video4linux
show() {
    for dev in "$of"/video*; do
        for name in name format buffers max_openers state; do
            [ -f "$dev/$name" ] && echo "${dev##*/} $name $(cat "$dev/$name" 2>&1 | tr -d '\0')"
        done
    done
}
show
ls /dev/video* /dev/v4l2loopback
dev=/dev/video0
echo 7 >$of/video0/max_openers
echo 'YUYV:64x48@25' >$of/video0/format
show
if [ -x producer ]; then
    timeout 20 ./producer -d $dev -c 3 | sed 's/0x[0-9a-f]*//g' | tail -n 5
    show
    timeout 20 ./producer -d $dev -c 3 -w | sed 's/0x[0-9a-f]*//g' | tail -n 5
    (timeout 8 ./producer -d $dev -c 60 >/dev/null 2>&1 &)
    sleep 1
    [ -x consumer ] && timeout 6 ./consumer -d $dev -c 4 | wc -c
    show
    sleep 7
fi
dd if=$dev of=/dev/null bs=1 count=1 2>&1 | grep -v records
echo 10 >$of/video0/max_openers
echo 1 >/sys/module/v4l2loopback/parameters/debug && cat /sys/module/v4l2loopback/parameters/debug
echo 0 >/sys/module/v4l2loopback/parameters/debug
grep -H . /sys/module/v4l2loopback/parameters/* | sed 's/.*parameters.//' | grep -v card_label
lsmod | awk '$1 == "v4l2loopback" { print $3 }'
