//! What the pages of all benchmarks have in common: they need nothing else, no network, no script.

use std::fmt::Write;

use super::facts::Facts;
use super::plot::Plot;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1a1a1a;--faint:#666;--rule:#ccc;--paper:#fff;--band:#f4f5f7;--accent:#e45756}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--faint:#a0a0a0;--rule:#444;--paper:#16181c;--band:#20242a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:84rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{margin:.4rem 0}
.faint{color:var(--faint)}.warn{border-left:4px solid var(--accent);padding:.1rem .8rem;background:var(--band)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem;white-space:nowrap}
td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--rule)}
td:nth-child(-n+2),th:nth-child(-n+2),td:last-child,th:last-child{text-align:left}
table.facts td{white-space:normal;overflow-wrap:anywhere}
tr.added td{color:var(--accent);font-weight:600}
code{font-size:.95em}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0;min-width:0}figure.long{grid-column:1/-1;max-width:48rem}figure.long svg{width:100%}
figcaption{font-size:.85rem;font-weight:600}
svg{max-width:100%;height:auto;display:block}
svg text{fill:var(--ink)}svg text[fill='#FFFFFF']{fill:#fff}
svg [stroke='#000000']{stroke:var(--ink)}svg [stroke='#CCCCCC']{stroke:var(--rule)}
";

/// Text in HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
    }
    escaped
}

/// The page up to its title.
///
/// # Errors
/// None, as it goes to memory.
pub fn begin(html: &mut String, title: &str) -> std::fmt::Result {
    html.push_str("<!doctype html>\n<html lang=en><meta charset=utf-8>\n");
    html.push_str("<meta name=viewport content='width=device-width,initial-scale=1'>\n");
    let title = escape(title);
    writeln!(html, "<title>{title}</title>\n<style>\n{STYLE}</style>\n<h1>{title}</h1>")
}

/// What makes the times worth less.
///
/// # Errors
/// None, as it goes to memory.
pub fn warnings(html: &mut String, host: &Facts) -> std::fmt::Result {
    host.warnings.iter().try_for_each(|warning| writeln!(html, "<p class=warn>{}</p>", escape(warning)))
}

/// Pictures side by side, or `long` ones on lines of their own.
///
/// # Errors
/// None, as it goes to memory.
pub fn figures(html: &mut String, plots: &[&Plot], long: impl Fn(&str) -> bool) -> std::fmt::Result {
    html.push_str("<div class=plots>\n");
    for plot in plots {
        let class = if long(&plot.title) { " class=long" } else { "" };
        let title = escape(&plot.title);
        writeln!(html, "<figure{class}><figcaption>{title}</figcaption>{}</figure>", plot.svg)?;
    }
    html.push_str("</div>\n");
    Ok(())
}

/// Names and what there is to say of them, if there are any.
///
/// # Errors
/// None, as it goes to memory.
pub fn list<'a>(
    html: &mut String,
    title: &str,
    rows: impl Iterator<Item = (&'a str, &'a str)>,
) -> std::fmt::Result {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    writeln!(html, "<h2>{title}</h2>\n<div class=wide><table class=facts>")?;
    for (name, value) in rows {
        writeln!(html, "<tr><td>{}<td>{}</tr>", escape(name), escape(value))?;
    }
    html.push_str("</table></div>\n");
    Ok(())
}

/// The host, with what else there is to say of it.
///
/// # Errors
/// None, as it goes to memory.
pub fn facts(html: &mut String, host: &Facts, more: &[(&str, &str)]) -> std::fmt::Result {
    let rate = format!("{} kHz", host.tsc_khz);
    let rows = [
        ("processor", host.cpu.as_str()),
        ("microcode", &host.microcode),
        ("kernel", &host.kernel),
        ("KVM", &host.kvm.module),
        ("itself a guest", if host.nested { "yes" } else { "no" }),
        ("time-stamp counter", &rate),
    ];
    let more = more.iter().copied();
    let named = host.kvm.params.iter().chain(&host.settings);
    let named = named.map(|(name, value)| (name.as_str(), value.as_str()));
    list(html, "The host", rows.into_iter().chain(more).chain(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_calls_itself_is_no_markup() {
        assert_eq!(escape("<b>&\"'"), "&lt;b&gt;&amp;&quot;&#39;");
    }
}
