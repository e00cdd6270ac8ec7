//! Keys: from what viewers say to the codes of Linux's `input-event-codes.h`, for a keyboard as it is in the United States.

/// The left shift key.
pub const SHIFT: u16 = 42;
/// The caps lock key.
pub const CAPS_LOCK: u16 = 58;

/// The keys that have characters: the code of the first one, what each has, and what it has with shift.
const ROWS: [(u16, &str, &str); 5] = [
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (57, " ", ""),
];

/// Keys without a character, by X's keysym (`keysymdef.h`).
const NAMED: [(u32, u16); 69] = [
    (0xff08, 14),
    (0xff09, 15),
    (0xfe20, 15),
    (0xff0d, 28),
    (0xff13, 119),
    (0xff14, 70),
    (0xff15, 99),
    (0xff1b, 1),
    (0xff20, 127),
    (0xff50, 102),
    (0xff51, 105),
    (0xff52, 103),
    (0xff53, 106),
    (0xff54, 108),
    (0xff55, 104),
    (0xff56, 109),
    (0xff57, 107),
    (0xff61, 99),
    (0xff63, 110),
    (0xff67, 127),
    (0xff6b, 119),
    (0xff7f, 69),
    (0xff8d, 96),
    (0xff95, 71),
    (0xff96, 75),
    (0xff97, 72),
    (0xff98, 77),
    (0xff99, 80),
    (0xff9a, 73),
    (0xff9b, 81),
    (0xff9c, 79),
    (0xff9d, 76),
    (0xff9e, 82),
    (0xff9f, 83),
    (0xffaa, 55),
    (0xffab, 78),
    (0xffac, 83),
    (0xffad, 74),
    (0xffae, 83),
    (0xffaf, 98),
    (0xffb0, 82),
    (0xffb1, 79),
    (0xffb2, 80),
    (0xffb3, 81),
    (0xffb4, 75),
    (0xffb5, 76),
    (0xffb6, 77),
    (0xffb7, 71),
    (0xffb8, 72),
    (0xffb9, 73),
    (0xffbd, 117),
    (0xffc8, 87),
    (0xffc9, 88),
    (0xffe1, SHIFT),
    (0xffe2, 54),
    (0xffe3, 29),
    (0xffe4, 97),
    (0xffe5, CAPS_LOCK),
    (0xffe7, 125),
    (0xffe8, 126),
    (0xffe9, 56),
    (0xffea, 100),
    (0xffeb, 125),
    (0xffec, 126),
    (0xfe03, 100),
    (0xff7e, 100),
    (0xffff, 111),
    (0x1008_ff12, 113),
    (0x1008_ff11, 114),
];

/// A key and how it gets a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its code.
    pub code: u16,
    /// For a key that has characters, whether this one takes shift.
    pub shift: Option<bool>,
    /// Whether caps lock is a shift for it.
    pub is_letter: bool,
}

/// The key that has a keysym, if there is one.
pub fn of_keysym(keysym: u32) -> Option<Key> {
    let other = |code| Key { code, shift: None, is_letter: false };
    // F1 to F10 are in a row.
    if let Some(number @ 0..10) = keysym.checked_sub(0xffbe) {
        return Some(other(59 + number as u16));
    }
    if let Some((_, code)) = NAMED.iter().find(|(named, _)| *named == keysym) {
        return Some(other(*code));
    }
    let character = char::from_u32(keysym).filter(char::is_ascii)?;
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let place = |row: &str| row.find(character).map(|place| first + place as u16);
        let (code, shift) =
            place(plain).map(|code| (code, false)).or(place(shifted).map(|code| (code, true)))?;
        Some(Key { code, shift: Some(shift), is_letter: character.is_ascii_alphabetic() })
    })
}

/// What codes of a PC's keyboard (set 1) behind 0xe0 mean.
const PREFIXED: [(u32, u16); 36] = [
    (0x10, 165),
    (0x19, 163),
    (0x1c, 96),
    (0x1d, 97),
    (0x20, 113),
    (0x21, 140),
    (0x22, 164),
    (0x24, 166),
    (0x2e, 114),
    (0x30, 115),
    (0x32, 172),
    (0x35, 98),
    (0x37, 99),
    (0x38, 100),
    (0x46, 119),
    (0x47, 102),
    (0x48, 103),
    (0x49, 104),
    (0x4b, 105),
    (0x4d, 106),
    (0x4f, 107),
    (0x50, 108),
    (0x51, 109),
    (0x52, 110),
    (0x53, 111),
    (0x5b, 125),
    (0x5c, 126),
    (0x5d, 127),
    (0x5e, 116),
    (0x5f, 142),
    (0x63, 143),
    (0x65, 217),
    (0x66, 156),
    (0x67, 173),
    (0x6a, 158),
    (0x6c, 155),
];

/// The key with a PC's code, whose bit 7 is for 0xe0 before it, if there is one (QEMU's extended key event).
pub fn of_scan_code(code: u32) -> Option<u16> {
    match code {
        0x01..=0x53 | 0x56..=0x58 => Some(code as u16),
        0x54 => Some(99),
        0x59 => Some(117),
        0x70 => Some(93),
        0x73 => Some(89),
        0x79 => Some(92),
        0x7b => Some(94),
        0x7d => Some(124),
        0x7e => Some(121),
        0x80..=0xff => PREFIXED.iter().find(|(known, _)| known | 0x80 == code).map(|(_, code)| *code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_character_of_ascii_has_a_key_of_its_own() {
        let keys: Vec<_> = (0x20..0x7f).map(|keysym| of_keysym(keysym).unwrap()).collect();
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{key:?} is there twice");
        }
        let key = |character: char| of_keysym(character.into()).map(|key| (key.code, key.shift));
        let known = [('1', 2), ('=', 13), ('q', 16), (']', 27), ('a', 30), ('`', 41), ('\\', 43), ('/', 53)];
        for (character, code) in known {
            assert_eq!(key(character), Some((code, Some(false))), "{character}");
        }
        let known = [('!', 2), ('+', 13), ('Q', 16), ('}', 27), ('"', 40), ('~', 41), ('|', 43), ('?', 53)];
        for (character, code) in known {
            assert_eq!(key(character), Some((code, Some(true))), "{character}");
        }
        assert_eq!(key(' '), Some((57, Some(false))));
    }

    #[test]
    fn named_keys_have_their_codes_and_others_none() {
        let code = |keysym| of_keysym(keysym).map(|key| key.code);
        let known = [(0xff0d, 28), (0xffbe, 59), (0xffc7, 68), (0xffc8, 87), (0xffe3, 29), (0xffff, 111)];
        for (keysym, known) in known {
            assert_eq!(code(keysym), Some(known), "{keysym:x}");
        }
        for keysym in [0, 0x1f, 0x7f, 0xe4, 0x20ac, 0xff00, 0xffca, u32::MAX] {
            assert_eq!(code(keysym), None, "{keysym:x}");
        }
    }

    #[test]
    fn a_pc_keyboards_codes_are_linuxs_or_have_one() {
        let known = [(1, 1), (0x1e, 30), (0x58, 88), (0x9c, 96), (0xc8, 103), (0xdb, 125), (0xb8, 100)];
        for (code, known) in known {
            assert_eq!(of_scan_code(code), Some(known), "{code:x}");
        }
        for code in [0, 0x55, 0x5a, 0x7f, 0x80, 0xaa, 0xff, 0x100, 0xe01d, u32::MAX] {
            assert_eq!(of_scan_code(code), None, "{code:x}");
        }
    }
}
