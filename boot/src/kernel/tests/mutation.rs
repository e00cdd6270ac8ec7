//! Every byte of every header changed, and every header cut at every length: refused, or accepted and sound.

use super::*;
use super::{assert_sound, bzimage, elf, multiboot};

/// xorshift64 (Marsaglia, 2003).
pub(super) fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// One file whose content changes.
struct Changing(tempfile::NamedTempFile);

impl Changing {
    fn new(content: &[u8]) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        Self(file)
    }

    /// Opens the file with `bytes` at `at`, and puts back what was there. Tells whether it was accepted.
    fn survives(&self, original: &[u8], at: usize, bytes: &[u8]) -> bool {
        let bytes = &bytes[..bytes.len().min(original.len() - at)];
        self.0.as_file().write_all_at(bytes, at as u64).unwrap();
        let image = Image::open(self.0.path());
        if let Ok(image) = &image {
            assert_sound(image, original.len() as u64);
        }
        self.0.as_file().write_all_at(&original[at..at + bytes.len()], at as u64).unwrap();
        image.is_ok()
    }
}

/// The images and how far their headers reach.
fn images() -> [(Vec<u8>, usize); 5] {
    [
        (elf::elf(0x10_0000, &[elf::PLAIN; 1]), 64 + 56),
        (elf::with_notes(&elf::pvh_note(0x10_0010)), 64 + 2 * 56),
        (bzimage::bzimage(), 0x270),
        (multiboot::flat(), multiboot::AT + 32),
        (multiboot::elf32(&[multiboot::PLAIN; 1]), multiboot::IN_ELF + 12),
    ]
}

#[test]
fn a_changed_byte_anywhere_in_the_headers_does_no_harm() {
    for (original, headers) in images() {
        let file = Changing::new(&original);
        let mut accepted = 0;
        for at in 0..headers {
            for value in [0, 1, 0x7f, 0x80, 0xff, original[at] ^ 1, original[at].wrapping_add(1)] {
                accepted += usize::from(file.survives(&original, at, &[value]));
            }
        }
        assert!(accepted > 0 && accepted < headers * 7, "{accepted} accepted");
    }
}

#[test]
fn an_extreme_number_anywhere_in_the_headers_does_no_harm() {
    for (original, headers) in images() {
        let file = Changing::new(&original);
        for at in 0..headers {
            for value in [0, i64::MAX as u64, 1 << 63, u64::MAX - 7, u64::MAX] {
                file.survives(&original, at, &value.to_le_bytes());
            }
            for value in [0, i32::MAX as u32, 1 << 31, u32::MAX - 7, u32::MAX] {
                file.survives(&original, at, &value.to_le_bytes());
            }
        }
    }
}

#[test]
fn random_bytes_in_random_places_do_no_harm() {
    let mut state = 0x2545_f491_4f6c_dd1d;
    for (original, headers) in images() {
        for _ in 0..2000 {
            let mut content = original.clone();
            for _ in 0..random(&mut state) % 4 + 1 {
                let at = random(&mut state) as usize % headers;
                content[at] = random(&mut state) as u8;
            }
            if let Ok(image) = open(&content) {
                assert_sound(&image, content.len() as u64);
            }
        }
    }
}

#[test]
fn an_image_cut_within_its_headers_is_refused() {
    for (original, headers) in images() {
        for len in 0..headers {
            assert!(open(&original[..len]).is_err(), "accepted with {len} bytes");
        }
    }
}

#[test]
fn an_image_cut_anywhere_is_refused_or_sound() {
    for (original, headers) in images() {
        for len in (headers..=original.len()).step_by(7) {
            if let Ok(image) = open(&original[..len]) {
                assert_sound(&image, len as u64);
            }
        }
    }
}

#[test]
fn notes_of_random_bytes_do_no_harm() {
    let mut state = 7;
    for _ in 0..500 {
        let mut notes = elf::pvh_note(0x10_0010);
        let at = random(&mut state) as usize % notes.len();
        notes[at] = random(&mut state) as u8;
        let content = elf::with_notes(&notes);
        if let Ok(image) = open(&content) {
            assert_sound(&image, content.len() as u64);
        }
    }
}
