# SPDX-License-Identifier: MIT
"""Code that runs all the time while it is patched, and while the patch is taken back."""

from __future__ import annotations

from tests.guest.kernel.conftest import Kernel

RECEIVE = "static void receive_buf(struct virtnet_info *vi,"
RECEIVED = """\
	if (unlikely(len < vi->hdr_len + ETH_HLEN)) {
		pr_debug("%s: short packet %i\\n", dev->name, len);
"""
WRITE = """\
ext4_file_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
"""


def _told_when(counter: str, times: int) -> str:
    return f'\tif (++{counter} == {times})\n\t\tpr_info("{times} {counter}\\n");\n'


def test_a_network_driver_s_receive_path_is_patched_under_traffic(kernel: Kernel) -> None:
    # As fast as the answers come: some ten thousand a second.
    kernel.run("ping -c 100000000 -A -q 10.0.2.2 >/tmp/pinged 2>&1 & echo $! >/tmp/pinger")
    mark = kernel.mark()
    try:
        kernel.edit(
            {
                "drivers/net/virtio_net.c": (
                    (RECEIVE, f"static int received;\n\n{RECEIVE}"),
                    (RECEIVED, _told_when("received", 2000) + RECEIVED),
                )
            }
        )
        kernel.wait_for("dmesg", "2000 received")
        kernel.restore()
    finally:
        kernel.run("kill -INT $(cat /tmp/pinger)")
    told = kernel.wait_for("cat /tmp/pinged", "packets transmitted")
    assert " 0% packet loss" in told
    assert int(told.partition(" packets transmitted")[0].split()[-1]) > 2000
    assert "Call Trace" not in kernel.log_since(mark)


def test_a_file_system_is_patched_while_it_is_written_to(kernel: Kernel) -> None:
    kernel.run("dd if=/dev/zero of=/tmp/disk bs=1M count=16 && mke2fs -F /tmp/disk")
    kernel.run("losetup /dev/loop0 /tmp/disk && mkdir -p /disk && mount -t ext4 /dev/loop0 /disk")
    kernel.run("dd if=/dev/urandom of=/tmp/in bs=64k count=32")
    # 5 is 1, to drop the page cache, and 4, to say nothing of it.
    write = "dd if=/tmp/in of=/disk/out bs=4k conv=fsync; echo 5 >/proc/sys/vm/drop_caches"
    kernel.run(
        f"(while [ ! -e /tmp/enough ]; do {write}; md5sum /disk/out >>/tmp/sums; done;"
        " umount /disk; touch /tmp/ended) >/dev/null 2>&1 &"
    )
    rounds = "cat /tmp/sums 2>/dev/null | wc -l"
    try:
        kernel.wait_for("touch /tmp/sums; cat /tmp/sums", "/disk/out")
        kernel.edit(
            {"fs/ext4/file.c": (WRITE, f"{WRITE}\tstatic int written;\n\n{_told_when('written', 600)}")}
        )
        kernel.wait_for("dmesg", "600 written")
        kernel.restore()
        after = int(kernel.run(rounds)) + 2
        kernel.wait_for(f"test $({rounds}) -lt {after} || echo more", "more")
    finally:
        kernel.run("touch /tmp/enough")
        kernel.wait_for("ls /tmp", "ended")
    sums = {line.split()[0] for line in kernel.run("cat /tmp/sums").splitlines()}
    assert sums == {kernel.run("md5sum /tmp/in").split()[0]}
    kernel.run("losetup -d /dev/loop0 && rm /tmp/disk /tmp/enough /tmp/ended /tmp/sums")
