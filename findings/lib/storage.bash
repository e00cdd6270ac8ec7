# Images stored by containers/storage, as podman, buildah, skopeo and CRI-O do. Sourced by findings.
# shellcheck source=findings/lib/debian.bash
. "$(dirname "${BASH_SOURCE[0]}")/debian.bash"

# store ROOT IMAGE: skopeo of the root folder ROOT stores an image, whose path is inside ROOT, into an empty store; the last
# line of its errors goes to standard output.
store() {
  mkdir -p "$1/etc/containers" "$1/var/tmp"
  rm -rf "$1/data/storage"
  echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$1/etc/containers/policy.json"
  inside "$1" skopeo copy -q "oci:$2:t" 'containers-storage:[vfs@/data/storage+/run/storage]finding:t' 2>"$1/data/errors" || {
    tail -n 1 "$1/data/errors"
    return 1
  }
}

# stored ROOT: the folder of the whole of what `store` has stored.
stored() {
  python3 - "$1/data/storage" <<'PY'
import json
import sys

layers = json.load(open(f"{sys.argv[1]}/vfs-layers/layers.json", encoding="utf-8"))
parents = {layer.get("parent") for layer in layers}
print(sys.argv[1] + "/vfs/dir/" + next(layer["id"] for layer in layers if layer["id"] not in parents))
PY
}
