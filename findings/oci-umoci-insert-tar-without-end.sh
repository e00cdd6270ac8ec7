#!/usr/bin/env bash
# One would guess that a layer that an image tool writes is a tar archive as POSIX has it: each file's data filled up to a
# block of 512 bytes, and two blocks of zeros at the end.
# `umoci insert` writes layers that end with the last byte of the last file. GNU tar, Python's tarfile and mkfs.erofs --tar
# refuse them; umoci and containers/storage, which read with Go's archive/tar, take them.
# Versions: umoci 0.4.7, skopeo 1.18.0, erofs-utils 1.8.6 of Debian 13; GNU tar 1.34; Python 3.11.
# Hurt: whoever looks into layers with tar(1), converts them with erofs-utils, or writes a reader of layers after POSIX: an
# image that podman runs is a damaged archive to them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/storage.bash
. "$(dirname "$0")/lib/storage.bash"
debian "$root" trixie umoci=0.4.7+ds-4+b10 skopeo=1.18.0+ds1-1+b5 erofs-utils=1.8.6-1
echo 'one line' >"$root/data/file"
python3 -c 'import sys; from image import image, tar; image(sys.argv[1], [tar(("a", "file", "first"))])' "$root/data/image"
inside "$root" umoci --version
inside "$root" skopeo --version
inside "$root" mkfs.erofs --version | sed 1q
tar --version | sed 1q
inside "$root" umoci insert --image /data/image:t /data/file /file
python3 - "$root/data" <<'PY'
import gzip
import json
import sys


def blob(digest):
    with open(f"{sys.argv[1]}/image/blobs/{digest.replace(':', '/')}", "rb") as file:
        return file.read()


with open(f"{sys.argv[1]}/image/index.json", encoding="utf-8") as file:
    manifest = json.loads(blob(json.load(file)["manifests"][0]["digest"]))
layer = gzip.decompress(blob(manifest["layers"][-1]["digest"]))
with open(f"{sys.argv[1]}/layer.tar", "wb") as file:
    file.write(layer)
print(f"the layer has {len(layer)} bytes and ends with {layer[-9:]}")
PY
mkdir "$root/data/tar"
verdicts=()
# verdict NAME COMMAND...: what a reader makes of the layer.
verdict() {
  local name=$1 verdict=takes
  shift
  "$@" >"$folder/log" 2>&1 || verdict=refuses
  echo "$name $verdict it: $(tail -n 1 "$folder/log")"
  verdicts+=("$verdict")
}
verdict "GNU tar" tar -x -C "$root/data/tar" -f "$root/data/layer.tar"
verdict "tarfile" python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).getmembers()' "$root/data/layer.tar"
verdict "mkfs.erofs" inside "$root" mkfs.erofs --tar=f /data/image.erofs /data/layer.tar
verdict "umoci" inside "$root" umoci unpack --image /data/image:t /data/umoci
verdict "containers/storage" store "$root" /data/image
cmp "$root/data/umoci/rootfs/file" "$root/data/file"
[ "${verdicts[*]}" = "refuses refuses refuses takes takes" ]
[ "$(stat -c %s "$root/data/layer.tar")" = 521 ]
