#!/usr/bin/env bash
# One would guess that a layer in which a name occurs twice gives the later entry, as tar(1) has it: that is how `tar -r`
# replaces a file in an archive.
# containers/storage (podman, buildah, skopeo, CRI-O) refuses the whole image ("duplicates of file paths not supported"), while
# umoci and mkfs.erofs --tar take the later entry; and a hard link that was made to the first one has the first one's content.
# Versions: skopeo 1.18.0, umoci 0.4.7, erofs-utils 1.8.6 of Debian 13; the same in skopeo 1.22.0, umoci 0.6.0, erofs-utils 1.9.4.
# Hurt: builders that append to a layer: their images pass with one tool and cannot be pulled with another.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/storage.bash
. "$(dirname "$0")/lib/storage.bash"
debian "$root" trixie umoci=0.4.7+ds-4+b10 skopeo=1.18.0+ds1-1+b5 erofs-utils=1.8.6-1
python3 - "$root/data" <<'PY'
import sys
from image import image, tar

layer = tar(("a", "file", "first"), ("b", "link", "a"), ("a", "file", "second"))
image(sys.argv[1] + "/image", [layer])
open(sys.argv[1] + "/layer.tar", "wb").write(layer)
PY
inside "$root" umoci --version
inside "$root" skopeo --version
inside "$root" mkfs.erofs --version | sed 1q
mkdir "$root/data/tar"
tar -x -C "$root/data/tar" -f "$root/data/layer.tar"
inside "$root" umoci unpack --image /data/image:t /data/umoci >"$folder/log" 2>&1
inside "$root" mkfs.erofs --tar=f /data/image.erofs /data/layer.tar >"$folder/log" 2>&1
inside "$root" fsck.erofs --extract=/data/erofs /data/image.erofs >"$folder/log" 2>&1
content() { echo "a=$(cat "$1/a") b=$(cat "$1/b")"; }
echo "tar:                $(content "$root/data/tar")"
echo "umoci:              $(content "$root/data/umoci/rootfs")"
echo "mkfs.erofs:         $(content "$root/data/erofs")"
if refusal=$(store "$root" /data/image); then refusal=none; fi
echo "containers/storage: ${refusal##*stderr: }"
for unpacked in tar umoci/rootfs erofs; do [ "$(content "$root/data/$unpacked")" = "a=second b=first" ] || exit 1; done
[[ $refusal == *"duplicates of file paths not supported"* ]]
