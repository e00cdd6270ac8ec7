//! Symbol names, compressed as in the kernel or as in a file, decoded one at a time.

/// The longest name; the kernel's own limit (`KSYM_NAME_LEN`).
const NAME_MAX: usize = 512;
/// Every so many names the kernel's table has a marker.
pub(super) const MARKED: usize = 256;

/// What the codes of compressed names stand for.
pub(super) struct Tokens {
    /// The strings, each with its NUL.
    pub table: Vec<u8>,
    /// Where each code's string begins.
    pub index: Box<[u16; 256]>,
}

impl Tokens {
    fn get(&self, code: u8) -> &[u8] {
        let rest = self.table.get(usize::from(self.index[usize::from(code)])..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// Names, in the order of their symbols' addresses.
pub(super) enum Names {
    /// The kernel's table.
    Compressed {
        /// For each name how many codes it has, and the codes.
        bytes: Vec<u8>,
        /// Where every 256th name begins.
        markers: Vec<u32>,
        tokens: Tokens,
    },
    /// A file's text or string table, and for each symbol its kind and where its name begins and ends in there.
    Plain { text: Vec<u8>, places: Vec<(u8, u32, u32)> },
}

impl Names {
    /// The name of symbol `index`, printable, and the letter of its kind (nm(1)).
    pub fn get(&self, index: usize) -> Option<(String, u8)> {
        match self {
            Self::Compressed { bytes, markers, tokens } => {
                let mut at = *markers.get(index / MARKED)? as usize;
                for _ in 0..index % MARKED {
                    let (start, len) = codes(bytes, at)?;
                    at = start + len;
                }
                let (start, len) = codes(bytes, at)?;
                let codes = bytes.get(start..start.checked_add(len)?)?;
                let mut name = codes.iter().flat_map(|&code| tokens.get(code)).copied();
                let kind = name.next()?;
                Some((printable(name), kind))
            }
            Self::Plain { text, places } => {
                let &(kind, start, end) = places.get(index)?;
                Some((printable(text.get(start as usize..end as usize)?.iter().copied()), kind))
            }
        }
    }

    /// Whether symbol `index` has this name.
    pub fn is(&self, index: usize, name: &str) -> bool {
        match self {
            Self::Compressed { .. } => self.get(index).is_some_and(|(known, _)| known == name),
            Self::Plain { text, places } => places.get(index).is_some_and(|&(_, start, end)| {
                text.get(start as usize..end as usize) == Some(name.as_bytes())
            }),
        }
    }
}

/// Where the codes of the name at `at` begin, and how many there are: a byte, or two if there are more than 127.
pub(super) fn codes(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    match *bytes.get(at)? {
        len @ 0..0x80 => Some((at + 1, len.into())),
        low => Some((at + 2, usize::from(low & 0x7f) | usize::from(*bytes.get(at + 1)?) << 7)),
    }
}

fn printable(name: impl Iterator<Item = u8>) -> String {
    name.take(NAME_MAX).map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect()
}
