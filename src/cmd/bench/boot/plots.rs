//! The plots of boots.

use plotters::prelude::*;

use super::report::{Measured, Report};
use super::subject::Monitor;
use super::table::words;
use super::watch::Stage;
use crate::cmd::bench::measured::{BlockMeasured, Way};
use crate::cmd::bench::plot::{Bars, FONT, GRID, Plot, SIZE, STAGES, curves, drift, plot, text};
use crate::cmd::bench::time::time;

/// Of each kernel, its boot by each monitor as a bar of its stages.
///
/// # Errors
/// One cannot be drawn.
pub fn timelines(report: &Report) -> anyhow::Result<Vec<Plot>> {
    let kernels = report.run.kernels.iter();
    kernels.filter_map(|kernel| timeline(report, &kernel.id)).collect()
}

/// Of each kernel and stage, how many boots had reached it when, and each boot's time.
///
/// # Errors
/// One cannot be drawn.
pub fn each(report: &Report) -> anyhow::Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for kernel in &report.run.kernels {
        for stage in Stage::ALL {
            let rows = || report.of(&kernel.id).filter(|row| row.stage == stage.name());
            let title = format!("{}, {}", kernel.id, words(stage.name()));
            plots.extend(arrivals(&title, rows()).transpose()?);
            plots.extend(drift(format!("{title}: each boot"), rows(), is_calm).transpose()?);
        }
    }
    Ok(plots)
}

/// Whether the machine below let it run.
fn is_calm(block: &BlockMeasured) -> bool {
    block.steal_ns == 0
}

/// How many of all boots had come to a stage by then.
fn arrivals<'a>(title: &str, rows: impl Iterator<Item = &'a Measured>) -> Option<anyhow::Result<Plot>> {
    let rows: Vec<_> = rows.collect();
    let unit = rows.first()?.unit.as_str();
    let most = rows.iter().map(|row| row.max).fold(0.0, f64::max) * 1.05;
    Some(plot(format!("{title}: boots there by then"), SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..most, 0.0..1.02)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .label_style(FONT)
            .x_labels(5)
            .y_labels(5)
            .x_label_formatter(&|value| time(*value, unit))
            .y_label_formatter(&|part| format!("{:.0}%", part * 100.0))
            .draw()?;
        curves(&mut chart, &rows, SeriesLabelPosition::LowerRight, |row| steps(row, most))
    }))
}

/// One step up for each boot, and on to the right.
fn steps(row: &Measured, right: f64) -> Vec<(f64, f64)> {
    let mut times: Vec<f64> = row.blocks.iter().map(|block| block.p50).collect();
    times.sort_unstable_by(f64::total_cmp);
    let part = |count: usize| count as f64 / times.len() as f64;
    let corners =
        times.iter().enumerate().flat_map(|(index, time)| [(*time, part(index)), (*time, part(index + 1))]);
    [(0.0, 0.0)].into_iter().chain(corners).chain([(right, 1.0)]).collect()
}

/// A monitor's medians, stage by stage.
fn stages(report: &Report, id: &str, monitor: Monitor) -> Vec<(Stage, f64)> {
    let row = |stage: Stage| report.of(id).find(|row| row.path == monitor && row.stage == stage.name());
    Stage::ALL.into_iter().filter_map(|stage| Some((stage, row(stage)?.p50))).collect()
}

fn timeline(report: &Report, id: &str) -> Option<anyhow::Result<Plot>> {
    let bars: Vec<_> = [Monitor::Kite, Monitor::Qemu]
        .map(|monitor| (monitor, stages(report, id, monitor)))
        .into_iter()
        .filter(|(_, stages)| !stages.is_empty())
        .collect();
    let unit = report.of(id).next().map(|row: &Measured| row.unit.as_str())?;
    let most = bars.iter().flat_map(|(_, stages)| stages).map(|(_, ns)| *ns).fold(0.0, f64::max) * 1.05;
    let size = (SIZE.0, 120 + 34 * bars.len() as u32);
    Some(plot(format!("{id}: from exec to each stage (medians)"), size, |area| {
        let plane = Bars { count: bars.len(), most, unit, labels: 5, room: (50, 60) }.draw(area)?;
        let style = text();
        for (stage, place) in Stage::ALL.into_iter().zip(0i32..) {
            let (left, top) = (60 + 180 * (place / 2), 10 + 20 * (place % 2));
            area.draw(&Rectangle::new(
                [(left, top + 3), (left + 10, top + 13)],
                STAGES[stage as usize].filled(),
            ))?;
            area.draw_text(&words(stage.name()), &style, (left + 16, top))?;
        }
        for (index, (monitor, stages)) in bars.iter().enumerate() {
            let y = index as f64;
            let mut from = 0.0;
            for (stage, to) in stages {
                let colour = STAGES[*stage as usize];
                plane.draw(&Rectangle::new([(from, y + 0.15), (*to, y + 0.85)], colour.filled()))?;
                from = *to;
            }
            let (x, middle) = plane.map_coordinate(&(0.0, y + 0.5));
            area.draw_text(monitor.name(), &style, (x - 44, middle - 8))?;
        }
        Ok(())
    }))
}
