//! A process's own limits: `/proc/PID/limits` (proc(5), getrlimit(2)).

use serde::Serialize;

/// A resource limit.
#[derive(Debug, PartialEq, Serialize)]
pub struct Limit {
    /// What it is of, in the kernel's words without `Max`.
    pub name: String,
    /// What holds; none if there is no limit.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
    /// `bytes`, `files` and so on; nothing for a plain number.
    pub unit: String,
}

/// Where the columns begin; each is as wide as the kernel's format says, for names and numbers of any length that there is.
const SOFT: usize = 26;

/// All of them; what is no line of such a file is passed over.
pub fn parse(text: &str) -> Vec<Limit> {
    text.lines().filter_map(limit).collect()
}

fn limit(line: &str) -> Option<Limit> {
    let (name, rest) = line.split_at_checked(SOFT)?;
    let name = name.strip_prefix("Max ")?.trim().to_owned();
    let mut words = rest.split_whitespace();
    let (soft, hard) = (value(words.next()?)?, value(words.next()?)?);
    Some(Limit { name, soft, hard, unit: words.next().unwrap_or_default().to_owned() })
}

fn value(word: &str) -> Option<Option<u64>> {
    match word {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_by_their_columns() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 unlimited            files     \n\
                    Max nice priority         0                    0                    \n";
        let limits = parse(text);
        assert_eq!(limits.len(), 2);
        let files = Limit { name: "open files".into(), soft: Some(1024), hard: None, unit: "files".into() };
        assert_eq!((&limits[0], limits[1].unit.as_str()), (&files, ""));
        assert!(parse(&std::fs::read_to_string("/proc/self/limits").unwrap()).len() >= 16);
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in [
            "",
            "Max",
            "Max open files            x y z",
            "Max \u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}",
            "Max a                     1",
        ] {
            assert_eq!(parse(text), [], "{text:?}");
        }
    }
}
