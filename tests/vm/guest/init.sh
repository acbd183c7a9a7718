#!/bin/busybox sh
# First process of the guest, in the initramfs: loads modules, lays a memory overlay over the host's tree, goes there.
B=/bin/busybox
for module in $($B cat /modules/order); do
    $B insmod "/modules/$module" || echo "cannot load $module"
done
. /job/settings
case $SHARE in
virtiofs) $B mount -t virtiofs -o ro host /host ;;
9p) $B mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /host ;;
esac || { echo "cannot mount the host's tree"; $B poweroff -f; }
$B mount -t tmpfs -o size=75% tmpfs /over
$B mkdir /over/upper /over/work
$B mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new ||
    { echo "cannot mount the overlay"; $B poweroff -f; }
$B mount -t proc proc /new/proc
$B mount -t sysfs sysfs /new/sys
$B mount -t devtmpfs dev /new/dev
$B mkdir -p /new/dev/shm
$B mount -t tmpfs shm /new/dev/shm
$B mount -t tmpfs run /new/run
$B mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
$B mkdir /new/run/guest
$B cp -a /bin/busybox /job/. /run.sh /new/run/guest/
exec $B switch_root -c /dev/console /new /run/guest/busybox sh /run/guest/run.sh
