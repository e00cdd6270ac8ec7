//! What the user calls an image: an OCI layout folder, an archive, or a name in a registry, told apart by what is there.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use nix::fcntl::OFlag;

use super::digest::Digest;

/// The registry of names that have none.
pub const DEFAULT_HOST: &str = "docker.io";
/// Where the API of [`DEFAULT_HOST`] is.
const DEFAULT_API_HOST: &str = "registry-1.docker.io";
/// The repository folder of Docker Hub's names without a slash.
const DEFAULT_FOLDER: &str = "library/";
/// The longest host and name together, by the distribution specification.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;
/// What a folder has that is an OCI layout.
const LAYOUT_FILES: [&str; 2] = ["oci-layout", "index.json"];
/// Where a tar header has `ustar`.
const MAGIC: std::ops::Range<usize> = 257..262;
/// How other tools say where an image is.
const TRANSPORTS: [&str; 7] =
    ["oci:", "oci-archive:", "docker-archive:", "docker://", "dir:", "docker-daemon:", "containers-storage:"];

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A folder with an OCI layout.
    Layout {
        /// The folder.
        folder: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// A tar file: an `oci-archive` or a `docker-archive`.
    Archive {
        /// The file.
        file: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// A registry.
    Registry(Reference),
}

impl Target {
    /// What `text` means here and now: what is there goes before what may be in a registry.
    ///
    /// # Errors
    /// It is a path to something else than an image, or no path and no name either.
    pub fn of(text: &str) -> anyhow::Result<Self> {
        if text.is_empty() {
            bail!("an image's name is empty");
        }
        if let Some(transport) = TRANSPORTS.iter().find(|transport| text.starts_with(**transport)) {
            let rest = &text[transport.len()..];
            bail!("write an image without '{transport}': {}", rest.escape_debug());
        }
        for (path, tag) in splits(text) {
            match kind(path)? {
                Some(Kind::Layout) => {
                    return Ok(Self::Layout { folder: path.to_owned(), tag: tag.map(str::to_owned) });
                }
                Some(Kind::Archive) => {
                    return Ok(Self::Archive { file: path.to_owned(), tag: tag.map(str::to_owned) });
                }
                None => {}
            }
        }
        if text.starts_with(['/', '.', '~']) {
            bail!("{}: {}", text.escape_debug(), absent(Path::new(text)));
        }
        let looks_like_file = [".tar", ".tgz", ".tar.gz", ".tar.zst"].iter().any(|end| text.ends_with(end));
        if looks_like_file {
            bail!("there is no file {} here", text.escape_debug());
        }
        text.parse().map(Self::Registry)
    }
}

/// Why a path is no image.
fn absent(path: &Path) -> &'static str {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            "is a folder, but no OCI layout: it has no oci-layout or no index.json"
        }
        Ok(_) => "is no tar archive of an image",
        Err(_) => "there is neither a folder nor a file",
    }
}

/// The ways to read `PATH[:TAG]`: as one path, and cut at each colon, the longest path first.
fn splits(text: &str) -> impl Iterator<Item = (&Path, Option<&str>)> {
    let cuts = text.rmatch_indices(':').filter(|(at, _)| *at > 0 && at + 1 < text.len());
    let cuts = cuts.map(|(at, _)| (Path::new(&text[..at]), Some(&text[at + 1..])));
    std::iter::once((Path::new(text), None)).chain(cuts)
}

enum Kind {
    Layout,
    Archive,
}

/// What is at a path, if it holds images.
fn kind(path: &Path) -> anyhow::Result<Option<Kind>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    if metadata.is_dir() {
        let is_layout = LAYOUT_FILES.iter().all(|file| path.join(file).is_file());
        return Ok(is_layout.then_some(Kind::Layout));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let what = || format!("cannot read {}", path.display());
    let mut head = Vec::new();
    open_regular(path).with_context(what)?.take(512).read_to_end(&mut head).with_context(what)?;
    if let Some(with) = compression(&head) {
        bail!("{} is compressed: uncompress it first, as with `{with}`", path.display());
    }
    Ok((head.get(MAGIC) == Some(b"ustar")).then_some(Kind::Archive))
}

/// Names that are too long for a file, and files below files, are only absent.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
        || error.raw_os_error() == Some(nix::libc::EINVAL)
}

/// What undoes the compression of a file that begins like this.
fn compression(head: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b], "gunzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "unxz"),
        (b"BZh", "bunzip2"),
    ];
    known.into_iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, with)| with)
}

/// Opens a regular file; what has become a pipe meanwhile is not waited for.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is no regular file"))
}

/// An image's name in a registry, `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`, with everything that is left out filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as the user names it, with its port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry's API is: host and port.
    pub fn api_host(&self) -> &str {
        if self.host == DEFAULT_HOST { DEFAULT_API_HOST } else { &self.host }
    }

    /// The repository, such as `library/debian`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag, unless there is a digest alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the image's manifest, or its index, is to have.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry finds the manifest by: the digest, or else the tag.
    pub fn version(&self) -> &str {
        match &self.digest {
            Some(digest) => digest.as_str(),
            None => self.tag.as_deref().unwrap_or("latest"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.host, self.name)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        parse(text).map_err(|why| anyhow!("'{}' is no image: {why}", text.escape_debug()))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    let (host, rest) = split_host(rest);
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (rest, None),
    };
    let host = match host {
        Some(host) => checked_host(host)?,
        None => DEFAULT_HOST.to_owned(),
    };
    let folder = if host == DEFAULT_HOST && !name.contains('/') { DEFAULT_FOLDER } else { "" };
    check_name(name)?;
    if host.len() + 1 + folder.len() + name.len() > NAME_MAX {
        return Err(format!("its name has more than {NAME_MAX} characters"));
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = tag.or(if digest.is_none() { Some("latest") } else { None }).map(str::to_owned);
    Ok(Reference { host, name: format!("{folder}{name}"), tag, digest })
}

/// The first part is a host if nothing else can be it: it has a dot, a colon or a capital letter, or is `localhost`.
fn split_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':', '['])
                || first.contains(|char: char| char.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn checked_host(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' is no host with an optional port");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if let Some(port) = port {
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || port.parse::<u16>().ok().is_none_or(|port| port == 0) {
            return Err(wrong());
        }
    }
    let is_address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !is_address && !host.split('.').all(is_label) {
        return Err(wrong());
    }
    // In capitals it stays as it is: only those say that a host without a dot is one.
    let is_default = ["docker.io", "index.docker.io"].iter().any(|host| text.eq_ignore_ascii_case(host));
    Ok(if is_default { DEFAULT_HOST } else { text }.to_owned())
}

/// Parts of small letters and digits, between which there is one dot, one or two underscores, or any number of hyphens.
fn check_name(name: &str) -> Result<(), String> {
    let is_part = |part: &str| {
        let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = part.as_bytes();
        let separators = bytes.split(is_word).filter(|between| !between.is_empty());
        bytes.first().is_some_and(is_word)
            && bytes.last().is_some_and(is_word)
            && separators.into_iter().all(|between| {
                matches!(between, b"." | b"_" | b"__") || between.iter().all(|byte| *byte == b'-')
            })
    };
    if name.split('/').all(is_part) {
        return Ok(());
    }
    if name.split('/').all(|part| is_part(&part.to_ascii_lowercase())) {
        return Err("names have small letters only".to_owned());
    }
    Err("names are of small letters and digits, with . _ - or / between them".to_owned())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    if tag.len() <= TAG_MAX
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
    {
        return Ok(());
    }
    Err(format!("its tag is not one of at most {TAG_MAX} letters, digits, dots, hyphens and underscores"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_mean_what_they_mean_to_docker() {
        for (text, whole, api) in [
            ("debian", "docker.io/library/debian:latest", "registry-1.docker.io"),
            ("debian:12", "docker.io/library/debian:12", "registry-1.docker.io"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest", "registry-1.docker.io"),
            ("index.docker.io/debian", "docker.io/library/debian:latest", "registry-1.docker.io"),
            ("docker.io/a/b:c", "docker.io/a/b:c", "registry-1.docker.io"),
            ("quay.io/podman/stable", "quay.io/podman/stable:latest", "quay.io"),
            ("localhost/a", "localhost/a:latest", "localhost"),
            ("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000"),
            ("localhost:5000", "docker.io/library/localhost:5000", "registry-1.docker.io"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest", "127.0.0.1:5000"),
            ("HOST/a", "HOST/a:latest", "HOST"),
            ("Docker.IO/a", "docker.io/library/a:latest", "registry-1.docker.io"),
            ("a__b/c-d.e---f", "docker.io/a__b/c-d.e---f:latest", "registry-1.docker.io"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(reference.api_host(), api, "{text}");
            assert_eq!(whole.parse::<Reference>().unwrap(), reference);
        }
        let pinned: Reference = format!("debian:12@{DIGEST}").parse().unwrap();
        assert_eq!(pinned.version(), DIGEST);
        assert_eq!(pinned.to_string(), format!("docker.io/library/debian:12@{DIGEST}"));
        let pinned: Reference = format!("debian@{DIGEST}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.version()), (None, DIGEST));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for (text, why) in [
            ("Debian", "small letters only"),
            ("a//b", "names are of"),
            ("a/../b", "names are of"),
            ("a_-b", "names are of"),
            ("-a", "names are of"),
            ("a/", "names are of"),
            ("a:", "its tag"),
            ("a:-b", "its tag"),
            ("a@sha256:12", "no digest"),
            ("host.:1/a", "no host"),
            ("host:99999/a", "no host"),
            ("host:/a", "no host"),
            ("a.b:80:90/c", "no host"),
            ("user@host/a", "no digest"),
            ("a b", "names are of"),
            ("a\nb", "names are of"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains('\n'));
        }
        let long = format!("{}:{}", "a", "b".repeat(129));
        assert!(long.parse::<Reference>().is_err());
        assert!("a".repeat(250).parse::<Reference>().is_err());
    }

    #[test]
    fn what_is_there_goes_before_a_registry() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        fs::create_dir(path("layout")).unwrap();
        fs::create_dir(path("plain")).unwrap();
        for file in LAYOUT_FILES {
            fs::write(path("layout").join(file), "{}").unwrap();
        }
        let mut tar = vec![0; 1024];
        tar[MAGIC].copy_from_slice(b"ustar");
        fs::write(path("a.tar"), &tar).unwrap();
        fs::write(path("a.tar:odd"), &tar).unwrap();
        fs::write(path("a.tar.gz"), [0x1f, 0x8b, 8]).unwrap();
        fs::write(path("text"), "hello").unwrap();
        let layout =
            |tag: Option<&str>| Target::Layout { folder: path("layout"), tag: tag.map(str::to_owned) };
        assert_eq!(Target::of(&text("layout")).unwrap(), layout(None));
        assert_eq!(Target::of(&text("layout:a:b")).unwrap(), layout(Some("a:b")));
        let archive =
            |name: &str, tag: Option<&str>| Target::Archive { file: path(name), tag: tag.map(str::to_owned) };
        assert_eq!(Target::of(&text("a.tar")).unwrap(), archive("a.tar", None));
        assert_eq!(Target::of(&text("a.tar:odd")).unwrap(), archive("a.tar:odd", None));
        assert_eq!(Target::of(&text("a.tar:debian:12")).unwrap(), archive("a.tar", Some("debian:12")));
        for (name, why) in [
            ("plain", "no OCI layout"),
            ("text", "no tar archive"),
            ("absent", "neither a folder nor a file"),
            ("a.tar.gz", "gunzip"),
        ] {
            let error = Target::of(&text(name)).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
        assert!(Target::of("no-such.tar").unwrap_err().to_string().contains("no file"));
        assert!(Target::of("oci:dir:tag").unwrap_err().to_string().contains("without 'oci:'"));
        assert!(matches!(Target::of("debian").unwrap(), Target::Registry(_)));
    }

    #[test]
    fn a_pipe_is_no_image_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Target::of(pipe.to_str().unwrap()).is_err());
        assert!(open_regular(&pipe).unwrap_err().to_string().contains("no regular file"));
    }

    #[test]
    fn no_name_makes_the_reader_panic_and_each_is_what_it_says() {
        const PIECES: [&str; 14] =
            ["a", "B", "0", ".", "_", "-", "/", ":", "@", "[", "]", "::1", "sha256:", "ä"];
        let mut random: u32 = 5;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..8 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text += PIECES[(random >> 8) as usize % PIECES.len()];
            }
            if let Ok(reference) = text.parse::<Reference>() {
                assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference, "{text}");
            }
        }
    }
}
