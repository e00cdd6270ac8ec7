//! Manifests and indexes (OCI image specification; Docker's image manifest, version 2, schema 2), and the way from what a
//! name leads to down to one image for this platform.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, anyhow, bail};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::config::ImageConfig;
use super::digest::Digest;

/// The largest manifest, index or configuration, in bytes, as registries have it.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// How many indexes may lead to an image, each naming the next.
const DEPTH_MAX: usize = 4;
/// The most layers that an image may have. Container engines stop at 127.
const LAYERS_MAX: usize = 512;

/// The media types of indexes.
pub const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// The media types of manifests.
pub const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// What the media types of layers begin with; behind it comes the compression, or nothing.
const LAYER_TYPES: [&str; 2] =
    ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
/// The same of layers that are not in the registry, or not to be copied from it.
const FOREIGN_TYPES: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign."];

/// What an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    /// The operating system: `linux`.
    #[serde(default)]
    pub os: String,
    /// The processor: `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// The level of the processor: `v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// How well this machine runs images for it: the less the better. `None` if it cannot.
    fn rank(&self) -> Option<usize> {
        if self.os != "linux" || self.architecture != "amd64" {
            return None;
        }
        let levels = [
            true,
            is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt"),
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2"),
            is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl"),
        ];
        // The same image on every machine, where there is one that every machine runs.
        let level = match self.variant.as_deref().unwrap_or_default() {
            "" | "v1" => 0,
            variant => variant.strip_prefix('v')?.parse::<usize>().ok()?.checked_sub(1)?,
        };
        levels.get(level).copied().unwrap_or(false).then_some(level)
    }

    /// Checks that a configuration's platform is this machine's. Tools of old leave it out.
    fn check(&self) -> anyhow::Result<()> {
        let is_said = !self.os.is_empty() || !self.architecture.is_empty();
        if is_said && self.rank().is_none() {
            bail!("the image is for {self}, and kite's machines are linux/amd64");
        }
        Ok(())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (os, architecture) = (self.os.escape_debug(), self.architecture.escape_debug());
        write!(formatter, "{os}/{architecture}")?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{}", variant.escape_debug()),
            None => Ok(()),
        }
    }
}

/// What points to content (OCI image specification, Content Descriptors).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: Option<String>,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it is for.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Names and values.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// The content of the document that it points to, once that is seen to be it.
    ///
    /// # Errors
    /// It is too long, or other content.
    fn document(&self, blobs: &dyn Blobs) -> anyhow::Result<Vec<u8>> {
        let what = || format!("blob {}", self.digest);
        if self.size > DOCUMENT_MAX {
            bail!("{} is said to have {} bytes, and at most {DOCUMENT_MAX} are read", what(), self.size);
        }
        let bytes = blobs.document(self).with_context(what)?;
        check_length(bytes.len() as u64, self.size)
            .and_then(|()| self.digest.check(&bytes))
            .with_context(what)?;
        Ok(bytes)
    }

    /// The value of an annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

/// Checks that content has the length that was said.
///
/// # Errors
/// It has not.
pub(super) fn check_length(found: u64, said: u64) -> anyhow::Result<()> {
    if found == said {
        return Ok(());
    }
    bail!("it has {found} bytes and was said to have {said}")
}

/// Where content is found by its digest.
pub trait Blobs {
    /// The content of a manifest, index or configuration: at most [`DOCUMENT_MAX`] bytes, not yet checked.
    ///
    /// # Errors
    /// There is no such content, or it cannot be read.
    fn document(&self, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>>;
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Layer {
    /// The digest of the blob as it is stored; `None` in archives that have none.
    pub digest: Option<Digest>,
    /// The blob's length in bytes.
    pub size: u64,
    /// The digest of the tar in it.
    pub diff_id: Digest,
}

/// An image for this platform: what its documents say.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its manifest; `None` in archives that have none.
    pub manifest: Option<Digest>,
    /// The digest of its configuration.
    pub config_digest: Digest,
    /// The configuration's JSON.
    pub config_json: String,
    /// The configuration.
    pub config: ImageConfig,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// An image of a configuration and its layers' blobs, each a digest if it has one and a length.
    ///
    /// # Errors
    /// The configuration is for another platform or other layers.
    pub fn new(
        manifest: Option<Digest>,
        config_json: Vec<u8>,
        blobs: Vec<(Option<Digest>, u64)>,
    ) -> anyhow::Result<Self> {
        let config_digest = Digest::of(&config_json);
        let config_json =
            String::from_utf8(config_json).map_err(|_| anyhow!("its configuration is not UTF-8"))?;
        let config = ImageConfig::parse(config_json.as_bytes())?;
        config.platform().check()?;
        let diff_ids = config.diff_ids();
        if diff_ids.len() != blobs.len() {
            bail!("the image has {} layers and a configuration for {}", blobs.len(), diff_ids.len());
        }
        if blobs.is_empty() {
            bail!("the image has no layers, and so no files");
        }
        if blobs.len() > LAYERS_MAX {
            bail!("the image has {} layers, and at most {LAYERS_MAX} are read", blobs.len());
        }
        let layers = blobs.into_iter().zip(diff_ids);
        let layers = layers.map(|((digest, size), diff_id)| Layer { digest, size, diff_id: diff_id.clone() });
        Ok(Self { manifest, config_digest, layers: layers.collect(), config, config_json })
    }

    /// The chain ID of all layers (OCI image specification, Layer ChainID): what the root file system goes by.
    pub fn chain_id(&self) -> Digest {
        let mut chain: Option<Digest> = None;
        for layer in &self.layers {
            chain = Some(match chain {
                None => layer.diff_id.clone(),
                Some(below) => Digest::of(format!("{below} {}", layer.diff_id).as_bytes()),
            });
        }
        chain.unwrap_or_else(|| Digest::of(b""))
    }
}

/// A manifest, an index, or what claims to be one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// What a document is.
enum Parsed {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    /// What it is, which is what it was said to be, and one thing only: content that reads as two is two images.
    fn parsed(self, said: Option<&str>) -> anyhow::Result<Parsed> {
        let said = said.filter(|said| !said.is_empty());
        if self.fs_layers.is_some() || self.schema_version == 1 {
            bail!(
                "it is of Docker's schema 1, which nothing verifies: push the image again with a tool of today"
            );
        }
        if let (Some(said), Some(own)) = (said, &self.media_type)
            && said != own
        {
            bail!("it is '{}' and was said to be '{}'", own.escape_debug(), said.escape_debug());
        }
        let kind = said.map(str::to_owned).or(self.media_type);
        let is = |types: &[&str]| kind.as_deref().is_none_or(|kind| types.contains(&kind));
        match (self.manifests, self.config, self.layers) {
            (Some(manifests), None, None) if is(&INDEX_TYPES) => Ok(Parsed::Index(manifests)),
            (None, Some(config), Some(layers)) if is(&MANIFEST_TYPES) => {
                Ok(Parsed::Manifest { config, layers })
            }
            _ => {
                let kind = kind.unwrap_or_else(|| "of no media type".to_owned());
                bail!("it is no manifest of an image: {}", kind.escape_debug())
            }
        }
    }
}

/// Checks that the document is a manifest or an index, and gives an index's descriptors.
///
/// # Errors
/// It is neither.
pub fn index(bytes: &[u8]) -> anyhow::Result<Vec<Descriptor>> {
    match read(bytes, None)? {
        Parsed::Index(manifests) => Ok(manifests),
        Parsed::Manifest { .. } => bail!("it is a manifest, not an index"),
    }
}

fn read(bytes: &[u8], said: Option<&str>) -> anyhow::Result<Parsed> {
    let document: Document = serde_json::from_slice(bytes).context("it makes no sense")?;
    document.parsed(said)
}

/// The image for this platform that a manifest or index leads to, whose content is `bytes` and was checked.
///
/// # Errors
/// There is none, or what leads there is damaged, forged or too deep.
pub fn resolve(blobs: &dyn Blobs, bytes: Vec<u8>, media_type: Option<&str>) -> anyhow::Result<Image> {
    let mut bytes = bytes;
    let mut media_type = media_type.map(str::to_owned);
    for _ in 0..DEPTH_MAX {
        let what = || format!("manifest {}", Digest::of(&bytes));
        match read(&bytes, media_type.as_deref()).with_context(what)? {
            Parsed::Manifest { config, layers } => return image(blobs, Digest::of(&bytes), &config, &layers),
            Parsed::Index(manifests) => {
                let next = choose(&manifests)?;
                bytes = next.document(blobs)?;
                media_type.clone_from(&next.media_type);
            }
        }
    }
    bail!("more than {DEPTH_MAX} indexes lead from one to the next")
}

/// The image of one manifest.
fn image(
    blobs: &dyn Blobs,
    manifest: Digest,
    config: &Descriptor,
    layers: &[Descriptor],
) -> anyhow::Result<Image> {
    let kind = config.media_type.as_deref().unwrap_or_default();
    if !CONFIG_TYPES.contains(&kind) {
        bail!("it holds no container image, but something with '{}'", kind.escape_debug());
    }
    for layer in layers {
        check_layer(layer.media_type.as_deref().unwrap_or_default())?;
    }
    let json = config.document(blobs).context("cannot get its configuration")?;
    let layers = layers.iter().map(|layer| (Some(layer.digest.clone()), layer.size)).collect();
    Image::new(Some(manifest), json, layers)
}

/// Refuses layers that are no tar, by their media type. The compression is seen in the layer itself.
fn check_layer(kind: &str) -> anyhow::Result<()> {
    let shown = kind.escape_debug();
    if FOREIGN_TYPES.iter().any(|foreign| kind.starts_with(foreign)) {
        bail!("a layer is not in the registry but on some other server, as Windows images have it: {shown}");
    }
    if kind.ends_with("+encrypted") {
        bail!("a layer is encrypted: {shown}");
    }
    match LAYER_TYPES.iter().find_map(|known| kind.strip_prefix(known)) {
        Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => Ok(()),
        _ => bail!("a layer is of no kind that an image has: '{shown}'"),
    }
}

/// The best of an index for this machine.
///
/// # Errors
/// It has nothing for it, or it does not say what is for what.
pub fn choose(manifests: &[Descriptor]) -> anyhow::Result<&Descriptor> {
    let ranked = |it: &&Descriptor| it.platform.as_ref().and_then(Platform::rank);
    if let Some(best) = manifests.iter().filter(|it| ranked(it).is_some()).min_by_key(ranked) {
        return Ok(best);
    }
    let mut unsaid = manifests.iter().filter(|it| it.platform.is_none());
    match (unsaid.next(), unsaid.next()) {
        (Some(only), None) => return Ok(only),
        (Some(_), Some(_)) => bail!("its index has several images and does not say which is for linux/amd64"),
        (None, _) => {}
    }
    let mut platforms: Vec<_> = manifests
        .iter()
        .filter_map(|it| it.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(Platform::to_string)
        .collect();
    platforms.sort();
    platforms.dedup();
    platforms.truncate(16);
    if platforms.is_empty() {
        bail!("its index names no image");
    }
    bail!("it has no image for linux/amd64, only for {}", platforms.join(", "))
}

#[cfg(test)]
mod tests;
