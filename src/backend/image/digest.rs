//! Digests of content, `sha256:...` (OCI image specification, Descriptors: Digests), and readers that check them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use anyhow::{anyhow, bail};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A digest of a registered algorithm, in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    /// The whole text; checked, so it is safe as a part of a path.
    text: String,
    algorithm: Algorithm,
}

/// The algorithms that the specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which every registry has.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Its name in a digest, and the name of its folder in an OCI layout.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal part, in small letters: a safe name of a file.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The whole text, `sha256:...`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first twelve hexadecimal digits, as container tools show a digest.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// Checks that `bytes` have this digest.
    ///
    /// # Errors
    /// They have another.
    pub fn check(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        self.check_is(&hasher.finish())
    }

    /// Checks that content which has the digest `found` is this one's.
    ///
    /// # Errors
    /// It is not.
    pub fn check_is(&self, found: &Self) -> anyhow::Result<()> {
        if self == found {
            return Ok(());
        }
        bail!("its content has the digest {found}, not {self}: it is damaged or forged")
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wrong = || anyhow!("'{}' is no digest like sha256:0123...", text.escape_debug());
        let (name, hex) = text.split_once(':').ok_or_else(wrong)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(wrong()),
        };
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != algorithm.hex_length() || !hex.bytes().all(is_hex) {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), algorithm })
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Makes a digest of content that comes in pieces.
pub enum Hasher {
    /// Of SHA-256.
    Sha256(sha2::Sha256),
    /// Of SHA-512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Nothing is hashed yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Self::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        let mut text = format!("{}:", algorithm.name());
        for byte in bytes {
            for half in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(half.into(), 16));
            }
        }
        Digest { text, algorithm }
    }
}

/// A reader that hashes what passes through it.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashingReader<R> {
    /// Hashes what `inner` gives.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm) }
    }

    /// Reads what the consumer has left, and gives the digest of everything.
    ///
    /// # Errors
    /// The rest cannot be read.
    pub fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.hasher.finish())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_the_standard_s_and_tells_other_content() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        let sha512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a8\
                      36ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let digest: Digest = sha512.parse().unwrap();
        digest.check(b"abc").unwrap();
        assert!(digest.check(b"abd").unwrap_err().to_string().contains("damaged or forged"));
    }

    #[test]
    fn what_is_no_digest_is_refused_and_never_becomes_a_path() {
        let hex = &EMPTY[7..];
        for text in [
            String::new(),
            "sha256:".to_owned(),
            hex.to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            format!("md5:{hex}"),
            format!("sha256:../{}", &hex[3..]),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_hashing_reader_counts_what_its_consumer_leaves() {
        let mut reader = HashingReader::new(&b"abcdef"[..], Algorithm::Sha256);
        reader.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(reader.finish().unwrap(), Digest::of(b"abcdef"));
    }
}
