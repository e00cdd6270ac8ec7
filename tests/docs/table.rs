//! Tables of a page.

/// The rows of the tables in a text: their cells without the blanks around them.
pub fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?.replace(r"\|", "\u{0}");
        Some(inner.split('|').map(|cell| cell.replace('\u{0}', "|").trim().to_owned()).collect::<Vec<_>>())
    };
    text.lines().filter_map(cells).filter(|row| !row.iter().all(|cell| cell.starts_with("---"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_a_table_may_have_bars() {
        assert_eq!(rows("| a | b |\n|---|---|\n| `x\\|y` | |\n"), [vec!["a", "b"], vec!["`x|y`", ""]]);
    }
}
