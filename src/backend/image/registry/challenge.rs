//! What a registry says of how to log in: `WWW-Authenticate` (RFC 9110, section 11.6.1; the distribution project's token
//! specification).

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token, which a server gives out.
    Bearer {
        /// The server's address.
        realm: String,
        /// What the server calls the registry.
        service: Option<String>,
    },
}

impl Challenge {
    /// The best that these values of the header offer.
    pub(super) fn of<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut best = None;
        for (scheme, parameters) in values.flat_map(parse) {
            let value = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                return Some(Self::Bearer { realm, service: value("service") });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                best = Some(Self::Basic);
            }
        }
        best
    }
}

/// Schemes with their parameters.
type Schemes = Vec<(String, Vec<(String, String)>)>;

/// Reads one value of the header; what makes no sense ends it.
fn parse(text: &str) -> Schemes {
    let mut schemes = Schemes::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        match after.trim_start().strip_prefix('=') {
            Some(after) => {
                let Some((value, after)) = value(after.trim_start()) else { break };
                let Some((_, parameters)) = schemes.last_mut() else { break };
                parameters.push((word.to_owned(), value));
                rest = after;
            }
            None => {
                schemes.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    schemes
}

/// The token that a text begins with, and the rest.
fn token(text: &str) -> (&str, &str) {
    let is_token = |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char);
    text.split_at(text.find(|char| !is_token(char)).unwrap_or(text.len()))
}

/// The value that a text begins with, a token or in quotes, and the rest.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_of_real_registries_are_understood() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (values, expected) in [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b,c""#,
                ][..],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (&[r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (&["Basic"], Some(Challenge::Basic)),
            (&["Basic realm=x", r#"bearer Realm = "https://a/" , error="x\"y""#], bearer("https://a/", None)),
            (&[r#"Basic realm="a", Bearer realm="https://b/",service=c"#], bearer("https://b/", Some("c"))),
            (&["Bearer service=a"], None),
            (&["Negotiate", "realm=x"], None),
            (&[r#"Bearer realm="https://open"#], None),
            (&["", ",,,", "=", "\"", "Bearer realm=\"\\"], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::of(values.iter().copied()), expected, "{values:?}");
        }
    }

    #[test]
    fn no_header_makes_the_reader_panic_or_go_on_for_ever() {
        const PIECES: [&str; 14] = [
            "Bearer", "Basic", "realm", "=", "\"", "\\", ",", " ", "\t", "x", "ä", "service=", "\"a b\"", ";",
        ];
        let mut random: u32 = 3;
        for _ in 0..5_000 {
            let mut text = String::new();
            for _ in 0..12 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text += PIECES[(random >> 8) as usize % PIECES.len()];
            }
            let _ = Challenge::of([text.as_str()].into_iter());
        }
    }
}
