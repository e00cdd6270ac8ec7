//! The report as one page that needs nothing else: no network, no script.

use std::fmt::Write;

use super::plots;
use super::report::Report;
use super::table::part;
use crate::cmd::bench::html::{escape, facts, figures, list};
use crate::cmd::bench::measured::Way;
use crate::cmd::bench::plot::Plot;
use crate::cmd::bench::time::time;

/// The whole page.
///
/// # Errors
/// A plot cannot be drawn.
pub fn page(report: &Report) -> anyhow::Result<String> {
    let mut html = String::new();
    let priority = if report.run.rt { ", real-time priority" } else { "" };
    let how = format!("{} blocks on CPUs {:?}{priority}", report.run.blocks, report.run.cpus);
    report.head.begin(&mut html, "VM exits", &how)?;
    html.push_str(
        "<p><b>raw</b> is a bare loop around KVM_RUN that answers nothing: what the hardware and KVM take. <b>vmm</b> is \
         kite's own loop with its buses and a device. Their difference is the part that a virtual machine monitor has \
         in its hands.</p>\n",
    );
    let plots = plots::all(report)?;
    let (first, rest): (Vec<&Plot>, Vec<&Plot>) = plots.iter().partition(|plot| is_first(&plot.title));
    figures(&mut html, &first, is_long)?;
    html.push_str("<h2>Times</h2>\n");
    table(&mut html, report)?;
    html.push_str(
        "<h2>Distributions and blocks</h2>\n<p class=faint>Hollow points: the thread lost its CPU.</p>\n",
    );
    figures(&mut html, &rest, is_long)?;
    let skipped = report.skipped.iter().map(|it| (it.id.as_str(), it.reason.as_str()));
    list(&mut html, "Not measured on this host", skipped)?;
    let clock = &report.clock;
    let grain = format!("{} ns", clock.quantum_ns);
    let same = if clock.offset_zero { "yes" } else { "no" };
    facts(
        &mut html,
        &report.head.host,
        &[("the counter's grain", &grain), ("guests have the host's clock", same)],
    )?;
    html.push_str("</html>\n");
    Ok(html)
}

/// Whether a plot is not of one payload alone.
fn is_first(title: &str) -> bool {
    !title.ends_with(": quantiles") && !title.ends_with(": medians of the blocks")
}

fn is_long(title: &str) -> bool {
    title.contains("monitors") || title.contains("adds")
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
