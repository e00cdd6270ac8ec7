//! Plots of rows, as SVG.

use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::measured::{BlockMeasured, Measured, Way};
use super::time::time;

/// Width and height: small enough that the text is legible on a phone.
pub const SIZE: (u32, u32) = (440, 300);
const WAYS: [RGBColor; 2] = [RGBColor(0x4c, 0x78, 0xa8), RGBColor(0xe4, 0x57, 0x56)];
/// Of the parts of something, in turn.
pub const STAGES: [RGBColor; 4] = [
    RGBColor(0x4c, 0x78, 0xa8),
    RGBColor(0xf5, 0x8b, 0x18),
    RGBColor(0x54, 0xa2, 0x4b),
    RGBColor(0xb2, 0x79, 0xa2),
];
/// Of labels.
pub const FONT: (&str, i32) = ("sans-serif", 14);
/// What the page's style sheet gives the colour of its text.
pub const INK: RGBColor = BLACK;
/// What the page's style sheet gives the colour of its rules.
pub const GRID: RGBColor = RGBColor(0xcc, 0xcc, 0xcc);
/// A curve goes no closer to 1 than this.
const LEAST_LEFT: f64 = 1e-9;

/// A picture and what it shows.
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// The picture.
    pub svg: String,
}

/// What a picture is drawn on.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Whether it could be drawn.
pub type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

/// A way's colour.
pub fn colour(way: impl Way) -> RGBColor {
    WAYS[way.rank() % WAYS.len()]
}

/// Draws a picture.
///
/// # Errors
/// It cannot be drawn.
pub fn plot(title: String, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> anyhow::Result<Plot> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let cannot = |error: &dyn std::fmt::Display| anyhow!("cannot draw {title}: {error}");
        draw(&area).map_err(|error| cannot(&error))?;
        area.present().map_err(|error| cannot(&error))?;
    }
    Ok(Plot { title, svg })
}

/// Labels and keys.
pub fn text() -> TextStyle<'static> {
    TextStyle::from(FONT.into_font()).color(&INK)
}

/// Where horizontal bars are drawn: times to the right, the bars' numbers from the top down.
pub type Plane<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// An empty plot of horizontal bars.
pub struct Bars<'a> {
    /// How many.
    pub count: usize,
    /// The longest, with some room.
    pub most: f64,
    /// Of the times.
    pub unit: &'a str,
    /// About how many times are written below.
    pub labels: usize,
    /// The room for names on the left, and for a key above.
    pub room: (u32, u32),
}

impl Bars<'_> {
    /// Draws its axis.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub fn draw<'a>(&self, area: &Area<'a>) -> Drawn<Plane<'a>> {
        let (left, above) = self.room;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_top(above)
            .x_label_area_size(32)
            .y_label_area_size(left)
            .build_cartesian_2d(0.0..self.most, self.count as f64..0.0)?;
        draw_times(&mut chart, self.labels, self.unit)?;
        Ok(chart.plotting_area().clone())
    }
}

/// Draws an axis of times below a chart, with so many labels.
///
/// # Errors
/// It cannot be drawn.
pub fn draw_times<'a>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    labels: usize,
    unit: &str,
) -> Drawn {
    let label = |value: &f64| time(*value, unit);
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().light_line_style(TRANSPARENT).bold_line_style(GRID).label_style(FONT);
    mesh.y_labels(0).x_labels(labels).x_label_formatter(&label).draw()
}

/// Draws a line for each row, and a key if there are several.
///
/// # Errors
/// It cannot be drawn.
pub fn curves<'a, P: Way, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    rows: &[&Measured<P>],
    position: SeriesLabelPosition,
    points: impl Fn(&Measured<P>) -> Vec<(f64, f64)>,
) -> Drawn
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for row in rows {
        let style = colour(row.path).stroke_width(2);
        let drawn = chart.draw_series(LineSeries::new(points(row), style))?;
        if rows.len() > 1 {
            let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style);
            drawn.label(row.path.name()).legend(key);
        }
    }
    if rows.len() > 1 {
        chart.configure_series_labels().position(position).label_font(FONT).draw()?;
    }
    Ok(())
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
pub fn distribution<'a, P: Way + 'a>(
    title: &str,
    rows: impl Iterator<Item = &'a Measured<P>>,
) -> Option<anyhow::Result<Plot>> {
    let rows: Vec<_> = rows.filter(|row| row.p50 > 0.0).collect();
    let unit = rows.first()?.unit.as_str();
    let beyond = |row: &Measured<P>| row.curve.last().map_or(10.0, |point| 1.0 / point[0].max(LEAST_LEFT));
    let right = rows.iter().map(|row| beyond(row)).fold(10.0, f64::max);
    let times = decades(rows.iter().flat_map(|row| row.curve.iter().map(|point| point[1])));
    Some(plot(format!("{title}: quantiles"), SIZE, |area| {
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
        let points = |[left, value]: &[f64; 2]| (1.0 / left.max(LEAST_LEFT), value.max(0.01));
        let points = |row: &Measured<P>| row.curve.iter().map(points).collect();
        curves(&mut chart, &rows, SeriesLabelPosition::UpperLeft, points)
    }))
}

/// 1, 10, 100 to 1 are 0 %, 90 %, 99 %.
fn quantile(odds: f64) -> String {
    let percent = 100.0 - 100.0 / odds;
    let digits = (odds.log10().round() as usize).saturating_sub(2);
    format!("{percent:.digits$}%")
}

/// The blocks' medians, one after the other; hollow where it was disturbed.
pub fn drift<'a, P: Way + 'a>(
    title: String,
    rows: impl Iterator<Item = &'a Measured<P>>,
    is_calm: impl Fn(&BlockMeasured) -> bool,
) -> Option<anyhow::Result<Plot>> {
    let rows: Vec<_> = rows.filter(|row| row.blocks.len() > 1 && row.p50 > 0.0).collect();
    let unit = rows.first()?.unit.as_str();
    let medians = || rows.iter().flat_map(|row| row.blocks.iter().map(|block| block.p50));
    let (least, most) = medians().fold((f64::MAX, 0.0f64), |(least, most), it| (least.min(it), most.max(it)));
    let room = ((most - least) * 0.2).max(most * 0.02).max(0.1);
    let blocks = rows.iter().map(|row| row.blocks.len()).max().unwrap_or(1) as f64;
    Some(plot(title, (SIZE.0, 200), |area| {
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
            // There is no half a block.
            .x_label_formatter(&|value| {
                if value.fract().abs() < 1e-6 && *value > 0.5 { format!("{value:.0}") } else { String::new() }
            })
            .y_label_formatter(&|value| time(*value, unit))
            .draw()?;
        for row in &rows {
            chart.draw_series(row.blocks.iter().zip(1u32..).map(|(block, index)| {
                let style =
                    if is_calm(block) { colour(row.path).filled() } else { colour(row.path).stroke_width(1) };
                Circle::new((f64::from(index), block.p50), 4, style)
            }))?;
        }
        Ok(())
    }))
}
