//! The report as one page that needs nothing else.

use std::fmt::Write;

use super::plots;
use super::report::Report;
use super::table::words;
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
    let qemu = report.run.qemu.as_ref().map(|qemu| format!("; {qemu}, machine microvm")).unwrap_or_default();
    let how = format!("{} boots each, in turns{qemu}", report.run.runs);
    report.head.begin(&mut html, "Boots", &how)?;
    html.push_str(
        "<p>All times are from just before the monitor's process is made. <b>first instruction</b>: kite enters the \
         guest. <b>first output</b>: a byte on the serial port. <b>user space</b>: the first word of kite's own \
         <code>/init</code>. <b>power off</b>: the monitor's process has ended. kite has its trace on.</p>\n",
    );
    let bars = plots::timelines(report)?;
    figures(&mut html, &bars.iter().collect::<Vec<_>>(), |_| true)?;
    html.push_str("<h2>Times</h2>\n");
    table(&mut html, report)?;
    html.push_str("<h2>Distributions and boots</h2>\n");
    html.push_str("<p class=faint>Hollow points: the machine below took CPU time meanwhile.</p>\n");
    let rest: Vec<Plot> = plots::each(report)?;
    figures(&mut html, &rest.iter().collect::<Vec<_>>(), |_| false)?;
    let skipped: Vec<_> = report
        .skipped
        .iter()
        .map(|it| {
            let parts = [
                Some(it.id.clone()),
                it.path.map(|way| way.name().to_owned()),
                it.stage.as_deref().map(words),
            ];
            (parts.into_iter().flatten().collect::<Vec<_>>().join(", "), it.reason.as_str())
        })
        .collect();
    list(&mut html, "Not measured", skipped.iter().map(|(name, reason)| (name.as_str(), *reason)))?;
    let kernels = report.run.kernels.iter().map(|it| (it.id.as_str(), it.cmdline.as_str()));
    list(&mut html, "The kernels' command lines", kernels)?;
    facts(&mut html, &report.head.host, &[])?;
    html.push_str("</html>\n");
    Ok(html)
}

fn table(html: &mut String, report: &Report) -> std::fmt::Result {
    html.push_str(
        "<div class=wide><table>\n<tr><th>from exec to<th><th>p50<th>95% interval<th>p90<th>p99<th>max",
    );
    html.push_str("<th>mean<th>n<th>notes</tr>\n");
    for kernel in &report.run.kernels {
        let version = kernel.version.as_ref().map(|version| format!(", Linux {version}")).unwrap_or_default();
        writeln!(html, "<tr><td colspan=10><code>{}</code>{}</tr>", escape(&kernel.id), escape(&version))?;
        let mut last = "";
        for row in report.of(&kernel.id) {
            let stage = if row.stage == last { String::new() } else { words(&row.stage) };
            last = &row.stage;
            let show = |value: f64| time(value, &row.unit);
            let [low, high] = row.ci95_p50.map(show);
            write!(html, "<tr><td>{}<td>{}", escape(&stage), row.path.name())?;
            write!(
                html,
                "<td>{}<td>{low} – {high}<td>{}<td>{}",
                show(row.p50),
                show(row.p90),
                show(row.p99)
            )?;
            let flags = row.flags.join(", ");
            writeln!(
                html,
                "<td>{}<td>{}<td>{}<td>{}</tr>",
                show(row.max),
                show(row.mean),
                row.n,
                escape(&flags)
            )?;
            if let (Some(more), "qemu") = (report.difference(row), row.path.name()) {
                let [value, low, high] =
                    [more.value, more.ci95[0], more.ci95[1]].map(|it| time(it, &more.unit));
                writeln!(
                    html,
                    "<tr class=added><td><td>more<td>{value}<td>{low} – {high}<td colspan=6></tr>"
                )?;
            }
        }
    }
    html.push_str("</table></div>\n");
    Ok(())
}
