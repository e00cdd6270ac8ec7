//! From what the user calls an image to its root file system in the cache.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::statvfs::statvfs;

use super::blob::Section;
use super::cache::{Cache, Making, Record, Root};
use super::digest::Digest;
use super::layers::{self, LayerBlob, Limits};
use super::local::Local;
use super::manifest::{Image, Layer};
use super::progress::Progress;
use super::reference::Target;
use super::registry::Registry;

/// How many blobs are downloaded at a time.
const DOWNLOADS: usize = 3;
/// How long what was not made to its end stays: its blobs are of use to who tries again.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// How an image is to be got.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Registries are trusted without TLS, or with any certificate.
    pub is_insecure: bool,
    /// The registry is asked although there is an image of that name.
    pub is_refreshed: bool,
    /// Progress is shown on a terminal.
    pub is_shown: bool,
    /// How large all images may be together, in bytes.
    pub limit: u64,
}

/// Merges layers' blobs, the lowest first, into a file, and says of how many more bytes of blobs it is done. What the blobs
/// hold was not checked by their digests.
pub type Merge<'a> = dyn Fn(&mut dyn Iterator<Item = anyhow::Result<(Layer, Section)>>, &File, &dyn Fn(u64)) -> anyhow::Result<()>
    + 'a;

/// An image that is ready to run.
#[derive(Debug)]
pub struct Obtained {
    /// What is known of it.
    pub record: Record,
    /// Its root file system, in use as long as this is there.
    pub root: Root,
}

/// Where an image's layers come from.
enum Source {
    Local(Local),
    Registry(Box<Registry>),
}

/// What a root file system is made of.
struct Work<'a> {
    image: &'a Image,
    /// What the image is called.
    shown: &'a str,
    file: &'a File,
    progress: &'a Progress,
    merge: &'a Merge<'a>,
}

/// The image that `text` names, its root file system in the cache: merged of its layers if it is not there.
///
/// An image of a registry that was got before is not asked for again unless that is wished; layouts and archives are
/// looked at each time, as they may have changed.
///
/// # Errors
/// There is no such image, it cannot be got, or it is not what it says; or the cache cannot be written.
pub fn obtain(cache: &Cache, text: &str, options: &Options) -> anyhow::Result<Obtained> {
    obtain_by(cache, text, options, &merge)
}

/// Merges layers into an EROFS image, which checks their digests.
fn merge(
    layers: &mut dyn Iterator<Item = anyhow::Result<(Layer, Section)>>,
    file: &File,
    progress: &dyn Fn(u64),
) -> anyhow::Result<()> {
    let blobs = layers.map(|layer| {
        let (layer, section) = layer?;
        let compression = section.compression().context("cannot read a layer")?;
        let reader = Box::new(section);
        Ok(LayerBlob { reader, compression, digest: layer.digest, diff_id: layer.diff_id })
    });
    layers::build(blobs, file, &Limits::default(), progress).map(drop)
}

fn obtain_by(cache: &Cache, text: &str, options: &Options, merge: &Merge<'_>) -> anyhow::Result<Obtained> {
    let target = Target::of(text)?;
    let name = name(&target)?;
    if let (Target::Registry(_), false) = (&target, options.is_refreshed)
        && let Some((record, root)) = cache.known(&name)?
    {
        return Ok(Obtained { record, root });
    }
    let progress = Progress::new(options.is_shown);
    progress.wait(format!("looking for {}", name.escape_debug()));
    let (image, source) = find(&target, options.is_insecure)?;
    let record = Record::new(name, matches!(source, Source::Registry(_)), &image);
    let shown = record.reference.escape_debug().to_string();
    let wait = || progress.wait(format!("waiting for another kite, which makes {shown}"));
    let root = cache.root_or_make(&image.chain_id(), wait, |making, file| {
        let work = Work { image: &image, shown: &shown, file, progress: &progress, merge };
        match &source {
            Source::Local(local) => work.merge_local(local),
            Source::Registry(registry) => work.pull(registry, making),
        }
    });
    let root = root.with_context(|| format!("cannot make the root file system of {shown}"))?;
    cache.put(&record)?;
    // What cannot be removed takes room, and is no reason not to run.
    if let Err(error) = cache.make_room(options.limit, PATIENCE) {
        log::warn!("cannot make room for images: {error:#}");
    }
    Ok(Obtained { record, root })
}

/// What is known of the image that `text` names, without its layers: from where it is on this host, or else from the
/// cache, or else from its registry.
///
/// # Errors
/// There is no such image, or it cannot be got.
pub fn look_at(cache: &Cache, text: &str, is_insecure: bool) -> anyhow::Result<Record> {
    let target = Target::of(text);
    let is_local = matches!(target, Ok(Target::Layout { .. } | Target::Archive { .. }));
    if !is_local && let Ok(record) = cache.called(text) {
        return Ok(record);
    }
    let target = target?;
    let (image, source) = find(&target, is_insecure)?;
    Ok(Record::new(name(&target)?, matches!(source, Source::Registry(_)), &image))
}

fn find(target: &Target, is_insecure: bool) -> anyhow::Result<(Image, Source)> {
    match target {
        Target::Registry(reference) => {
            let registry = Registry::open(reference, is_insecure)?;
            Ok((registry.image()?, Source::Registry(Box::new(registry))))
        }
        target => {
            let (image, local) = Local::open(target)?;
            Ok((image, Source::Local(local)))
        }
    }
}

/// What an image is called in the cache: a reference in full, or a path from the root folder.
fn name(target: &Target) -> anyhow::Result<String> {
    let absolute = |path: &Path, tag: &Option<String>| {
        let whole = fs::canonicalize(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let whole = whole.to_str().with_context(|| format!("{} is not UTF-8", whole.display()))?.to_owned();
        Ok(tag.as_ref().map_or(whole.clone(), |tag| format!("{whole}:{tag}")))
    };
    match target {
        Target::Layout { folder, tag } => absolute(folder, tag),
        Target::Archive { file, tag } => absolute(file, tag),
        Target::Registry(reference) => Ok(reference.to_string()),
    }
}

impl Work<'_> {
    fn merge_local(&self, local: &Local) -> anyhow::Result<()> {
        let sizes = self.image.layers.iter().map(|layer| layer.size);
        self.progress.begin(format!("merging {}", self.shown), sizes.fold(0, u64::saturating_add));
        let layers = self.image.layers.iter().enumerate();
        let mut layers = layers.map(|(index, layer)| Ok((layer.clone(), local.layer(index, layer)?)));
        (self.merge)(&mut layers, self.file, &|bytes| self.progress.add(bytes))
    }

    /// Blobs come several at a time, and are merged in their order as soon as each is there. One that several layers have
    /// comes once.
    fn pull(&self, registry: &Registry, making: &Making) -> anyhow::Result<()> {
        let blobs = blobs(self.image)?;
        let total = blobs.iter().map(|(_, size)| *size).fold(0, u64::saturating_add);
        check_room(making.folder(), total)?;
        self.progress.begin(format!("pulling {}", self.shown), total);
        let progress = self.progress;
        let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (senders, receivers): (Vec<_>, Vec<_>) = blobs.iter().map(|_| mpsc::sync_channel(1)).unzip();
        let download = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(((digest, size), sender)) = blobs.get(index).zip(senders.get(index)) else { break };
                // Nobody takes it once merging has failed.
                let _ = sender.send(get(registry, (digest, *size), making, progress, &is_over));
            }
        };
        thread::scope(|scope| {
            for _ in 0..DOWNLOADS.min(blobs.len()) {
                let thread = thread::Builder::new().name("download".to_owned());
                thread.spawn_scoped(scope, download).context("cannot start a thread")?;
            }
            let mut there: Vec<Option<Section>> = vec![None; blobs.len()];
            let mut layers = self.image.layers.iter().map(|layer| {
                let index = blobs.iter().position(|(digest, _)| layer.digest.as_ref() == Some(digest));
                let index = index.context("a layer has no digest")?;
                let section = match &there[index] {
                    Some(section) => section.clone(),
                    None => receivers[index].recv().context("a download has gone")??,
                };
                there[index] = Some(section.clone());
                Ok((layer.clone(), section))
            });
            let merged = (self.merge)(&mut layers, self.file, &|_| ());
            is_over.store(true, Ordering::Relaxed);
            merged
        })
    }
}

/// Gets one blob of this digest and length, of which a maker before may have got a part.
fn get(
    registry: &Registry,
    (digest, size): (&Digest, u64),
    making: &Making,
    progress: &Progress,
    is_over: &AtomicBool,
) -> anyhow::Result<Section> {
    let mut file = making.blob(digest)?;
    let shown = AtomicU64::new(0);
    let tell = |done: u64| {
        let before = shown.swap(done, Ordering::Relaxed);
        progress.add(done.saturating_sub(before));
        progress.take_back(before.saturating_sub(done));
        if is_over.load(Ordering::Relaxed) { Err(anyhow!("it is not needed any more")) } else { Ok(()) }
    };
    registry.download(digest, size, &mut file, &tell)?;
    Ok(Section::new(Arc::new(file), 0, size))
}

/// The blobs of an image, each once, with their lengths.
fn blobs(image: &Image) -> anyhow::Result<Vec<(&Digest, u64)>> {
    let mut blobs: Vec<(&Digest, u64)> = Vec::new();
    for layer in &image.layers {
        let digest = layer.digest.as_ref().context("a layer has no digest")?;
        match blobs.iter().find(|(known, _)| *known == digest) {
            None => blobs.push((digest, layer.size)),
            Some((_, size)) if *size == layer.size => {}
            Some((_, size)) => bail!("blob {digest} is said to have {size} bytes, and {} too", layer.size),
        }
    }
    Ok(blobs)
}

/// Refuses what the disk has no room for, before it is full.
fn check_room(folder: &Path, needed: u64) -> anyhow::Result<()> {
    let free = statvfs(folder).with_context(|| format!("cannot look at the disk of {}", folder.display()))?;
    let free = free.blocks_available().saturating_mul(free.fragment_size());
    if needed > free {
        let (needed, free) = (needed >> 20, free >> 20);
        bail!(
            "its layers have {needed} MiB, and there are {free} free in {}; `kite image prune` makes room",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
