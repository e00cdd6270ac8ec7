#!/usr/bin/env bash
# One would guess that a layout whose index.json has a tag twice, once for each of two platforms, gives the image of the
# platform that one asks for: index.json is an image index, and its entries name their platforms for this choice.
# skopeo (containers/image, so podman, buildah and CRI-O, too) takes the first entry of that name and does not look at the
# platform, not even with --override-arch, and `copy --all` leaves the second one behind; all of it ends with 0. umoci
# refuses the tag as ambiguous.
# Versions: skopeo 1.18.0, umoci 0.4.7 of Debian 13; the same in skopeo 1.22.0 and umoci 0.6.0.
# Hurt: builders that write one entry for each platform, and those who run such an image: by the order of entries they get
# another processor's programs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
debian "$root" trixie umoci=0.4.7+ds-4+b10 skopeo=1.18.0+ds1-1+b5
python3 - "$root/data" <<'PY'
import json
import os
import shutil
import sys
from image import image, tar

work = sys.argv[1]
entries = []
for architecture in ("arm64", "amd64"):
    one = f"{work}/{architecture}"
    image(one, [tar(("architecture", "file", architecture))], architecture=architecture)
    with open(f"{one}/index.json", encoding="ascii") as file:
        entries += json.load(file)["manifests"]
    entries[-1]["platform"] = {"os": "linux", "architecture": architecture}
    shutil.copytree(one, f"{work}/both", dirs_exist_ok=True)
with open(f"{work}/both/index.json", "w", encoding="ascii") as file:
    json.dump({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}, file)
PY
mkdir -p "$root/etc/containers" "$root/var/tmp"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$root/etc/containers/policy.json"
inside "$root" skopeo --version
inside "$root" umoci --version
for wanted in arm64 amd64; do
  inside "$root" skopeo --override-arch "$wanted" inspect --config oci:/data/both:t >"$folder/config"
  echo "skopeo, $wanted wanted: $(grep -o '"architecture": "[^"]*"' "$folder/config")"
done | tee "$folder/output"
inside "$root" skopeo copy -q --all oci:/data/both:t oci:/data/copy:t
echo "skopeo copy --all: $(grep -o '"digest"' "$root/data/copy/index.json" | wc -l) of 2 images" | tee -a "$folder/output"
if inside "$root" umoci unpack --image /data/both:t /data/umoci >"$folder/log" 2>&1; then exit 1; fi
echo "umoci: $(grep -o 'tag is .*[^ ]' "$folder/log")" | tee -a "$folder/output"
diff - "$folder/output" <<'END'
skopeo, arm64 wanted: "architecture": "arm64"
skopeo, amd64 wanted: "architecture": "arm64"
skopeo copy --all: 1 of 2 images
umoci: tag is ambiguous: t
END
