//! Times as people read them.

/// A time with three digits that count and a unit.
pub fn time(value: f64, unit: &str) -> String {
    if unit != "ns" {
        return format!("{value:.0}");
    }
    let (value, unit) = match value.abs() {
        0.0 => return "0 ns".to_owned(),
        ns if ns < 1000.0 => (value, "ns"),
        ns if ns < 1e6 => (value / 1e3, "us"),
        ns if ns < 1e9 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let digits = match value.abs() {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// The last of several percentiles, or that there is none.
pub fn tail(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "n/a".to_owned(), |value| time(value, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (value, expected) in [
            (0.0, "0 ns"),
            (9.99, "9.99 ns"),
            (55.25, "55.2 ns"),
            (999.4, "999 ns"),
            (9573.0, "9.57 us"),
            (-1500.0, "-1.50 us"),
            (12_345_678.0, "12.3 ms"),
            (2e9, "2.00 s"),
        ] {
            assert_eq!(time(value, "ns"), expected);
        }
        assert_eq!(time(3163.4, "ticks"), "3163");
    }
}
