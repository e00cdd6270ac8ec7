//! A line of a shell as words.

/// The words of a shell's line, up to what ends its first command; nothing if a quote is open at its end.
pub fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for char in line.chars() {
        match (quote, char) {
            (Some(open), char) if char == open => quote = None,
            (Some(_), char) => word.get_or_insert_default().push(char),
            (None, '\'' | '"') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ';' | '|' | '&' | '>' | '<') => break,
            (None, ' ') => words.extend(word.take()),
            (None, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word.take());
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_end_where_a_shell_ends_the_first_command() {
        let of = |line: &str| words(line).map(|words| words.join("+"));
        assert_eq!(of("kite run 'a b'  # c").as_deref(), Some("kite+run+a b"));
        assert_eq!(of("kite run -- x; echo $?").as_deref(), Some("kite+run+--+x"));
        assert_eq!(of("kite man > file").as_deref(), Some("kite+man"));
        assert_eq!(of("kite run 'a"), None);
    }
}
