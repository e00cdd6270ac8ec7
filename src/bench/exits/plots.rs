//! The plots, as SVG.

use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Measured, Report};
use super::sample::Path;
use super::table::time;

/// Width and height: small enough that the text is legible on a phone.
const SIZE: (u32, u32) = (440, 300);
/// The width of one that is as wide as the page.
const WIDE: u32 = 600;
const RAW: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const VMM: RGBColor = RGBColor(0xe4, 0x57, 0x56);
const STAGES: [RGBColor; 3] =
    [RGBColor(0x4c, 0x78, 0xa8), RGBColor(0xf5, 0x8b, 0x18), RGBColor(0x54, 0xa2, 0x4b)];
const FONT: (&str, i32) = ("sans-serif", 14);
/// What the page's style sheet gives the colour of its text.
const INK: RGBColor = BLACK;
const GRID: RGBColor = RGBColor(0xcc, 0xcc, 0xcc);

/// A picture and what it shows.
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// The picture.
    pub svg: String,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn plot(title: String, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> anyhow::Result<Plot> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let cannot = |error: &dyn std::fmt::Display| anyhow!("cannot draw {title}: {error}");
        draw(&area).map_err(|error| cannot(&error))?;
        area.present().map_err(|error| cannot(&error))?;
    }
    Ok(Plot { title, svg })
}

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
        plots.extend(distribution(report, id).transpose()?);
    }
    for id in &ids {
        plots.extend(drift(report, id).transpose()?);
    }
    Ok(plots)
}

fn rows<'a>(report: &'a Report, id: &'a str) -> impl Iterator<Item = &'a Measured> {
    report.results.iter().filter(move |row| row.id == id && row.stage == "total")
}

fn colour(path: Path) -> RGBColor {
    match path {
        Path::Raw => RAW,
        Path::Vmm => VMM,
    }
}

/// A range that holds all values with some room, of a logarithmic axis.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (mut least, mut most) = (f64::MAX, 0.0f64);
    for value in values.filter(|value| *value > 0.0) {
        (least, most) = (least.min(value), most.max(value));
    }
    if most == 0.0 { 1.0..10.0 } else { least / 1.3..most * 1.3 }
}

/// How times are distributed: the closer to 1 a quantile, the further right.
fn distribution(report: &Report, id: &str) -> Option<anyhow::Result<Plot>> {
    let rows: Vec<_> = rows(report, id).filter(|row| row.p50 > 0.0).collect();
    let unit = rows.first()?.unit.as_str();
    let beyond = |row: &Measured| row.curve.last().map_or(10.0, |point| 1.0 / point[0]);
    let right = rows.iter().map(|row| beyond(row)).fold(10.0, f64::max);
    let times = decades(rows.iter().flat_map(|row| row.curve.iter().map(|point| point[1])));
    Some(plot(format!("{id}: quantiles"), SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(70)
            .build_cartesian_2d((1.0..right).log_scale(), times.log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .label_style(FONT)
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|odds| quantile(*odds))
            .y_label_formatter(&|value| time(*value, unit))
            .draw()?;
        for row in &rows {
            let points = row.curve.iter().map(|[left, value]| (1.0 / left, value.max(0.01)));
            let style = colour(row.path).stroke_width(2);
            let drawn = chart.draw_series(LineSeries::new(points, style))?;
            if rows.len() > 1 {
                let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style);
                drawn.label(row.path.name()).legend(key);
            }
        }
        if rows.len() > 1 {
            let labels = chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .label_font(FONT)
                .draw();
            labels?;
        }
        Ok(())
    }))
}

/// 1, 10, 100 to 1 are 0 %, 90 %, 99 %.
fn quantile(odds: f64) -> String {
    let percent = 100.0 - 100.0 / odds;
    let digits = (odds.log10().round() as usize).saturating_sub(2);
    format!("{percent:.digits$}%")
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
        let count = bars.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(100)
            .build_cartesian_2d(0.0..most, count..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .label_style(FONT)
            .y_labels(0)
            .x_labels(8)
            .x_label_formatter(&|value| time(*value, unit))
            .draw()?;
        let plane = chart.plotting_area();
        for (index, (id, raw, added)) in bars.iter().enumerate() {
            let y = index as f64;
            let bar = |from, to, colour: RGBColor| {
                Rectangle::new([(from, y + 0.2), (to, y + 0.8)], colour.filled())
            };
            plane.draw(&bar(0.0, *raw, RAW))?;
            plane.draw(&bar(*raw, raw + added.value.max(0.0), VMM))?;
            let [low, high] = added.ci95.map(|bound| raw + bound);
            plane.draw(&PathElement::new([(low, y + 0.5), (high, y + 0.5)], INK.stroke_width(2)))?;
            let (x, top) = plane.map_coordinate(&(0.0, y + 0.5));
            let style = TextStyle::from(FONT.into_font()).color(&INK);
            area.draw_text(id, &style, (x - 96, top - 5))?;
            let sign = if added.value < 0.0 { "" } else { "+" };
            let text = format!("{sign}{}", time(added.value, unit));
            area.draw_text(&text, &style.color(&WHITE), (x + 6, top - 5))?;
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
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .label_style(FONT)
            .x_labels(5)
            .x_label_formatter(&|value| time(*value, unit))
            .draw()?;
        let mut from = 0.0;
        for ((row, colour), line) in parts.iter().zip(STAGES).zip(0i32..) {
            let bar = Rectangle::new([(from, 0.1), (from + row.p50, 1.0)], colour.filled());
            chart.draw_series([bar])?;
            from += row.p50;
            let key = format!("{}: {}", row.stage.replace('_', " "), time(row.p50, unit));
            area.draw(&Rectangle::new([(30, 14 + 20 * line), (40, 24 + 20 * line)], colour.filled()))?;
            area.draw_text(&key, &TextStyle::from(FONT.into_font()).color(&INK), (48, 11 + 20 * line))?;
        }
        Ok(())
    }))
}

/// The blocks' medians, one after the other; hollow where the thread lost its CPU.
fn drift(report: &Report, id: &str) -> Option<anyhow::Result<Plot>> {
    let rows: Vec<_> = rows(report, id).filter(|row| row.blocks.len() > 1 && row.p50 > 0.0).collect();
    let unit = rows.first()?.unit.as_str();
    let medians = || rows.iter().flat_map(|row| row.blocks.iter().map(|block| block.p50));
    let (least, most) = medians().fold((f64::MAX, 0.0f64), |(least, most), it| (least.min(it), most.max(it)));
    let room = ((most - least) * 0.2).max(most * 0.02).max(0.1);
    let blocks = rows.iter().map(|row| row.blocks.len()).max().unwrap_or(1) as f64;
    Some(plot(format!("{id}: medians of the blocks"), (SIZE.0, 200), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(28)
            .y_label_area_size(70)
            .build_cartesian_2d(0.5..blocks + 0.5, (least - room).max(0.0)..most + room)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .label_style(FONT)
            .x_labels(10)
            .y_labels(5)
            .x_label_formatter(&|value| format!("{value:.0}"))
            .y_label_formatter(&|value| time(*value, unit))
            .draw()?;
        for row in &rows {
            chart.draw_series(row.blocks.iter().zip(1u32..).map(|(block, index)| {
                let calm = block.nivcsw * 1000 <= block.n;
                let style = if calm { colour(row.path).filled() } else { colour(row.path).stroke_width(1) };
                Circle::new((f64::from(index), block.p50), 4, style)
            }))?;
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
        let count = report.peers.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(150)
            .build_cartesian_2d(0.0..most, count..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .label_style(FONT)
            .y_labels(0)
            .x_labels(8)
            .x_label_formatter(&|value| time(*value, unit))
            .draw()?;
        let plane = chart.plotting_area();
        for (index, peer) in report.peers.iter().enumerate() {
            let y = index as f64;
            let colour = if peer.name.starts_with("kite") { VMM } else { RAW };
            plane.draw(&Rectangle::new([(0.0, y + 0.2), (peer.p50, y + 0.8)], colour.filled()))?;
            let (x, top) = plane.map_coordinate(&(0.0, y + 0.5));
            let style = TextStyle::from(FONT.into_font()).color(&INK);
            area.draw_text(&format!("{} {}", peer.id, peer.name), &style, (x - 142, top - 5))?;
            let (end, _) = plane.map_coordinate(&(peer.p50, y));
            area.draw_text(&time(peer.p50, unit), &style, (end + 4, top - 5))?;
        }
        Ok(())
    }))
}
