//! An archive with an image of one layer, as `docker save` writes it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host::sha256;
use crate::step::output;

/// Writes the archive of an image with this layer and configuration.
///
/// # Errors
/// A file cannot be read or written.
pub fn save(layer: &Path, config: &Value, archive: &Path) -> Result<()> {
    let folder = archive.parent().context("an archive is in a folder")?;
    let saved = TempDir::new_in(folder).context("making a folder")?;
    let saved = saved.path();
    fs::create_dir(saved.join("layer")).context("making a folder")?;
    let inside = saved.join("layer/layer.tar");
    fs::hard_link(layer, &inside)
        .or_else(|_| fs::copy(layer, &inside).map(drop))
        .context("adding the layer")?;
    let rootfs = json!({ "type": "layers", "diff_ids": [format!("sha256:{}", sha256(layer)?)] });
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": config });
    fs::write(saved.join("config"), config.to_string()).context("writing the configuration")?;
    let name = sha256(&saved.join("config"))? + ".json";
    fs::rename(saved.join("config"), saved.join(&name)).context("naming the configuration")?;
    let manifest = json!([{ "Config": name, "RepoTags": ["image:latest"], "Layers": ["layer/layer.tar"] }]);
    fs::write(saved.join("manifest.json"), manifest.to_string()).context("writing the manifest")?;
    pack(saved, archive)
}

/// Packs what is in a folder, as root's.
///
/// # Errors
/// tar(1) fails.
pub fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(folder)
        .arg("-cf")
        .arg(archive)
        .arg(".");
    output(&mut tar).map(drop)
}
