//! The table as a picture (SVG 1.1): bars on a logarithmic scale for what it costs, and for what is within reach.

use super::{Cell, Row};

const WIDTH: u32 = 980;
const LABEL: u32 = 310;
const LINE: u32 = 26;
const MARGIN: u32 = 10;
/// What is within reach, what is not, and what it costs.
const COLOURS: [&str; 3] = ["#d9603b", "#3b8a5a", "#4477aa"];
const STYLE: &str = "text{font:13px sans-serif;fill:#222}.head{font-weight:bold}.cell{fill:#fff}";

/// The picture.
pub fn svg(names: &[&str], rows: &[Row]) -> String {
    let height = 2 * MARGIN + LINE * (rows.len() as u32 + 1);
    let column = (WIDTH - LABEL - MARGIN) / names.len().max(1) as u32;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>A command as a process, in a container and in virtual machines</title>\n\
         <style>{STYLE}</style>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    let left = |index: usize| LABEL + column * index as u32;
    for (index, name) in names.iter().enumerate() {
        svg += &text(left(index), MARGIN, "head", name);
    }
    for (line, row) in rows.iter().enumerate() {
        let top = MARGIN + LINE * (line as u32 + 1);
        svg += &text(MARGIN, top, "", &row.what.replace('`', ""));
        for (index, cell) in row.cells.iter().enumerate() {
            svg += &match cell {
                Cell::Figure(value, shown) => {
                    let width = (f64::from(column - 8) * part(*value, row)) as u32;
                    bar(left(index), top, width, COLOURS[2], 0.35) + &text(left(index) + 4, top, "", shown)
                }
                Cell::Reach(within, shown) => {
                    let colour = COLOURS[usize::from(!within)];
                    bar(left(index), top, column - 8, colour, 1.0)
                        + &text(left(index) + 4, top, "cell", shown)
                }
            };
        }
    }
    svg + "</svg>\n"
}

/// How much of the widest bar a figure takes, on a scale that begins at a tenth of the least.
fn part(value: f64, row: &Row) -> f64 {
    let figures = row.cells.iter().filter_map(|cell| match cell {
        Cell::Figure(value, _) => Some(value.max(1e-6).ln()),
        Cell::Reach(..) => None,
    });
    let (least, most) = figures.fold((f64::MAX, f64::MIN), |(least, most), it| (least.min(it), most.max(it)));
    let start = least - 10f64.ln();
    ((value.max(1e-6).ln() - start) / (most - start)).clamp(0.0, 1.0)
}

fn bar(x: u32, top: u32, width: u32, colour: &str, opacity: f64) -> String {
    let height = LINE - 4;
    format!(
        "<rect x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"3\" fill=\"{colour}\" \
         fill-opacity=\"{opacity}\"/>\n"
    )
}

fn text(x: u32, top: u32, class: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x}\" y=\"{}\" class=\"{class}\">{text}</text>\n", top + 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let figure = |value: f64| Cell::Figure(value, format!("{value}"));
        vec![
            Row { what: "`a < b`".to_owned(), cells: vec![figure(1.0), figure(1000.0)] },
            Row {
                what: "c".to_owned(),
                cells: vec![Cell::Reach(true, "yes".into()), Cell::Reach(false, "no".into())],
            },
        ]
    }

    #[test]
    fn a_picture_has_every_cell() {
        let svg = svg(&["x", "y & z"], &rows());
        for text in [">x<", ">y &amp; z<", ">a &lt; b<", ">1<", ">1000<", ">yes<", ">no<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        // A background, two bars, two fields.
        assert_eq!(svg.matches("<rect ").count(), 5);
    }

    #[test]
    fn bars_grow_with_their_figures_and_none_is_nothing() {
        let rows = rows();
        assert!(part(1.0, &rows[0]) > 0.1 && part(1.0, &rows[0]) < part(1000.0, &rows[0]));
        assert!((part(1000.0, &rows[0]) - 1.0).abs() < 1e-9);
        assert!(part(0.0, &rows[0]) >= 0.0);
    }
}
