//! VNC authentication (RFC 6143 §7.2.2): a viewer proves that it knows a password of at most eight bytes.

use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use des::Des;
use des::cipher::{Block, BlockCipherEncrypt, KeyInit};

/// The bytes of a challenge.
pub const CHALLENGE: usize = 16;
/// The most bytes of a password.
const LONGEST: usize = 8;
/// How much of the file is read: more is no password.
const FILE_MAX: u64 = 1024;

/// A password.
#[derive(Clone)]
pub struct Password([u8; LONGEST]);

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password")
    }
}

impl Password {
    /// Reads the first line of the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or that is no password.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut text = Vec::new();
        let file = File::open(path).with_context(|| format!("cannot open the password file {shown}"))?;
        let read = file.take(FILE_MAX).read_to_end(&mut text);
        read.with_context(|| format!("cannot read the password file {shown}"))?;
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Self::new(line).with_context(|| format!("cannot use the password file {shown}"))
    }

    /// A password of these bytes.
    ///
    /// # Errors
    /// There is none, or they are too many.
    pub fn new(text: &[u8]) -> anyhow::Result<Self> {
        ensure!(
            !text.is_empty(),
            "its first line is empty; write a password of 1 to {LONGEST} bytes into it"
        );
        ensure!(
            text.len() <= LONGEST,
            "its first line has {} bytes, and VNC passwords have at most {LONGEST}; use a shorter one",
            text.len()
        );
        let mut password = [0; LONGEST];
        password[..text.len()].copy_from_slice(text);
        Ok(Self(password))
    }

    /// What a viewer that knows it answers: the challenge, enciphered by the password with each byte's bits reversed.
    fn answer(&self, challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
        let cipher = Des::new(&self.0.map(u8::reverse_bits).into());
        let mut answer = *challenge;
        for part in answer.chunks_exact_mut(CHALLENGE / 2) {
            let mut block = Block::<Des>::default();
            block.copy_from_slice(part);
            cipher.encrypt_block(&mut block);
            part.copy_from_slice(&block);
        }
        answer
    }

    /// Whether `answer` is the right one. It takes the same time whatever is wrong with it.
    pub fn is_proved(&self, challenge: &[u8; CHALLENGE], answer: &[u8; CHALLENGE]) -> bool {
        let right = self.answer(challenge);
        let wrong = right.iter().zip(answer).fold(0, |wrong, (a, b)| black_box(wrong | (a ^ b)));
        wrong == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    #[test]
    fn an_answer_is_the_challenge_in_des_under_the_reversed_password() {
        // The key 0x0123456789abcdef enciphers "Now is t" into 3fa40e8a984d4815 (FIPS 81, table B1).
        let key = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].map(u8::reverse_bits);
        let password = Password::new(&key).unwrap();
        let half = [0x3f, 0xa4, 0x0e, 0x8a, 0x98, 0x4d, 0x48, 0x15];
        let answer: [u8; CHALLENGE] = [half, half].concat().try_into().unwrap();
        assert_eq!(password.answer(b"Now is tNow is t"), answer);
        assert!(password.is_proved(b"Now is tNow is t", &answer));
        for at in 0..CHALLENGE {
            let mut wrong = answer;
            wrong[at] ^= 1;
            assert!(!password.is_proved(b"Now is tNow is t", &wrong), "byte {at}");
        }
    }

    fn read(text: &[u8]) -> Result<[u8; LONGEST], String> {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        Password::read(file.path()).map(|it| it.0).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_first_line_of_a_file_is_the_password() {
        assert_eq!(read(b"secret"), Ok(*b"secret\0\0"));
        assert_eq!(read(b"secret78\r\nmore\n"), Ok(*b"secret78"));
        assert!(read(b"\nsecret").unwrap_err().contains("its first line is empty"));
        assert!(read(b"secret789").unwrap_err().contains("has 9 bytes"));
        assert!(read(&[b'x'; 5000]).unwrap_err().contains("has 1024 bytes"));
        let missing = Password::read(Path::new("/nonexistent")).unwrap_err();
        assert!(missing.to_string().starts_with("cannot open the password file /nonexistent"));
    }
}
