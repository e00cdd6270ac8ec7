#!/usr/bin/env bash
# One would guess that `mkfs.erofs --tar`, where it ends with 0 and without a warning, has made the files that tar(1) would
# unpack.
# A sparse file of the archive (`tar --sparse`, as backups of disk images have them) is not among them. Of GNU's format the
# file is missing. Of the POSIX one, where a plain file has the data without its holes, it gets that file: under the name
# `GNUSparseFile.NUMBER/NAME`, with a table of offsets and then the data as its content. umoci reads the POSIX one rightly
# and refuses GNU's; so an image with such a layer has the file with one tool, and as EROFS it has something else.
# Versions: erofs-utils 1.8.6, umoci 0.4.7 of Debian 13, GNU tar 1.34; erofs-utils 1.9.4 does the same.
# Hurt: those who turn archives or layers with disk images or databases into EROFS: nothing says that they are gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
debian "$root" trixie erofs-utils=1.8.6-1 umoci=0.4.7+ds-4+b10
tar --version | sed 1q
inside "$root" mkfs.erofs --version | sed 1q
inside "$root" umoci --version
mkdir "$folder/source"
truncate -s 64K "$folder/source/disk"
echo end >>"$folder/source/disk"
echo text >"$folder/source/plain"
# what NAME FOLDER: the files that a tool has made.
what() { echo "$1: $(cd "$2" && find . -type f -printf '%P, %s bytes\n' | sed 's/[0-9]*\/disk/NUMBER\/disk/' | sort | paste -sd ';')"; }
for format in gnu posix; do
  archive=$root/data/$format.tar
  tar -c --sparse --hole-detection=raw --format="$format" -C "$folder/source" -f "$archive" disk plain
  mkdir "$root/data/$format"
  tar -x -C "$root/data/$format" -f "$archive"
  cmp "$folder/source/disk" "$root/data/$format/disk"
  what "$format: tar" "$root/data/$format"
  inside "$root" mkfs.erofs --tar=f "/data/$format.erofs" "/data/$format.tar" >"$folder/log" 2>&1
  (! grep -iE 'warn|error|ignor|sparse ' "$folder/log")
  inside "$root" fsck.erofs "--extract=/data/$format-erofs" "/data/$format.erofs" >"$folder/log" 2>&1
  what "$format: mkfs.erofs" "$root/data/$format-erofs"
  python3 - "$root/data/$format" <<'PY'
import sys
from image import image

image(sys.argv[1] + "-image", [open(sys.argv[1] + ".tar", "rb").read()])
PY
  if inside "$root" umoci unpack --image "/data/$format-image:t" "/data/$format-umoci" >"$folder/log" 2>&1; then
    cmp "$folder/source/disk" "$root/data/$format-umoci/rootfs/disk"
    what "$format: umoci" "$root/data/$format-umoci/rootfs"
  else
    echo "$format: umoci: $(grep -o 'unknown typeflag.*' "$folder/log")"
  fi
done | tee "$folder/output"
diff - "$folder/output" <<'END'
gnu: tar: disk, 65540 bytes;plain, 5 bytes
gnu: mkfs.erofs: plain, 5 bytes
gnu: umoci: unknown typeflag '\x53'
posix: tar: disk, 65540 bytes;plain, 5 bytes
posix: mkfs.erofs: GNUSparseFile.NUMBER/disk, 516 bytes;plain, 5 bytes
posix: umoci: disk, 65540 bytes;plain, 5 bytes
END
