//! Images in tar files: `oci-archive`, an OCI layout in a tar, and `docker-archive`, what `docker save` and `podman save`
//! write. Newer ones of Docker's are both, and are read as the first, which has digests of everything.

mod files;

pub use files::TarFiles;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::blob::Section;
use super::digest::Digest;
use super::layout::{self, Files, Layout};
use super::manifest::Image;
use super::reference::{self, Reference};

/// The file of a `docker-archive` that lists its images.
const MANIFEST: &str = "manifest.json";
/// What an archive has of Docker before 1.10, which had no `manifest.json`.
const REPOSITORIES: &str = "repositories";
/// The most names that an error lists.
const SHOWN_MAX: usize = 16;

/// An image's archive.
pub enum Archive {
    /// An OCI layout in a tar.
    Oci(Layout<TarFiles>),
    /// A `docker-archive` without one.
    Docker(TarFiles),
}

/// An image of a `docker-archive`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Archive {
    /// The archive at `path`.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is no archive of images.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file =
            reference::open_regular(path).with_context(|| format!("cannot open {}", path.display()))?;
        let files = TarFiles::index(Arc::new(file))?;
        if files.has("oci-layout") && files.has("index.json") {
            return Layout::open(files).map(Self::Oci);
        }
        if files.has(MANIFEST) {
            return Ok(Self::Docker(files));
        }
        if files.has(REPOSITORIES) {
            bail!("it was written by a Docker before 1.10: save the image again with one of today");
        }
        bail!("it is no archive of an image: it has neither oci-layout nor {MANIFEST}")
    }
}

/// The image of this name in a `docker-archive`, or the only one; and its layers' blobs.
///
/// # Errors
/// There is no such image, there are several, or one is damaged.
pub(super) fn docker_image(files: &TarFiles, tag: Option<&str>) -> anyhow::Result<(Image, Vec<Section>)> {
    let json = layout::document(files, MANIFEST)?;
    let items: Vec<Item> =
        serde_json::from_slice(&json).with_context(|| format!("{MANIFEST} makes no sense"))?;
    let mut chosen = items.iter().filter(|item| tag.is_none_or(|tag| is_named(item, tag)));
    let item = match (chosen.next(), chosen.next(), tag) {
        (Some(only), None, _) | (Some(only), _, Some(_)) => only,
        (Some(_), Some(_), None) => bail!("there are several images: name one of {}", names(&items)),
        (None, _, Some(tag)) => bail!("there is no image '{}', only {}", tag.escape_debug(), names(&items)),
        (None, _, None) => bail!("{MANIFEST} names no image"),
    };
    let config = layout::document(files, &item.config).context("cannot read the image's configuration")?;
    if let Some(digest) = digest_in(&item.config) {
        digest.check(&config).with_context(|| item.config.escape_debug().to_string())?;
    }
    let names = item.layers.iter().flatten();
    let blobs = names.clone().map(|name| files.open(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let layers = names.zip(&blobs).map(|(name, blob)| (digest_in(name), blob.length())).collect();
    Ok((Image::new(None, config, layers)?, blobs))
}

/// The digest that a file's name says it has: `HEX.json` or `blobs/sha256/HEX`.
fn digest_in(name: &str) -> Option<Digest> {
    let hex = match name.strip_prefix("blobs/sha256/") {
        Some(hex) => hex,
        None => name.strip_suffix(".json")?,
    };
    format!("sha256:{hex}").parse().ok()
}

/// Whether a name means this image: as a whole, however much of it is left out, or its tag alone.
fn is_named(item: &Item, wanted: &str) -> bool {
    let wanted_reference = wanted.parse::<Reference>().ok();
    item.repo_tags.iter().flatten().any(|name| {
        let is_same = || wanted_reference.is_some() && name.parse::<Reference>().ok() == wanted_reference;
        let is_tag = || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted);
        let is_end = || name.strip_suffix(wanted).is_some_and(|before| before.ends_with('/'));
        name == wanted || is_same() || is_tag() || is_end()
    })
}

fn names(items: &[Item]) -> String {
    let names: Vec<_> = items.iter().flat_map(|item| item.repo_tags.iter().flatten()).collect();
    let shown: Vec<_> = names.iter().take(SHOWN_MAX).map(|name| name.escape_debug().to_string()).collect();
    match (shown.is_empty(), names.len() - shown.len()) {
        (true, _) => "images without a name".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
pub(super) mod tests;
