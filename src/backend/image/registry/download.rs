//! The download of a layer's blob into a file: taken up again where it broke off, and checked while it comes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ureq::http::{HeaderMap, StatusCode};

use super::client::Request;
use super::{Failure, Registry, of_network};
use crate::backend::image::digest::{Digest, Hasher};

/// How often in all a download is taken up again, however much came in between.
const RESUMED_MAX: u32 = 100;
/// How many bytes are to come in so long, at least: a length that a server makes up allows for no time without end.
const PACE: (u64, Duration) = (60 << 10, Duration::from_secs(60));
/// How much is read at once.
const PIECE: usize = 128 << 10;

/// Told how many bytes are there; an error ends the download.
pub type Tell<'a> = dyn Fn(u64) -> anyhow::Result<()> + 'a;

/// A blob that is coming into a file.
struct Download<'a> {
    digest: &'a Digest,
    size: u64,
    file: &'a mut File,
    hasher: Hasher,
    /// How much of it is there.
    done: u64,
    tell: &'a Tell<'a>,
}

/// What has come of an answer since when.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    /// Counts bytes that have come by `now`.
    ///
    /// # Errors
    /// They are too few for the time.
    fn count(&mut self, bytes: u64, now: Instant) -> anyhow::Result<()> {
        let (least, time) = PACE;
        self.bytes += bytes;
        if now.saturating_duration_since(self.since) < time {
            return Ok(());
        }
        if self.bytes < least {
            bail!(
                "the registry has sent {} bytes of it in {} s, too few to wait for the rest; the next try goes on from there",
                self.bytes,
                now.saturating_duration_since(self.since).as_secs()
            );
        }
        *self = Self::new(now);
        Ok(())
    }
}

impl Registry {
    /// Gets the blob of this digest and length into `file`, which may have a beginning of it.
    ///
    /// # Errors
    /// The registry is not reached or refuses, the blob is not what was said, or the file cannot be written.
    pub fn download(
        &self,
        digest: &Digest,
        size: u64,
        file: &mut File,
        tell: &Tell<'_>,
    ) -> anyhow::Result<()> {
        self.download_all(digest, size, file, tell).with_context(|| format!("blob {digest}"))
    }

    fn download_all(
        &self,
        digest: &Digest,
        size: u64,
        file: &mut File,
        tell: &Tell<'_>,
    ) -> anyhow::Result<()> {
        let hasher = Hasher::new(digest.algorithm());
        let mut download = Download { digest, size, file, hasher, done: 0, tell };
        download.take_up()?;
        let is_resumed = download.done > 0;
        self.finish(&mut download)?;
        match download.check() {
            // What was there of a try before may be wrong.
            Err(_) if is_resumed => download.restart()?,
            checked => return checked,
        }
        self.finish(&mut download)?;
        download.check()
    }

    fn finish(&self, download: &mut Download<'_>) -> anyhow::Result<()> {
        let mut tries = 0;
        for _ in 0..RESUMED_MAX {
            if download.done == download.size {
                return Ok(());
            }
            let before = download.done;
            if let Err(failure) = self.piece(download) {
                if download.done > before {
                    tries = 0;
                }
                self.wait(failure, &mut tries)?;
            }
        }
        bail!("it broke off {RESUMED_MAX} times")
    }

    /// One request for the rest.
    fn piece(&self, download: &mut Download<'_>) -> Result<(), Failure> {
        let length = download.size - download.done;
        let request = Request { from: download.done, length, ..Request::default() };
        let answer = self.try_get(&format!("blobs/{}", download.digest), request)?;
        let is_rest = answer.status() == StatusCode::PARTIAL_CONTENT;
        check_range(answer.headers(), is_rest, download).map_err(Failure::Lasting)?;
        if !is_rest && download.done > 0 {
            // This server sends wholes only.
            download.restart().map_err(Failure::Lasting)?;
        }
        download.receive(answer.into_body().into_reader())
    }
}

/// Refuses an answer that says that it is something else than what was asked for.
fn check_range(headers: &HeaderMap, is_rest: bool, download: &Download<'_>) -> anyhow::Result<()> {
    let header = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
    let expected = if is_rest { download.size - download.done } else { download.size };
    let length = header("content-length").and_then(|it| it.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length != expected) {
        bail!("the registry sends {length} bytes of it, not {expected}");
    }
    let begins = || {
        let range = header("content-range")?.strip_prefix("bytes ")?;
        range.split('-').next()?.parse::<u64>().ok()
    };
    if is_rest && begins() != Some(download.done) {
        bail!("the registry sends another part of it than was asked for");
    }
    Ok(())
}

impl Download<'_> {
    /// Hashes what the file has.
    fn take_up(&mut self) -> anyhow::Result<()> {
        let what = "cannot read what is there of it";
        if self.file.metadata().context(what)?.len() > self.size {
            return self.restart();
        }
        self.file.seek(SeekFrom::Start(0)).context(what)?;
        let mut piece = vec![0; PIECE];
        loop {
            let length = self.file.read(&mut piece).context(what)?;
            if length == 0 {
                break;
            }
            self.hasher.update(&piece[..length]);
            self.done += length as u64;
        }
        (self.tell)(self.done)
    }

    /// Begins anew.
    fn restart(&mut self) -> anyhow::Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.context("cannot empty the file for it")?;
        self.hasher = Hasher::new(self.digest.algorithm());
        self.done = 0;
        (self.tell)(0)
    }

    /// Takes what comes, up to the blob's end.
    fn receive(&mut self, mut body: impl Read) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        let mut pace = Pace::new(Instant::now());
        while self.done < self.size {
            let (done, size) = (self.done, self.size);
            let what = || format!("it breaks off after {done} of {size} bytes");
            let read = body.read(&mut piece).map_err(ureq::Error::from).with_context(what);
            let length = read.map_err(of_network)?;
            if length == 0 {
                return Err(Failure::Passing(anyhow!(what()), None));
            }
            if length as u64 > self.size - self.done {
                return Err(Failure::Lasting(anyhow!(
                    "it has more than the {} bytes that were said",
                    self.size
                )));
            }
            self.file.write_all(&piece[..length]).context("cannot write it").map_err(Failure::Lasting)?;
            self.hasher.update(&piece[..length]);
            self.done += length as u64;
            (self.tell)(self.done).map_err(Failure::Lasting)?;
            if self.done < self.size {
                pace.count(length as u64, Instant::now()).map_err(Failure::Lasting)?;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.digest.algorithm()));
        self.digest.check_is(&hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_drips_is_not_waited_for_and_a_slow_line_is() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut drip = Pace::new(start);
        assert!((1..60).all(|second| drip.count(1, at(second)).is_ok()));
        let refused = drip.count(1, at(60)).unwrap_err().to_string();
        assert!(refused.contains("sent 60 bytes of it in 60 s"), "{refused}");
        let mut slow = Pace::new(start);
        assert!((1..10_000).all(|second| slow.count(1 << 10, at(second)).is_ok()));
        // A good beginning does not pay for what follows.
        let mut bursts = Pace::new(start);
        assert!(bursts.count(1 << 30, at(60)).is_ok());
        assert!(bursts.count(1, at(120)).is_err());
    }
}
