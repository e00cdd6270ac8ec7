//! OCI layouts made by hand (OCI image specification, Image Layout).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::host::sha256;

/// A layer: the archive, and the blob that it is in.
pub struct Layer {
    archive: Vec<u8>,
    blob: Vec<u8>,
    kind: &'static str,
}

impl Layer {
    /// An archive in a blob that its media type says to be `kind`, such as `tar+zstd`.
    pub fn new(archive: Vec<u8>, blob: Vec<u8>, kind: &'static str) -> Self {
        Self { archive, blob, kind }
    }

    /// An archive as gzip.
    pub fn gzip(archive: Vec<u8>) -> Result<Self> {
        let blob = gzip(&archive)?;
        Ok(Self::new(archive, blob, "tar+gzip"))
    }
}

/// Bytes as gzip.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).context("compressing")?;
    encoder.finish().context("compressing")
}

/// The SHA-256 of bytes, as images name it.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer whose archive and blob are files.
pub struct Stored<'a> {
    pub archive: PathBuf,
    pub blob: PathBuf,
    /// What the media type of the blob says.
    pub kind: &'a str,
}

/// Writes a layout with an image of these layers, which has the tag `t`.
pub fn write(folder: PathBuf, layers: &[Layer]) -> Result<PathBuf> {
    let blobs = make_blobs(&folder)?;
    let described = layers.iter().map(|layer| blob(&blobs, &layer.blob, &media_type(layer.kind)));
    let described = described.collect::<Result<Vec<_>>>()?;
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(&layer.archive)).collect();
    write_documents(folder, &blobs, &described, &diff_ids)
}

/// The same with layers that are too large for memory; their blobs are moved.
pub fn write_stored(folder: PathBuf, layers: &[Stored<'_>]) -> Result<PathBuf> {
    let blobs = make_blobs(&folder)?;
    let (mut described, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        let hex = sha256(&layer.blob)?;
        diff_ids.push(format!("sha256:{}", sha256(&layer.archive)?));
        let size = fs::metadata(&layer.blob).context("looking at a blob")?.len();
        fs::rename(&layer.blob, blobs.join(&hex)).context("moving a blob")?;
        let digest = format!("sha256:{hex}");
        described.push(json!({ "mediaType": media_type(layer.kind), "digest": digest, "size": size }));
    }
    write_documents(folder, &blobs, &described, &diff_ids)
}

fn make_blobs(folder: &Path) -> Result<PathBuf> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("making a layout")?;
    Ok(blobs)
}

fn media_type(kind: &str) -> String {
    format!("application/vnd.oci.image.layer.v1.{kind}")
}

fn write_documents(
    folder: PathBuf,
    blobs: &Path,
    described: &[Value],
    diff_ids: &[String],
) -> Result<PathBuf> {
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = document(blobs, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": described });
    let mut manifest = document(blobs, &manifest, manifest_type)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "t" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(folder.join("index.json"), index.to_string()).context("writing a layout")?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("writing a layout")?;
    Ok(folder)
}

fn document(blobs: &Path, document: &Value, media_type: &str) -> Result<Value> {
    blob(blobs, document.to_string().as_bytes(), media_type)
}

fn blob(blobs: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let digest = digest(bytes);
    let name = digest.trim_start_matches("sha256:");
    fs::write(blobs.join(name), bytes).context("writing a blob")?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}
