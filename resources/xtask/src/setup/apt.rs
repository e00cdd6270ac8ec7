//! Packages from the distribution, without touching the host's own list of sources: apt is given a
//! configuration of its own under `target/apt`, with sources copied from the host's and other suites put in
//! (`sources.list(5)`, `apt.conf(5)`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::host::{self, Distribution};
use crate::step::{output, step};

/// Who has it fetches lists. The lanes of a test run are threads of one process, and apt refuses the second of two.
static FETCHING: Mutex<()> = Mutex::new(());

/// One entry of the host's sources, whichever of the two formats it was in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    suites: Vec<String>,
    components: Vec<String>,
    /// The other fields, named as in deb822: URIs, Signed-By and so on.
    fields: Vec<(String, String)>,
}

/// apt with the sources that kite's set-up needs.
pub struct Apt {
    config: PathBuf,
}

/// A version of a package that could be had.
pub struct Candidate {
    /// The version.
    pub version: String,
    /// The packages it depends on, without their versions.
    pub depends: Vec<String>,
}

impl Apt {
    /// Writes the configuration into the folder of this name below `target`, and fetches the package lists.
    ///
    /// # Errors
    /// The host's sources name no suite of its own, or the lists cannot be fetched.
    pub fn open(name: &str, distribution: &Distribution, more_suites: &[&str]) -> Result<Self> {
        let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = host::target(name)?;
        for part in ["sources.list.d", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("making {part}"))?;
        }
        let sources = sources(&host_sources()?, &distribution.codename, more_suites)?;
        fs::write(folder.join("sources.list.d/kite.sources"), sources).context("writing apt's sources")?;
        let config = folder.join("apt.conf");
        fs::write(&config, configuration(&folder)).context("writing apt's configuration")?;
        let apt = Self { config };
        step("fetching package lists", || output(apt.command("apt-get").args(["-q", "update"])))?;
        Ok(apt)
    }

    /// The list of sources that it uses.
    pub fn sources(&self) -> PathBuf {
        self.config.with_file_name("sources.list.d").join("kite.sources")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config);
        command
    }

    /// The newest version of `package` that starts with `prefix`.
    ///
    /// # Errors
    /// apt cannot be asked.
    pub fn candidate(&self, package: &str, prefix: &str) -> Result<Option<Candidate>> {
        // It fails for a package that is nowhere, which is an answer too.
        let found =
            self.command("apt-cache").args(["show", package]).output().context("running apt-cache")?;
        Ok(candidates(&String::from_utf8_lossy(&found.stdout))
            .into_iter()
            .find(|one| one.version.starts_with(prefix)))
    }

    /// Downloads `packages`, each `NAME` or `NAME=VERSION`, into `folder`.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        output(self.command("apt-get").args(["-q", "download"]).args(packages).current_dir(folder))?;
        Ok(())
    }

    /// Installs packages on this machine, as root; from `suite` if one is given.
    ///
    /// # Errors
    /// Neither root nor sudo, or apt fails.
    pub fn install(&self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        let what = packages.join(" ");
        let from = suite.map(|suite| format!(" from {suite}")).unwrap_or_default();
        let mut command = host::as_root("env")?;
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-c"]).arg(&self.config);
        // Root's caches must not end up in a folder of the user's.
        command.args([
            "-o",
            "Dir::Cache=/var/cache/apt",
            "-o",
            "Dir::Cache::pkgcache=",
            "-o",
            "DPkg::Lock::Timeout=300",
        ]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        command.args(["-q", "-y", "--no-install-recommends", "install"]).args(packages);
        step(format!("installing {what}{from}"), || output(&mut command)).map(drop)
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::Etc::SourceList \"/dev/null\";\n\
         Dir::Etc::SourceParts \"{folder}/sources.list.d\";\n\
         Dir::State \"{folder}/state\";\n\
         Dir::State::status \"/var/lib/dpkg/status\";\n\
         Dir::State::extended_states \"/var/lib/apt/extended_states\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n"
    )
}

/// Reads `apt-cache show`: paragraphs, newest version first.
fn candidates(text: &str) -> Vec<Candidate> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let depends = |list: &str| {
        list.split([',', '|']).filter_map(|one| one.split_whitespace().next().map(str::to_owned)).collect()
    };
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
    paragraphs
        .map(|paragraph| Candidate {
            version: field(paragraph, "Version:"),
            depends: depends(&field(paragraph, "Depends:")),
        })
        .collect()
}

/// All entries of `/etc/apt/sources.list` and the files beside it.
fn host_sources() -> Result<Vec<Source>> {
    let mut files: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(one_line)),
            Some("sources") => sources.extend(paragraphs(&text)),
            _ => {}
        }
    }
    Ok(sources)
}

/// Reads one line of the old format: `deb [option=value …] uri suite component…`.
fn one_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let mut fields = vec![("URIs".to_owned(), words.next()?)];
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=')?;
        let name = match name {
            "arch" => "Architectures",
            "signed-by" => "Signed-By",
            "trusted" => "Trusted",
            _ => continue,
        };
        fields.push((name.to_owned(), value.replace(',', " ")));
    }
    Some(Source { suites: vec![words.next()?], components: words.collect(), fields })
}

/// Reads the deb822 format: paragraphs of fields, continued on lines that start with a blank.
fn paragraphs(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(entry(std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

fn entry(mut fields: Vec<(String, String)>) -> Option<Source> {
    let mut take = |name: &str| {
        let at = fields.iter().position(|(field, _)| field.eq_ignore_ascii_case(name))?;
        Some(fields.remove(at).1.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let (types, suites, components) = (take("Types")?, take("Suites")?, take("Components")?);
    let enabled = take("Enabled").is_none_or(|value| value.first().is_some_and(|value| value != "no"));
    (enabled && types.iter().any(|kind| kind == "deb")).then_some(Source { suites, components, fields })
}

/// The sources file: the host's own entries for its release, and its main entry with the suites of `more`.
fn sources(host: &[Source], codename: &str, more: &[&str]) -> Result<String> {
    let own = |suite: &String| {
        let rest = suite.strip_prefix(codename);
        rest.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"))
    };
    let distribution = |source: &&Source| source.components.iter().any(|one| one == "main");
    let mut text = String::new();
    for source in host.iter().filter(distribution) {
        for suite in source.suites.iter().filter(|suite| own(suite)) {
            text += &paragraph(source, suite);
        }
    }
    let main =
        host.iter().filter(distribution).find(|source| source.suites.iter().any(|suite| suite == codename));
    let Some(main) = main else { bail!("the sources of apt have no entry for {codename}") };
    for suite in more.iter().filter(|suite| **suite != codename) {
        text += &paragraph(main, suite);
    }
    Ok(text)
}

fn paragraph(source: &Source, suite: &str) -> String {
    let mut text = format!("Types: deb\nSuites: {suite}\nComponents: main\n");
    for (name, value) in &source.fields {
        text += &format!("{name}: {value}\n");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "# ours\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n\
                          Suites: trixie trixie-updates\n\
                          Components: main contrib\nSigned-By: /k.gpg\n\n\
                          Types: deb\nURIs: http://other.example\n\
                          Suites: trixie\nComponents: stable\n";

    #[test]
    fn both_formats_give_the_same_suites() {
        let old = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib # ours";
        let old: Vec<Source> = old.lines().filter_map(one_line).collect();
        for host in [paragraphs(DEB822), old] {
            let text = sources(&host, "trixie", &["bookworm", "trixie"]).unwrap();
            assert!(
                text.contains("Suites: bookworm\nComponents: main\nURIs: http://mirror.example/debian\n"),
                "{text}"
            );
            assert!(text.contains("Signed-By: /k.gpg"));
            assert_eq!(text.matches("Suites: trixie\n").count(), 1);
            assert!(!text.contains("other.example"));
        }
    }

    #[test]
    fn a_disabled_or_foreign_entry_is_no_source() {
        assert!(
            paragraphs("Enabled: no\nTypes: deb\nURIs: x\nSuites: trixie\nComponents: main\n").is_empty()
        );
        assert!(one_line("# deb http://mirror.example trixie main").is_none());
        assert!(sources(&paragraphs(DEB822), "noble", &[]).is_err());
    }

    #[test]
    fn an_inline_key_keeps_its_lines() {
        let text =
            "Types: deb\nURIs: x\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n";
        assert!(
            sources(&paragraphs(text), "trixie", &[])
                .unwrap()
                .contains("Signed-By: \n -----BEGIN\n .\n abc\n")
        );
    }

    #[test]
    fn candidates_keep_apts_order() {
        let shown = "Package: a\nVersion: 6.12.1\nDepends: linux-image-6.12 (= 6.12.1), b | c\n\n\
                     Package: a\nVersion: 6.1.2\n";
        let found = candidates(shown);
        assert_eq!(found[0].depends, ["linux-image-6.12", "b", "c"]);
        assert_eq!(found[1].version, "6.1.2");
    }
}
