#!/usr/bin/env bash
# One would guess that an image's layer means one set of files, whichever tool unpacks it.
# A layer that brings a file and, behind it in the same archive, a whiteout of the same name (as tools do that append to a
# layer's tar) means two: the image specification says that a whiteout hides what lower layers have, and so umoci keeps the file,
# while containers/storage (podman, buildah, skopeo, CRI-O) removes it. Both end with 0 and without a warning.
# Versions: umoci 0.4.7, skopeo 1.18.0 (containers/storage) of Debian 13; the same in umoci 0.6.0 and skopeo 1.22.0.
# Hurt: those who test an image with one tool and ship it for the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/storage.bash
. "$(dirname "$0")/lib/storage.bash"
debian "$root" trixie umoci=0.4.7+ds-4+b10 skopeo=1.18.0+ds1-1+b5
python3 - "$root/data/image" <<'PY'
import sys
from image import image, tar

lower = tar(("other", "file", "other"))
image(sys.argv[1], [lower, tar(("file", "file", "text"), (".wh.file", "file", ""))])
PY
inside "$root" umoci --version
inside "$root" skopeo --version
inside "$root" umoci unpack --image /data/image:t /data/umoci >"$folder/log" 2>&1
store "$root" /data/image
by_umoci=$(cd "$root/data/umoci/rootfs" && echo *)
by_storage=$(cd "$(stored "$root")" && echo *)
echo "umoci unpacks:              $by_umoci"
echo "containers/storage unpacks: $by_storage"
[ "$by_umoci" = "file other" ] && [ "$by_storage" = "other" ]
