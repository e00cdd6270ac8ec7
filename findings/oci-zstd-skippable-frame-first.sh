#!/usr/bin/env bash
# One would guess that a layer of media type `...tar+zstd` is read as zstd, whatever frames it has: a skippable frame may stand
# anywhere in a zstd stream (RFC 8878 §3.1.2), and zstd(1) takes it so.
# containers/image (podman, buildah, skopeo, CRI-O) goes by the first four bytes and not by the media type: a stream that begins with a
# skippable frame counts as uncompressed, and the pull ends with a digest of the config that "does not match", which points at
# a damaged image. The same frame at the end is fine.
# Versions: skopeo 1.18.0, zstd 1.5.7 of Debian 13; the same in skopeo 1.22.0.
# Hurt: builders that put metadata or padding in front of the data, and those who look for the damage.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/storage.bash
. "$(dirname "$0")/lib/storage.bash"
debian "$root" trixie skopeo=1.18.0+ds1-1+b5 zstd=1.5.7+dfsg-1
python3 - "$root/data" <<'PY'
import struct
import sys
from image import tar

open(sys.argv[1] + "/layer.tar", "wb").write(tar(("file", "file", "text")))
open(sys.argv[1] + "/frame", "wb").write(struct.pack("<II", 0x184D2A50, 4) + b"note")
PY
inside "$root" skopeo --version
inside "$root" zstd --version
inside "$root" zstd -q /data/layer.tar -o /data/layer.zst
cat "$root/data/frame" "$root/data/layer.zst" >"$root/data/first.zst"
cat "$root/data/layer.zst" "$root/data/frame" >"$root/data/last.zst"
for where in first last; do
  inside "$root" zstd -q -t "/data/$where.zst"
  echo "zstd, frame $where: good"
  python3 - "$root/data" "$where" <<'PY'
import sys
from image import image

work, where = sys.argv[1:]
layer = open(f"{work}/layer.tar", "rb").read()
image(f"{work}/{where}", [layer], lambda _: open(f"{work}/{where}.zst", "rb").read(), "zstd")
PY
done
if refusal=$(store "$root" /data/first); then refusal=none; fi
echo "skopeo, frame first: ${refusal##*does }"
store "$root" /data/last
echo "skopeo, frame last: stored"
[[ $refusal == *"does not match config's DiffID"* ]]
