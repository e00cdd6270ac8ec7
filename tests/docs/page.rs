//! A page of the documentation as data: its commands, headings and links. CommonMark, and GitHub's anchors.

/// The parts of a page that tests read.
#[derive(Debug, Default)]
pub struct Page {
    /// The lines of indented blocks, which are commands.
    pub commands: Vec<String>,
    /// What is between backquotes in text.
    pub inline: Vec<String>,
    /// The anchors of its headings.
    pub anchors: Vec<String>,
    /// Where its links lead.
    pub links: Vec<String>,
    /// Its text without blocks of code.
    pub text: String,
}

impl Page {
    /// Reads a page.
    pub fn read(source: &str) -> Self {
        let mut page = Self::default();
        let mut is_fenced = false;
        for line in source.lines() {
            if line.starts_with("```") {
                is_fenced = !is_fenced;
            } else if is_fenced {
            } else if let Some(command) = line.strip_prefix("    ") {
                page.commands.push(command.to_owned());
            } else {
                if line.starts_with('#') {
                    let anchor = anchor(line.trim_start_matches('#'));
                    let same = page.anchors.iter().filter(|it| **it == anchor).count();
                    page.anchors.push(if same == 0 { anchor } else { format!("{anchor}-{same}") });
                }
                page.text += line;
                page.text.push('\n');
            }
        }
        let joined = page.text.replace('\n', " ");
        page.inline = joined.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        // What is between backquotes is no link.
        let prose: String = joined.split('`').step_by(2).collect();
        let ends = prose.split("](").skip(1);
        page.links = ends.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect();
        page
    }
}

/// GitHub's anchor of a heading: small letters, hyphens for blanks, and no other signs.
fn anchor(heading: &str) -> String {
    let small = heading.trim().to_lowercase();
    let signs = small.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    signs.map(|char| if char == ' ' { '-' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_anchors_and_links_of_a_page_are_found() {
        let page = Page::read(
            "# A b, c's `d`/1\ntext `kite run` and\n[link](x.md#y) `no [link](z)`\n\n    kite man\n\n\
             ```text\n    output\n# none\n```\n# A b, c's d/1\n",
        );
        assert_eq!(page.anchors, ["a-b-cs-d1", "a-b-cs-d1-1"]);
        assert_eq!(
            (&page.commands[..], &page.links[..]),
            (&["kite man".to_owned()][..], &["x.md#y".to_owned()][..])
        );
        assert_eq!(page.inline, ["d", "kite run", "no [link](z)"]);
    }
}
