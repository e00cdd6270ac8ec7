//! `docker-credential-NAME`: a program that keeps credentials (the protocol of docker-credential-helpers).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{Credentials, of_user};
use crate::host::child::{self, End, Stream};

/// How long it may take: it may ask the user to unlock something.
const LIMIT: Duration = Duration::from_secs(60);
/// The most bytes that are read of an answer.
const ANSWER_MAX: usize = 64 << 10;
/// What it prints for a registry that it does not know.
const UNKNOWN: &str = "credentials not found";
/// The most characters of its own words that an error has.
const SHOWN_MAX: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What the helper of this name has for a registry.
///
/// # Errors
/// There is no such helper, or it fails, or its answer makes no sense.
pub(super) fn ask(name: &str, server: &str) -> anyhow::Result<Option<Credentials>> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || !name.bytes().all(is_name) {
        bail!("'{}' is no name of a credential helper", name.escape_debug());
    }
    ask_program(Path::new(&format!("docker-credential-{name}")), server)
}

/// What a helper has for a registry, which is found as any program is.
///
/// # Errors
/// Those of [`ask`].
pub(super) fn ask_program(path: &Path, server: &str) -> anyhow::Result<Option<Credentials>> {
    let program = path.file_name().unwrap_or_default().display();
    let mut answer = [Vec::new(), Vec::new()];
    let mut take = |stream: Stream, bytes: &[u8]| {
        let answer = &mut answer[usize::from(stream == Stream::Stderr)];
        let room = ANSWER_MAX - answer.len();
        answer.extend_from_slice(&bytes[..bytes.len().min(room)]);
    };
    let input = format!("{server}\n");
    let get = &mut Command::new(path);
    let ended = child::run(get.arg("get"), input.as_bytes(), None, Some(LIMIT), &mut take)?;
    let [stdout, stderr] = answer;
    let status = match ended {
        End::Status(status) => status,
        End::Late | End::Stopped => bail!("{program} does not answer within {} seconds", LIMIT.as_secs()),
    };
    if status.success() {
        // What is wrong with it is not said: the text is secret.
        let answer = serde_json::from_slice::<Answer>(&stdout).ok();
        let answer = answer.with_context(|| format!("{program} gives an answer that makes no sense"))?;
        return Ok((!answer.secret.is_empty()).then(|| of_user(answer.username, answer.secret)));
    }
    // It complains on standard output.
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if said.contains(UNKNOWN) {
        return Ok(None);
    }
    let said: String = said.trim().chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    bail!("{program} failed ({status}): {said}")
}
