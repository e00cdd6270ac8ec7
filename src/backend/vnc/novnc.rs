//! noVNC, a viewer that runs in a browser: its files as Debian's package or npm install them, and the page that uses them.
//!
//! They are read before the sandbox is locked. So what serves them can open nothing, whatever path it is asked for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Where packages put it.
const FOLDERS: [&str; 4] = [
    "/usr/share/novnc",
    "/usr/share/webapps/novnc",
    "/usr/local/lib/node_modules/@novnc/novnc",
    "/usr/lib/node_modules/@novnc/novnc",
];
/// The parts of it that a page needs.
const PARTS: [&str; 2] = ["core", "vendor"];
/// What the page loads first.
const ENTRANCE: &str = "/core/rfb.js";
/// The most bytes of all files, and the most files.
const BYTES_MAX: usize = 8 << 20;
const FILES_MAX: usize = 1000;
/// How deep its folders are at most.
const DEPTH_MAX: usize = 8;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const MISSING: &str = include_str!("missing.html");

/// Everything that a browser can get.
#[derive(Default)]
pub struct Pages {
    /// noVNC's files, by their path; empty without it.
    files: BTreeMap<String, Vec<u8>>,
    /// The bytes of all of them.
    len: usize,
}

/// One thing that a browser gets.
pub struct Page<'a> {
    /// Its media type.
    pub kind: &'static str,
    /// Its bytes.
    pub content: &'a [u8],
}

impl Pages {
    /// Reads noVNC from `folder`, or from where packages put it, if it is there.
    ///
    /// # Errors
    /// It is not in `folder`, or cannot be read.
    pub fn read(folder: Option<&Path>) -> anyhow::Result<Self> {
        let found = FOLDERS.iter().map(PathBuf::from).find(|it| it.join(&ENTRANCE[1..]).is_file());
        let Some(folder) = folder.map(Path::to_owned).or(found) else { return Ok(Self::default()) };
        let shown = folder.display();
        ensure!(
            folder.join(&ENTRANCE[1..]).is_file(),
            "there is no noVNC in {shown}: it has no file core/rfb.js; name the folder of Debian's package novnc, \
             or of @novnc/novnc from npm"
        );
        let mut pages = Self::default();
        for part in PARTS {
            let read = pages.add(&folder.join(part), &format!("/{part}"), DEPTH_MAX);
            read.with_context(|| format!("cannot read noVNC in {shown}"))?;
        }
        Ok(pages)
    }

    /// Adds the scripts below `folder`.
    fn add(&mut self, folder: &Path, at: &str, depth: usize) -> anyhow::Result<()> {
        ensure!(depth > 0, "its folders lie deeper than {DEPTH_MAX}");
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let at = format!("{at}/{name}");
            if path.is_dir() {
                self.add(&path, &at, depth - 1)?;
            } else if name.ends_with(".js") && path.is_file() {
                let mut content = Vec::new();
                // One byte more than there is room for shows that there is more.
                let most = (BYTES_MAX - self.len + 1) as u64;
                let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut content));
                self.len += read.with_context(|| path.display().to_string())?;
                ensure!(
                    self.len <= BYTES_MAX && self.files.len() < FILES_MAX,
                    "it has more than {FILES_MAX} files, or more than {} MiB",
                    BYTES_MAX >> 20
                );
                self.files.insert(at, content);
            }
        }
        Ok(())
    }

    /// What is at a path.
    pub fn get(&self, path: &str) -> Option<Page<'_>> {
        const SCRIPTS: &str = "text/javascript; charset=utf-8";
        match path {
            _ if self.files.is_empty() => None,
            "/" => Some(Page { kind: "text/html; charset=utf-8", content: PAGE.as_bytes() }),
            "/page.js" => Some(Page { kind: SCRIPTS, content: SCRIPT.as_bytes() }),
            _ => self.files.get(path).map(|content| Page { kind: SCRIPTS, content }),
        }
    }

    /// What is shown instead at a path that only noVNC's absence leaves empty.
    pub fn missing(&self, path: &str) -> Option<&'static str> {
        (self.files.is_empty() && path == "/").then_some(MISSING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn content(pages: &Pages, path: &str) -> Option<String> {
        pages.get(path).map(|page| String::from_utf8(page.content.to_vec()).unwrap())
    }

    #[test]
    fn the_page_and_novncs_scripts_are_there_and_nothing_else() {
        let files = [
            ("core/rfb.js", "rfb"),
            ("core/decoders/raw.js", "raw"),
            ("vendor/pako/lib/zlib/inflate.js", "inflate"),
            ("core/notes.txt", "notes"),
            ("package.json", "json"),
            ("utils/secret.js", "secret"),
        ];
        let folder = folder(&files);
        let pages = Pages::read(Some(folder.path())).unwrap();
        for (path, known) in &files[..3] {
            assert_eq!(content(&pages, &format!("/{path}")).as_deref(), Some(*known));
        }
        assert!(content(&pages, "/").unwrap().contains("page.js"));
        assert!(content(&pages, "/page.js").unwrap().contains("./core/rfb.js"));
        let none = [
            "/core/notes.txt",
            "/utils/secret.js",
            "/core/../utils/secret.js",
            "/core/%2e%2e/utils/secret.js",
            "core/rfb.js",
            "//core/rfb.js",
            "/core",
            "/etc/passwd",
            "/../../etc/passwd",
            "",
        ];
        for path in none {
            assert_eq!(content(&pages, path), None, "{path}");
        }
        assert_eq!(pages.missing("/"), None);
    }

    #[test]
    fn without_novnc_the_page_says_how_to_get_it() {
        let pages = Pages::default();
        let missing = pages.missing("/").unwrap();
        assert!(missing.contains("apt install novnc") && missing.contains("npm install"), "{missing}");
        assert!(pages.get("/").is_none() && pages.missing("/core/rfb.js").is_none());
        let empty = folder(&[("core/other.js", "")]);
        let error = Pages::read(Some(empty.path())).map(drop).unwrap_err().to_string();
        assert!(error.contains("it has no file core/rfb.js"), "{error}");
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let folder = folder(&[("core/rfb.js", "rfb"), ("vendor/x.js", "x")]);
        let grow = |len| File::create(folder.path().join("vendor/x.js")).unwrap().set_len(len).unwrap();
        grow(BYTES_MAX as u64 - 3);
        Pages::read(Some(folder.path())).unwrap();
        grow(BYTES_MAX as u64 - 2);
        let error = format!("{:#}", Pages::read(Some(folder.path())).map(drop).unwrap_err());
        assert!(error.contains("more than 8 MiB"), "{error}");
    }

    #[test]
    fn a_folder_without_end_is_refused() {
        let folder = folder(&[("core/rfb.js", "rfb"), ("vendor/x.js", "x")]);
        std::os::unix::fs::symlink(".", folder.path().join("core/again")).unwrap();
        let error = format!("{:#}", Pages::read(Some(folder.path())).map(drop).unwrap_err());
        assert!(error.contains("its folders lie deeper than 8"), "{error}");
    }
}
