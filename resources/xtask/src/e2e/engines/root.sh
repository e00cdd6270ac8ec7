# Makes a root folder with engines of containers, on a file system of its own in memory, goes there, and stays until it is ended.
# It runs as the first process of new mount and PID namespaces, which end with it, and so does all that it has mounted.
set -eu
root=$1 archive=$2 kite=$3 kernel=$4 modules=$5
read -r pid _ </proc/self/stat # as the namespace around this one has it
mount -t tmpfs -o mode=755 engines "$root"
tar -C "$root" --numeric-owner -xpf "$archive"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 run "$root/run"
# An ordinary user's, too, and the host's own as it is.
mknod -m 666 "$root/kvm" c 10 232
mount --bind "$root/kvm" "$root/dev/kvm"
release=$(basename "$modules")
mkdir -p "$root/boot" "$root/usr/lib/modules/$release" "$root/usr/local/bin" "$root/etc/containers" "$root/host"
touch "$root/boot/vmlinuz-$release" "$root/usr/local/bin/kite-oci"
mount --bind "$kernel" "$root/boot/vmlinuz-$release"
mount --bind "$modules" "$root/usr/lib/modules/$release"
mount --bind "$kite" "$root/usr/local/bin/kite-oci"
ln -s kite-oci "$root/usr/local/bin/kite"
cd "$root"
pivot_root . host
umount -l /host
mount --make-rshared /
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cat >/etc/containers/containers.conf <<'CONF'
[containers]
netns = "none"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
kite = ["/usr/local/bin/kite-oci"]
CONF
cat >/etc/containers/storage.conf <<'CONF'
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
CONF
# An image of one program, as all engines take it.
mkdir -p /image/bin /image/etc /image/root /image/srv
mkdir -m 1777 /image/tmp
cp /bin/busybox /image/bin
chroot /image /bin/busybox --install -s /bin
printf '%s\n' root:x:0:0:root:/root:/bin/sh ann:x:1000:1000:Ann:/srv:/bin/sh >/image/etc/passwd
printf '%s\n' root:x:0: ann:x:1000: >/image/etc/group
echo data >/image/data
tar -C /image -c . | podman --log-level=error import - localhost/tiny:latest >/dev/null 2>&1
podman save --quiet --output /tiny.tar localhost/tiny:latest
install -d -o ann -g ann -m 700 /run/user/1000
echo "$pid"
while :; do
    sleep 1000 &
    wait # and so take leave of processes whose parents have ended
done
