//! Domain names as DHCP and routers send them (RFC 1035 §3.1, §4.1.4), and those that may be in a resolver's file.

/// The longest name (RFC 1035 §2.3.4).
const LONGEST: usize = 253;
/// The most names that are taken: what old resolvers search (resolv.conf(5), `search`).
const MOST: usize = 6;
/// The most pointers in one name.
const MOST_POINTERS: usize = 16;

/// Whether it is a name that a resolver's file can have.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=LONGEST).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with(['.', '-'])
}

/// The names in `list`, one after another. What is no name is left out, and what follows a broken one.
pub(super) fn all(list: &[u8]) -> Vec<String> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < list.len() && found.len() < MOST {
        let Some((name, next)) = read(list, at) else { break };
        at = next;
        if is_name(&name) {
            found.push(name);
        }
    }
    found
}

/// The name at `start`, and where the next one is.
fn read(list: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut name, mut at, mut end, mut pointers) = (String::new(), start, None, 0);
    loop {
        match *list.get(at)? {
            0 => return Some((name, end.unwrap_or(at + 1))),
            length @ 1..=63 => {
                let label = list.get(at + 1..at + 1 + usize::from(length))?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(std::str::from_utf8(label).ok()?);
                at += 1 + label.len();
            }
            high @ 0xc0.. => {
                end.get_or_insert(at + 2);
                at = usize::from(high & 0x3f) << 8 | usize::from(*list.get(at + 1)?);
                pointers += 1;
            }
            _ => return None,
        }
        if name.len() > LONGEST || pointers > MOST_POINTERS {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_each_other_and_point_back() {
        let list = b"\x01a\x07example\x03org\0\x01b\xc0\x02\x01c\0";
        assert_eq!(all(list), ["a.example.org", "b.example.org", "c"]);
    }

    #[test]
    fn hostile_names_end_the_list_or_are_left_out() {
        for list in [&b"\xc0\x00"[..], b"\x01a\xc0\x00", b"\x3fa", b"\x40a", b"\xc0", b"\x01", b"\xc0\x09\0"]
        {
            assert_eq!(all(list), [""; 0], "{list:?}");
        }
        assert_eq!(all(b"\x03a\nb\0\x01c\0\0"), ["c"]);
        assert_eq!(all(&b"\x01a\0".repeat(100)).len(), MOST);
        let long = [b"\x3f".to_vec(), vec![b'x'; 63]].concat().repeat(8);
        assert_eq!(all(&[&long[..], b"\0"].concat()), [""; 0]);
    }

    #[test]
    fn only_what_can_be_in_a_file_is_a_name() {
        assert!(is_name("example.org") && is_name("a_b-c"));
        for name in ["", ".", "a b", "a\nnameserver", "-x", "a/b", "\u{e4}"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
