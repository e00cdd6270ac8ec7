# Sets up a Debian that was just installed into the folder "$1": a network by DHCP, a root who can log in on any
# console, and nothing that works in the background while something else is measured.
set -eu
root=$1
echo debian >"$root/etc/hostname"
echo '127.0.0.1 localhost debian' >"$root/etc/hosts"
# A system that knows itself asks nothing at its first boot.
echo 6b69746500000000000000000000cafe >"$root/etc/machine-id"
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
echo 'root:kite' | chroot "$root" chpasswd
cat >"$root/etc/systemd/network/80-dhcp.network" <<END
[Match]
Type=ether

[Network]
DHCP=yes
END
systemctl --root="$root" --quiet enable systemd-networkd.service
systemctl --root="$root" --quiet disable systemd-networkd-wait-online.service
systemctl --root="$root" --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-timesyncd.service
