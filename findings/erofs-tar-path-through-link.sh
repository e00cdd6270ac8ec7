#!/usr/bin/env bash
# One would guess that `mkfs.erofs --tar` takes every archive that tar(1) unpacks and every layer of a container image.
# It has no file system to follow links in, only the tree that it builds, so it refuses the whole archive where an entry's path goes
# through a symbolic link that the archive has made (`bin -> usr/bin`, then `bin/tool`), and where a hard link names a file
# of a lower layer. The message names neither the entry nor the cause: "Could not format the device", and a bare errno, which
# has changed between versions.
# Versions: erofs-utils 1.8.6 (Debian 13); 1.9.4 refuses the same, with another errno for the first.
# Hurt: those who turn a container image's layers into EROFS images one by one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
debian "$root" trixie erofs-utils=1.8.6-1
python3 - "$root/data" <<'PY'
import sys
from image import tar

folder = sys.argv[1]
usr = [("usr", "dir", ""), ("usr/bin", "dir", "")]
through = tar(*usr, ("bin", "symlink", "usr/bin"), ("bin/tool", "file", "tool"))
open(folder + "/plain.tar", "wb").write(tar(*usr, ("bin", "symlink", "usr/bin"), ("usr/bin/tool", "file", "tool")))
open(folder + "/through.tar", "wb").write(through)
open(folder + "/lower.tar", "wb").write(tar(("file", "file", "text")))
open(folder + "/upper.tar", "wb").write(tar(("name", "link", "file")))
PY
mkdir "$root/data/through" "$root/data/layers"
tar -x -C "$root/data/through" -f "$root/data/through.tar"
echo "tar, through a link: $(cat "$root/data/through/usr/bin/tool")"
for layer in lower upper; do tar -x -C "$root/data/layers" -f "$root/data/$layer.tar"; done
echo "tar, hard link to a lower layer's file: $(cat "$root/data/layers/name")"
inside "$root" mkfs.erofs --version | sed 1q
make() { inside "$root" mkfs.erofs --tar=f --aufs "/data/$1.erofs" "/data/$1.tar" 2>&1; }
make plain >"$folder/log"
echo "mkfs.erofs, plain paths: made"
failed=0
for archive in through upper; do
  if message=$(make "$archive"); then message=made; else failed=$((failed + 1)); fi
  echo "mkfs.erofs, $archive: $(grep -o 'Could not.*' <<<"$message")"
done
[ "$failed" = 2 ]
