//! The report as one page that needs nothing else: no network, no script.

use std::fmt::Write;

use super::plots;
use super::report::Report;
use super::table::{part, time};

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
fn escape(text: &str) -> String {
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

/// The whole page.
///
/// # Errors
/// A plot cannot be drawn.
pub fn page(report: &Report) -> anyhow::Result<String> {
    let mut html = String::new();
    let host = &report.host;
    html.push_str("<!doctype html>\n<html lang=en><meta charset=utf-8>\n");
    html.push_str("<meta name=viewport content='width=device-width,initial-scale=1'>\n");
    let title = format!("VM exits: {}", escape(&host.cpu));
    writeln!(html, "<title>{title}</title>\n<style>\n{STYLE}</style>\n<h1>{title}</h1>")?;
    writeln!(
        html,
        "<p class=faint>kite {}, {}; Linux {}, {}; {} blocks on CPUs {:?}{}</p>",
        escape(&report.tool.version),
        escape(&report.when),
        escape(&host.kernel),
        escape(&host.kvm.module),
        report.run.blocks,
        report.run.cpus,
        if report.run.rt { ", real-time priority" } else { "" }
    )?;
    for warning in &host.warnings {
        writeln!(html, "<p class=warn>{}</p>", escape(warning))?;
    }
    html.push_str(
        "<p><b>raw</b> is a bare loop around KVM_RUN that answers nothing: what the hardware and KVM take. <b>vmm</b> is \
         kite's own loop with its buses and a device. Their difference is the part that a virtual machine monitor has \
         in its hands.</p>\n",
    );
    let plots = plots::all(report)?;
    let (first, rest): (Vec<_>, Vec<_>) = plots.iter().partition(|plot| is_first(&plot.title));
    figures(&mut html, &first)?;
    html.push_str("<h2>Times</h2>\n");
    table(&mut html, report)?;
    html.push_str(
        "<h2>Distributions and blocks</h2>\n<p class=faint>Hollow points: the thread lost its CPU.</p>\n",
    );
    figures(&mut html, &rest)?;
    skipped(&mut html, report)?;
    facts(&mut html, report)?;
    html.push_str("</html>\n");
    Ok(html)
}

/// Whether a plot is not of one payload alone.
fn is_first(title: &str) -> bool {
    !title.ends_with(": quantiles") && !title.ends_with(": medians of the blocks")
}

fn figures(html: &mut String, plots: &[&plots::Plot]) -> std::fmt::Result {
    html.push_str("<div class=plots>\n");
    for plot in plots {
        let long =
            if plot.title.contains("monitors") || plot.title.contains("adds") { " class=long" } else { "" };
        let title = escape(&plot.title);
        writeln!(html, "<figure{long}><figcaption>{title}</figcaption>{}</figure>", plot.svg)?;
    }
    html.push_str("</div>\n");
    Ok(())
}

fn table(html: &mut String, report: &Report) -> std::fmt::Result {
    html.push_str(
        "<div class=wide><table>\n<tr><th>payload<th><th>p50<th>95% interval<th>p90<th>p99<th>p99.9<th>max",
    );
    html.push_str("<th>mean<th>n<th>exits<th>notes</tr>\n");
    let mut last = "";
    for row in &report.results {
        let name = if row.id == last { "" } else { row.id.as_str() };
        last = &row.id;
        write!(html, "<tr><td><code>{}</code><td>{}", escape(name), escape(part(report, row)))?;
        let show = |value: f64| time(value, &row.unit);
        let tail = row.p999.map_or_else(|| "n/a".to_owned(), show);
        let [low, high] = row.ci95_p50.map(show);
        write!(html, "<td>{}<td>{low} – {high}<td>{}<td>{}", show(row.p50), show(row.p90), show(row.p99))?;
        write!(html, "<td>{tail}<td>{}<td>{}<td>{}", show(row.max), show(row.mean), row.n)?;
        let exits = row.exits_per_op.map_or_else(|| "n/a".to_owned(), |exits| format!("{exits:.2}"));
        writeln!(html, "<td>{exits}<td>{}</tr>", escape(&row.flags.join(", ")))?;
        if let (Some(added), "vmm") = (report.added(&row.id), row.path.name()) {
            let [low, high] = added.ci95.map(|bound| time(bound, &added.unit));
            let value = time(added.value, &added.unit);
            writeln!(
                html,
                "<tr class=added><td><td>kite adds<td>{value}<td>{low} – {high}<td colspan=8></tr>"
            )?;
        }
    }
    html.push_str("</table></div>\n");
    Ok(())
}

fn skipped(html: &mut String, report: &Report) -> std::fmt::Result {
    if report.skipped.is_empty() {
        return Ok(());
    }
    html.push_str("<h2>Not measured on this host</h2>\n<div class=wide><table class=facts>\n");
    for skipped in &report.skipped {
        writeln!(html, "<tr><td><code>{}</code><td>{}</tr>", escape(&skipped.id), escape(&skipped.reason))?;
    }
    html.push_str("</table></div>\n");
    Ok(())
}

fn facts(html: &mut String, report: &Report) -> std::fmt::Result {
    let host = &report.host;
    let mut rows = vec![
        ("processor", host.cpu.clone()),
        ("microcode", host.microcode.clone()),
        ("kernel", host.kernel.clone()),
        ("KVM", host.kvm.module.clone()),
        ("itself a guest", if host.nested { "yes" } else { "no" }.to_owned()),
        ("time-stamp counter", format!("{} kHz, grain {} ns", host.tsc_khz, report.clock.quantum_ns)),
        ("guests have the host's clock", if report.clock.offset_zero { "yes" } else { "no" }.to_owned()),
    ];
    rows.extend(host.kvm.params.iter().map(|(name, value)| (name.as_str(), value.clone())));
    rows.extend(host.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
    html.push_str("<h2>The host</h2>\n<div class=wide><table class=facts>\n");
    for (name, value) in rows {
        writeln!(html, "<tr><td>{}<td>{}</tr>", escape(name), escape(&value))?;
    }
    html.push_str("</table></div>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_calls_itself_is_no_markup() {
        assert_eq!(escape("<b>&\"'"), "&lt;b&gt;&amp;&quot;&#39;");
    }
}
