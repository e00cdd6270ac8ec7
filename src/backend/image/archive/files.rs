//! The files of a tar by their names: where each lies in it (POSIX pax interchange format; GNU tar's long names).
//!
//! Nothing is unpacked. Names are looked up and no more, so one that leads out of the archive leads nowhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use tar::{EntryType, Header, PaxExtensions};

use crate::backend::image::blob::Section;
use crate::backend::image::layout::Files;

const BLOCK: u64 = 512;
/// The most headers of an archive: an image of 512 layers has some 1,500.
const HEADERS_MAX: usize = 20_000;
/// The longest extended header or long name, in bytes.
const EXTENDED_MAX: u64 = 64 << 10;
/// How many links may lead to a file, each to the next.
const LINKS_MAX: usize = 8;

/// Where the content of each file is.
pub struct TarFiles {
    file: Arc<File>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    File {
        at: u64,
        length: u64,
    },
    /// A link, to a name from the root of the archive.
    Link(String),
}

/// What an extended header says of the next one.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl TarFiles {
    /// Reads all headers, and nothing between them.
    ///
    /// # Errors
    /// The file cannot be read, or is no tar, a damaged one, or one of too many files.
    pub fn index(file: Arc<File>) -> anyhow::Result<Self> {
        let end = file.metadata().context("cannot look at it")?.len();
        let mut this = Self { file, entries: HashMap::new() };
        let mut at = 0;
        let mut extended = Extended::default();
        for _ in 0..HEADERS_MAX {
            let what = || format!("the header at byte {at} makes no sense: the archive is damaged");
            let mut block = [0; BLOCK as usize];
            // Some tools write no end.
            if end - at < BLOCK {
                return Ok(this);
            }
            this.file.read_exact_at(&mut block, at).context("cannot read it")?;
            if block == [0; BLOCK as usize] {
                return Ok(this);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header, &block).with_context(what)?;
            let size = extended.size.map_or_else(|| header.entry_size(), Ok).with_context(what)?;
            let content = at + BLOCK;
            let padded = size.checked_next_multiple_of(BLOCK).and_then(|size| content.checked_add(size));
            let next = padded.with_context(what)?;
            if content + size > end {
                bail!("the archive is cut off: a file of {size} bytes begins at byte {content} of {end}");
            }
            this.take(header, Section::new(this.file.clone(), content, size), content, &mut extended)
                .with_context(what)?;
            at = next.min(end);
        }
        bail!("the archive has more than {HEADERS_MAX} files")
    }

    /// Takes what one header says.
    fn take(
        &mut self,
        header: &Header,
        section: Section,
        at: u64,
        extended: &mut Extended,
    ) -> anyhow::Result<()> {
        let kind = header.entry_type();
        match kind {
            EntryType::XHeader => return extended.read(section),
            EntryType::GNULongName => extended.path = Some(long_name(section)?),
            EntryType::GNULongLink => extended.link = Some(long_name(section)?),
            EntryType::XGlobalHeader => {}
            _ => {
                let Extended { path, link, .. } = std::mem::take(extended);
                let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                // What has no name that text can have, or one that leads out, is looked for by nobody.
                let Some(name) = text(&path).and_then(|path| normal("", path)) else { return Ok(()) };
                let link = link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
                let target = |from: &str| normal(from, text(link.as_deref()?)?);
                let entry = match kind {
                    EntryType::Symlink => {
                        target(name.rsplit_once('/').map_or("", |(folder, _)| folder)).map(Entry::Link)
                    }
                    EntryType::Link => target("").map(Entry::Link),
                    EntryType::Regular | EntryType::Continuous => {
                        Some(Entry::File { at, length: section.length() })
                    }
                    _ => None,
                };
                // A later entry replaces an earlier one, whatever it is.
                match entry {
                    Some(entry) => drop(self.entries.insert(name, entry)),
                    None => drop(self.entries.remove(&name)),
                }
            }
        }
        Ok(())
    }

    /// Whether there is a file of this name, or a link to one.
    pub fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }
}

impl Files for TarFiles {
    fn open(&self, name: &str) -> anyhow::Result<Section> {
        let missing = || anyhow!("the archive has no file {}", name.escape_debug());
        let mut next = normal("", name).ok_or_else(missing)?;
        for _ in 0..LINKS_MAX {
            match self.entries.get(&next) {
                Some(Entry::File { at, length }) => return Ok(Section::new(self.file.clone(), *at, *length)),
                Some(Entry::Link(target)) => next.clone_from(target),
                None => return Err(missing()),
            }
        }
        bail!("{}: more than {LINKS_MAX} links lead from one to the next", name.escape_debug())
    }
}

impl Extended {
    fn read(&mut self, section: Section) -> anyhow::Result<()> {
        let bytes = short(section)?;
        for record in PaxExtensions::new(&bytes) {
            let record = record?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => self.size = Some(record.value()?.parse()?),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks a header's sum (ustar).
fn check_sum(header: &Header, block: &[u8; BLOCK as usize]) -> anyhow::Result<()> {
    let sum = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let expected = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
    if header.cksum()? == expected {
        return Ok(());
    }
    bail!("its sum is wrong")
}

fn long_name(section: Section) -> anyhow::Result<Vec<u8>> {
    let mut name = short(section)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn short(section: Section) -> anyhow::Result<Vec<u8>> {
    if section.length() > EXTENDED_MAX {
        bail!("a name of {} bytes", section.length());
    }
    let mut bytes = Vec::new();
    section.take(EXTENDED_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

/// A name from the root, of one that is seen from `folder`; `None` if it leads out of the archive.
fn normal(folder: &str, name: &str) -> Option<String> {
    let mut parts = Vec::new();
    let folder = if name.starts_with('/') { "" } else { folder };
    for part in folder.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
