//! The plots, as SVG.

use plotters::prelude::*;

use super::report::{Measured, Report};
use super::sample::Path;
use crate::cmd::bench::measured::BlockMeasured;
use crate::cmd::bench::plot::{
    Bars, INK, Plot, SIZE, STAGES, colour, distribution, draw_times, drift, plot, text,
};
use crate::cmd::bench::time::time;

/// The width of one that is as wide as the page.
const WIDE: u32 = 600;

/// All of them.
///
/// # Errors
/// One cannot be drawn.
pub fn all(report: &Report) -> anyhow::Result<Vec<Plot>> {
    let mut plots = Vec::new();
    plots.extend(added(report).transpose()?);
    for id in ["ioev.rt.spin", "ioev.rt.epoll"] {
        plots.extend(stages(report, id).transpose()?);
    }
    plots.extend(peers(report).transpose()?);
    let mut ids: Vec<&str> = report.results.iter().map(|row| row.id.as_str()).collect();
    ids.dedup();
    for id in &ids {
        plots.extend(distribution(id, rows(report, id)).transpose()?);
    }
    for id in &ids {
        plots.extend(drift(format!("{id}: medians of the blocks"), rows(report, id), is_calm).transpose()?);
    }
    Ok(plots)
}

fn rows<'a>(report: &'a Report, id: &'a str) -> impl Iterator<Item = &'a Measured> {
    report.results.iter().filter(move |row| row.id == id && row.stage == "total")
}

/// Whether the thread kept its CPU.
fn is_calm(block: &BlockMeasured) -> bool {
    block.nivcsw * 1000 <= block.n
}

/// Of what exits to user space, the bare loop's median, and on top of it what kite adds, with its confidence interval.
fn added(report: &Report) -> Option<anyhow::Result<Plot>> {
    let bars: Vec<_> = report
        .derived
        .iter()
        .filter_map(|added| {
            let raw = rows(report, &added.id).find(|row| row.path == Path::Raw)?;
            Some((added.id.as_str(), raw.p50, added))
        })
        .filter(|(_, raw, _)| *raw > 0.0)
        // Sixteen exits would make all others short.
        .filter(|(id, ..)| *id != "pio.rep16")
        .collect();
    let unit = &bars.first()?.2.unit;
    let most =
        bars.iter().map(|(_, raw, added)| raw + added.ci95[1].max(added.value)).fold(0.0, f64::max) * 1.05;
    let size = (WIDE, 60 + 22 * bars.len() as u32);
    Some(plot("What kite adds to the bare loop (median, 95% interval)".to_owned(), size, |area| {
        let count = bars.len();
        let plane = Bars { count, most, unit, labels: 8, room: (100, 10) }.draw(area)?;
        for (index, (id, raw, added)) in bars.iter().enumerate() {
            let y = index as f64;
            let bar = |from, to, colour: RGBColor| {
                Rectangle::new([(from, y + 0.2), (to, y + 0.8)], colour.filled())
            };
            plane.draw(&bar(0.0, *raw, colour(Path::Raw)))?;
            plane.draw(&bar(*raw, raw + added.value.max(0.0), colour(Path::Vmm)))?;
            let [low, high] = added.ci95.map(|bound| raw + bound);
            plane.draw(&PathElement::new([(low, y + 0.5), (high, y + 0.5)], INK.stroke_width(2)))?;
            let (x, top) = plane.map_coordinate(&(0.0, y + 0.5));
            let style = text();
            area.draw_text(id, &style, (x - 96, top - 5))?;
            let sign = if added.value < 0.0 { "" } else { "+" };
            let value = format!("{sign}{}", time(added.value, unit));
            area.draw_text(&value, &style.color(&WHITE), (x + 6, top - 5))?;
        }
        Ok(())
    }))
}

/// A round trip's parts.
fn stages(report: &Report, id: &str) -> Option<anyhow::Result<Plot>> {
    let names = ["kick_to_thread", "thread_to_irqfd", "irqfd_to_isr"];
    let find = |stage: &&str| report.results.iter().find(|row| row.id == id && row.stage == *stage);
    let parts: Vec<_> = names.iter().filter_map(find).collect();
    let unit = parts.first()?.unit.as_str();
    let total: f64 = parts.iter().map(|row| row.p50).sum();
    if total <= 0.0 {
        return None;
    }
    Some(plot(format!("{id}: doorbell, thread, interrupt (medians)"), (SIZE.0, 180), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(30)
            .build_cartesian_2d(0.0..total, 0.0..3.0)?;
        draw_times(&mut chart, 5, unit)?;
        let mut from = 0.0;
        for ((row, colour), line) in parts.iter().zip(STAGES).zip(0i32..) {
            let bar = Rectangle::new([(from, 0.1), (from + row.p50, 1.0)], colour.filled());
            chart.draw_series([bar])?;
            from += row.p50;
            let key = format!("{}: {}", row.stage.replace('_', " "), time(row.p50, unit));
            area.draw(&Rectangle::new([(30, 14 + 20 * line), (40, 24 + 20 * line)], colour.filled()))?;
            area.draw_text(&key, &text(), (48, 11 + 20 * line))?;
        }
        Ok(())
    }))
}

/// The same guests under other monitors.
fn peers(report: &Report) -> Option<anyhow::Result<Plot>> {
    let unit = report.peers.first()?.unit.as_str();
    let most = report.peers.iter().map(|peer| peer.p50).fold(0.0, f64::max) * 1.3;
    let size = (WIDE, 60 + 22 * report.peers.len() as u32);
    Some(plot("The same guest under other monitors (median)".to_owned(), size, |area| {
        let count = report.peers.len();
        let plane = Bars { count, most, unit, labels: 8, room: (150, 10) }.draw(area)?;
        for (index, peer) in report.peers.iter().enumerate() {
            let y = index as f64;
            let colour = colour(if peer.name.starts_with("kite") { Path::Vmm } else { Path::Raw });
            plane.draw(&Rectangle::new([(0.0, y + 0.2), (peer.p50, y + 0.8)], colour.filled()))?;
            let (x, top) = plane.map_coordinate(&(0.0, y + 0.5));
            let style = text();
            area.draw_text(&format!("{} {}", peer.id, peer.name), &style, (x - 142, top - 5))?;
            let (end, _) = plane.map_coordinate(&(peer.p50, y));
            area.draw_text(&time(peer.p50, unit), &style, (end + 4, top - 5))?;
        }
        Ok(())
    }))
}
