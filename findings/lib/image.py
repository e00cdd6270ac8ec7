"""Images in the OCI layout, made from lists of tar entries. Imported by findings."""

import gzip
import hashlib
import io
import json
import os
import tarfile

KINDS = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE}


def tar(*entries):
    """A tar archive of entries (name, kind, content or target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, value in entries:
            entry = tarfile.TarInfo(name)
            entry.type = KINDS[kind]
            entry.mode = 0o755 if kind == "dir" else 0o644
            data = value.encode() if kind == "file" else b""
            entry.linkname = value if kind in ("symlink", "link") else ""
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zipped(layer):
    """The layer as gzip."""
    return gzip.compress(layer, mtime=0)


def image(folder, layers, compress=zipped, kind="gzip", architecture="amd64"):
    """Writes an image with the tag `t`; each layer is compressed by `compress`."""
    blobs = os.path.join(folder, "blobs", "sha256")
    os.makedirs(blobs)

    def blob(content, media_type):
        digest = hashlib.sha256(content).hexdigest()
        with open(os.path.join(blobs, digest), "wb") as file:
            file.write(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    oci = "application/vnd.oci.image."
    descriptors = [blob(compress(layer), f"{oci}layer.v1.tar+{kind}") for layer in layers]
    digests = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    rootfs = {"type": "layers", "diff_ids": digests}
    config = json.dumps({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = {"schemaVersion": 2, "mediaType": f"{oci}manifest.v1+json", "layers": descriptors}
    manifest["config"] = blob(config, f"{oci}config.v1+json")
    entry = blob(json.dumps(manifest).encode(), f"{oci}manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    index = {"schemaVersion": 2, "mediaType": f"{oci}index.v1+json", "manifests": [entry]}
    with open(os.path.join(folder, "index.json"), "w", encoding="ascii") as file:
        json.dump(index, file)
    with open(os.path.join(folder, "oci-layout"), "w", encoding="ascii") as file:
        file.write('{"imageLayoutVersion":"1.0.0"}')
