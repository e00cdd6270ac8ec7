//! What is said of images, to people and as JSON. What an image says itself is printed so that no terminal obeys it.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::Value;

use crate::backend::image::cache::{Cache, Freed, Record, Stored};
use crate::host::messages::printable;

/// What an image is called that has no name any more.
const UNNAMED: &str = "(none)";
/// The columns of the table of images.
const COLUMNS: [&str; 5] = ["IMAGE", "DIGEST", "SIZE", "USED", ""];

/// An image in the cache.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    reference: Option<String>,
    /// That of its manifest, or, if it has none, of its configuration.
    digest: Option<String>,
    chain_id: String,
    /// In bytes.
    size: u64,
    last_used: String,
    in_use: bool,
    #[serde(skip)]
    age: Duration,
}

/// What an image says of itself.
#[derive(Debug, Serialize)]
pub(super) struct Details {
    schema: &'static str,
    reference: String,
    manifest: Option<String>,
    config_digest: String,
    chain_id: String,
    platform: String,
    /// The lengths of its layers' blobs together, in bytes.
    blobs_size: u64,
    layers: Vec<Layer>,
    /// Its root file system, if that is in the cache.
    root: Option<String>,
    /// The configuration as it is.
    config: Value,
}

#[derive(Debug, Serialize)]
struct Layer {
    digest: Option<String>,
    size: u64,
    diff_id: String,
}

/// The JSON of `list`. A change that breaks a reader raises the schema's number.
#[derive(Serialize)]
struct List<'a> {
    schema: &'static str,
    images: &'a [Line],
}

/// The JSON of `prune`.
#[derive(Serialize)]
struct Pruned {
    schema: &'static str,
    images: usize,
    unfinished: usize,
    bytes: u64,
}

impl Line {
    /// That of a root file system, and of an image that has it.
    pub(super) fn of(record: Option<&Record>, root: &Stored) -> anyhow::Result<Self> {
        let digest = record.map(|it| it.manifest.as_ref().unwrap_or(&it.config_digest).to_string());
        Ok(Self {
            reference: record.map(|it| it.reference.clone()),
            digest,
            chain_id: root.chain_id.to_string(),
            size: root.size,
            last_used: humantime::format_rfc3339_seconds(root.used).to_string(),
            in_use: root.is_in_use()?,
            age: SystemTime::now().duration_since(root.used).unwrap_or_default(),
        })
    }

    fn cells(&self) -> [String; 5] {
        let digest = self.digest.as_ref().unwrap_or(&self.chain_id);
        let short: String = digest.split(':').nth(1).unwrap_or_default().chars().take(12).collect();
        let reference = self.reference.as_deref().map_or_else(|| UNNAMED.to_owned(), printable);
        let in_use = if self.in_use { "in use" } else { "" };
        [reference, short, HumanBytes(self.size).to_string(), age(self.age), in_use.to_owned()]
    }
}

impl Details {
    /// What a record has.
    pub(super) fn of(record: &Record, cache: &Cache) -> anyhow::Result<Self> {
        let layers = record.layers.iter().map(|layer| Layer {
            digest: layer.digest.as_ref().map(ToString::to_string),
            size: layer.size,
            diff_id: layer.diff_id.to_string(),
        });
        let root = cache.stored()?.into_iter().find(|root| root.chain_id == record.chain_id);
        Ok(Self {
            schema: "image-inspect/1",
            reference: record.reference.clone(),
            manifest: record.manifest.as_ref().map(ToString::to_string),
            config_digest: record.config_digest.to_string(),
            chain_id: record.chain_id.to_string(),
            platform: record.config()?.platform().to_string(),
            blobs_size: record.blobs_size(),
            layers: layers.collect(),
            root: root.map(|root| root.path().display().to_string()),
            config: serde_json::from_str(&record.config_json)
                .context("the image's configuration makes no sense")?,
        })
    }
}

/// The images, as a table or as JSON.
pub(super) fn list(lines: &[Line], is_json: bool) -> anyhow::Result<String> {
    if is_json {
        return Ok(serde_json::to_string_pretty(&List { schema: "image-list/1", images: lines })? + "\n");
    }
    let cells: Vec<_> =
        [COLUMNS.map(str::to_owned)].into_iter().chain(lines.iter().map(Line::cells)).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
    let row = |row: &[String; 5]| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    Ok(cells.iter().map(row).collect())
}

/// What an image says, as lines or as JSON.
pub(super) fn details(details: &Details, is_json: bool) -> anyhow::Result<String> {
    if is_json {
        return Ok(serde_json::to_string_pretty(details)? + "\n");
    }
    let mut rows: Vec<(&str, String)> = vec![
        ("image", details.reference.clone()),
        (
            "manifest",
            details.manifest.clone().unwrap_or_else(|| "none: the archive has no digests".to_owned()),
        ),
        ("config", details.config_digest.clone()),
        ("platform", details.platform.clone()),
        ("layers", format!("{}, {}", details.layers.len(), HumanBytes(details.blobs_size))),
        ("root", details.root.clone().unwrap_or_else(|| "not in the cache".to_owned())),
    ];
    let config = details.config.get("config").unwrap_or(&Value::Null);
    for (about, name) in [
        ("user", "User"),
        ("folder", "WorkingDir"),
        ("entrypoint", "Entrypoint"),
        ("command", "Cmd"),
        ("environment", "Env"),
        ("stop signal", "StopSignal"),
    ] {
        match config.get(name) {
            Some(Value::String(text)) if !text.is_empty() => rows.push((about, text.clone())),
            Some(Value::Array(words)) if name == "Env" => {
                rows.extend(words.iter().filter_map(Value::as_str).map(|text| (about, text.to_owned())));
            }
            Some(words @ Value::Array(_)) => rows.push((about, words.to_string())),
            _ => {}
        }
    }
    let width = rows.iter().map(|(about, _)| about.len()).max().unwrap_or(0);
    Ok(rows.iter().map(|(about, fact)| format!("{about:width$}  {}\n", printable(fact))).collect())
}

/// What was removed.
pub(super) fn freed(freed: &Freed, is_json: bool) -> anyhow::Result<String> {
    if is_json {
        let Freed { images, unfinished, bytes } = *freed;
        let report = Pruned { schema: "image-prune/1", images, unfinished, bytes };
        return Ok(serde_json::to_string_pretty(&report)? + "\n");
    }
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let unfinished = match freed.unfinished {
        0 => String::new(),
        number => format!(" and {number} not got to the end"),
    };
    Ok(format!("removed {}{unfinished}, freed {}\n", count(freed.images, "image"), HumanBytes(freed.bytes)))
}

/// How long ago something was, by its greatest unit.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [(86_400, "day"), (3_600, "hour"), (60, "minute")];
    match units.into_iter().find(|(length, _)| seconds >= *length) {
        None => "just now".to_owned(),
        Some((length, unit)) => match seconds / length {
            1 => format!("1 {unit} ago"),
            number => format!("{number} {unit}s ago"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(reference: Option<&str>, in_use: bool) -> Line {
        Line {
            reference: reference.map(str::to_owned),
            digest: Some(format!("sha256:{}", "ab".repeat(32))),
            chain_id: format!("sha256:{}", "cd".repeat(32)),
            size: 128 << 20,
            last_used: "2026-01-02T03:04:05Z".to_owned(),
            in_use,
            age: Duration::from_secs(7200),
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_image_and_no_control_characters() {
        let lines = [
            line(Some("docker.io/library/debian:12"), true),
            line(Some("/a\u{1b}[2J\nb"), false),
            line(None, false),
        ];
        let text = list(&lines, false).unwrap();
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows.len(), 4, "{text}");
        assert!(rows[0].starts_with("IMAGE  ") && rows[1].ends_with("2 hours ago  in use"), "{text}");
        assert!(rows[1].contains("  abababababab  128.00 MiB  "), "{text}");
        assert!(!text.contains('\u{1b}') && rows[3].starts_with(UNNAMED), "{text}");
        let json: Value = serde_json::from_str(&list(&lines, true).unwrap()).unwrap();
        assert_eq!(json["images"][1]["reference"], "/a\u{1b}[2J\nb");
        assert_eq!(json["images"][2]["reference"], Value::Null);
    }

    #[test]
    fn ages_have_their_greatest_unit() {
        for (seconds, expected) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7199, "1 hour ago"),
            (200_000, "2 days ago"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn what_was_removed_is_counted() {
        let text = |images, unfinished| freed(&Freed { images, unfinished, bytes: 3 << 20 }, false).unwrap();
        assert_eq!(text(1, 0), "removed 1 image, freed 3.00 MiB\n");
        assert_eq!(text(0, 2), "removed 0 images and 2 not got to the end, freed 3.00 MiB\n");
    }
}
