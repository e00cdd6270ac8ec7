#!/usr/bin/env bash
# One would guess that `RUNTIME exec CONTAINER PROGRAM` ends with 127 where there is no such program, and that OCI runtimes agree.
# runc and crun 1.21 say 255, and crun 1.28 says 1, which is what a program that ran and failed says, too: by the status alone
# nothing tells a test that failed from one that never ran. Pausing a paused container is 1 with runc and 0 with crun;
# starting a running one names its state with runc, and a file that does not exist with crun. Engines go by the wording instead.
# Versions: runc 1.1.15 and crun 1.21 of Debian 13, shown here; runc 1.3.6 does the same as 1.1.15.
# Hurt: scripts and shims that call a runtime themselves, and those who write another runtime.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
debian "$root" trixie runc=1.1.15+ds1-2+b4 crun=1.21-1 busybox-static=1:1.37.0-6+b9 sed
mkdir -p "$root/data/rootfs"/{bin,proc,dev,sys,tmp}
busybox=$(find "$root/usr" -name busybox -type f -perm -100 | sed 1q)
for program in busybox sh sleep true; do cp "$busybox" "$root/data/rootfs/bin/$program"; done
for program in sh mkdir mount cat cut tail; do ln -sf "/${busybox#"$root"/}" "$root/usr/bin/$program"; done
cat >"$root/data/try" <<'TRY'
# Control groups as the machine has them: of version 2 alone, or some controllers of version 1.
if [ "$VERSION" = 2 ]; then
  mount -t sysfs sys /sys; mount -t cgroup2 group /sys/fs/cgroup
else
  mount -t sysfs sys /sys; mount -t tmpfs groups /sys/fs/cgroup
  for group in memory pids freezer cpu devices; do
    mkdir /sys/fs/cgroup/$group; mount -t cgroup -o $group group /sys/fs/cgroup/$group
  done
fi
mount -t tmpfs run /run
cd /data
runc spec
sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"sleep","60"/' config.json
status() { name=$1; shift; "$@" >/dev/null 2>/run/errors </dev/null; echo "$name: $? ($(tail -n 1 /run/errors | cut -c 1-150))"; }
for runtime in runc crun; do
  $runtime --version | sed 1q
  $runtime create finding >/dev/null 2>&1 </dev/null && $runtime start finding || exit 2
  status "$runtime exec true" $runtime exec finding true
  status "$runtime exec failing" $runtime exec finding sh -c 'exit 1'
  status "$runtime exec missing" $runtime exec finding /missing
  status "$runtime start again" $runtime start finding
  status "$runtime pause" $runtime pause finding
  status "$runtime pause again" $runtime pause finding
  $runtime delete --force finding
done
TRY
version=1
[ -e /sys/fs/cgroup/cgroup.controllers ] && version=2
VERSION=$version inside "$root" sh /data/try | tee "$folder/output"
is() { grep -q "^$1: $2 " "$folder/output"; }
is 'runc exec failing' 1 && is 'crun exec failing' 1 && is 'runc exec missing' 255 && is 'crun exec missing' 255 &&
  is 'runc pause again' 1 && is 'crun pause again' 0
