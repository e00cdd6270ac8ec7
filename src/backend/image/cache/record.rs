//! What is known of an image in the cache, so that a later run asks no registry.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::{Cache, RECORDS, Root, names, open_file};
use crate::backend::image::config::ImageConfig;
use crate::backend::image::digest::Digest;
use crate::backend::image::manifest::{Image, Layer};
use crate::backend::image::reference::Reference;
use crate::host::atomic_file;

/// Of what form a record is. Others are not read.
const SCHEMA: &str = "image/1";
/// The longest record, in bytes: a configuration of 4 MiB, each of its characters escaped as six.
const LENGTH_MAX: u64 = 32 << 20;
/// The shortest beginning of a digest that names an image.
const PREFIX_MIN: usize = 4;

/// An image's name, configuration and layers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    schema: String,
    /// The name: of a registry in full, or the path of a layout or archive with its tag.
    pub reference: String,
    /// Whether it is from a registry.
    pub is_remote: bool,
    /// The digest of its manifest, if it has one.
    pub manifest: Option<Digest>,
    /// The digest of its configuration.
    pub config_digest: Digest,
    /// The configuration's JSON.
    pub config_json: String,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// What its root file system goes by.
    pub chain_id: Digest,
    /// When it was got, in seconds since 1970.
    pub got: u64,
}

impl Record {
    /// What is known of an image of this name, which was got now.
    pub fn new(reference: String, is_remote: bool, image: &Image) -> Self {
        let got = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            schema: SCHEMA.to_owned(),
            reference,
            is_remote,
            manifest: image.manifest.clone(),
            config_digest: image.config_digest.clone(),
            config_json: image.config_json.clone(),
            layers: image.layers.clone(),
            chain_id: image.chain_id(),
            got,
        }
    }

    /// Its configuration.
    ///
    /// # Errors
    /// The record was changed.
    pub fn config(&self) -> anyhow::Result<ImageConfig> {
        ImageConfig::parse(self.config_json.as_bytes())
    }

    /// The lengths of its layers' blobs together, in bytes.
    pub fn blobs_size(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Whether the user means it: by its name, however much of it is left out, or by the beginning of a digest.
    pub fn is_called(&self, text: &str) -> bool {
        let is_same =
            || self.is_remote && text.parse::<Reference>().is_ok_and(|it| it.to_string() == self.reference);
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let digests = [Some(&self.chain_id), self.manifest.as_ref(), Some(&self.config_digest)];
        let is_digest = || digests.into_iter().flatten().any(|digest| digest.hex().starts_with(hex));
        self.reference == text || is_same() || (hex.len() >= PREFIX_MIN && is_digest())
    }

    fn is_same_image(&self, other: &Self) -> bool {
        let key = |it: &Self| (it.manifest.clone(), it.config_digest.clone(), it.chain_id.clone());
        key(self) == key(other)
    }
}

impl Cache {
    fn record_path(&self, reference: &str) -> PathBuf {
        self.folder.join(RECORDS).join(format!("{}.json", Digest::of(reference.as_bytes()).hex()))
    }

    /// What is known of the image of this name. A record that makes no sense is none.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn record(&self, reference: &str) -> anyhow::Result<Option<Record>> {
        let record = read(&self.record_path(reference))?;
        Ok(record.filter(|record| record.reference == reference))
    }

    /// The image of this name as it was got last, if its root file system is there.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn known(&self, reference: &str) -> anyhow::Result<Option<(Record, Root)>> {
        let Some(record) = self.record(reference)? else { return Ok(None) };
        Ok(self.root(&record.chain_id)?.map(|root| (record, root)))
    }

    /// Puts by what is known of an image, in place of what was known before.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, record: &Record) -> anyhow::Result<()> {
        if self.record(&record.reference)?.is_some_and(|old| old.is_same_image(record)) {
            return Ok(());
        }
        let text = serde_json::to_vec(record).context("cannot write down an image")?;
        atomic_file::write(&self.record_path(&record.reference), |file| file.write_all(&text))
    }

    /// All that is known, in the order of names.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn records(&self) -> anyhow::Result<Vec<Record>> {
        let folder = self.folder.join(RECORDS);
        let mut records = Vec::new();
        for name in names(&folder)? {
            records.extend(read(&folder.join(name))?);
        }
        records.sort_by(|a: &Record, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// The one image that the user means.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn called(&self, text: &str) -> anyhow::Result<Record> {
        let shown = text.escape_debug();
        let mut found: Vec<_> = self.records()?.into_iter().filter(|record| record.is_called(text)).collect();
        // A whole name is no beginning of a digest.
        if let Some(at) = found.iter().position(|record| record.reference == text) {
            return Ok(found.swap_remove(at));
        }
        match found.len() {
            0 => bail!("there is no image '{shown}' in the cache; `kite image list` shows those that are"),
            1 => Ok(found.swap_remove(0)),
            _ => {
                let names: Vec<_> = found.iter().map(|it| it.reference.escape_debug().to_string()).collect();
                bail!("'{shown}' is each of {}", names.join(", "))
            }
        }
    }

    /// Drops what is known of an image.
    ///
    /// # Errors
    /// The record cannot be removed.
    pub(super) fn drop_record(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.record_path(&record.reference);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The record in a file, if there is one of this form.
fn read(path: &Path) -> anyhow::Result<Option<Record>> {
    let what = || format!("cannot read {}", path.display());
    let Some(file) = open_file(path).with_context(what)? else { return Ok(None) };
    let mut text = Vec::new();
    file.take(LENGTH_MAX).read_to_end(&mut text).with_context(what)?;
    let record = serde_json::from_slice::<Record>(&text).ok();
    Ok(record.filter(|record| record.schema == SCHEMA))
}
