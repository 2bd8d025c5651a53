//! Curves as inline SVG.
//!
//! The colours written into the SVG are those of the light theme; the page's stylesheet finds
//! them by value and replaces them in the dark one, so a chart never needs drawing twice.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::RGBColor;

use super::figures::{grouped, short};
use crate::EvalError;

/// Units of the drawing; the page scales it to the width it has.
const SIZE: (u32, u32) = (1800, 960);
/// plotters writes 1 / 1.24 of it.
const FONT: u32 = 58;
/// Points drawn of a curve at most.
const MAX_POINTS: usize = 1200;
/// From so many points on a curve is also drawn smoothed.
const SMOOTHED_FROM: usize = 60;
/// Beyond it no axis can be labelled.
const LARGEST: f64 = 1e30;

/// Text and axes.
const INK: RGBColor = RGBColor(0x5B, 0x64, 0x75);
/// Lines of the mesh.
const MESH: RGBColor = RGBColor(0xE3, 0xE7, 0xEE);
/// The curve.
const SERIES: RGBColor = RGBColor(0x35, 0x5C, 0xE8);
/// The same, each step, behind a smoothed one.
const FAINT: RGBColor = RGBColor(0xB9, 0xC7, 0xF8);
/// The student in full precision.
const FULL_PRECISION: RGBColor = RGBColor(0x15, 0x8A, 0x63);
/// The student post-training quantised.
const POST_TRAINING: RGBColor = RGBColor(0xD0, 0x64, 0x1B);

/// What is drawn.
#[derive(Debug, Default)]
pub(super) struct Chart<'a> {
    /// For errors; the page writes the title itself.
    pub title: &'a str,
    /// What the vertical axis shows, with its unit.
    pub axis: &'a str,
    /// (step, value).
    pub points: &'a [(usize, f64)],
    /// Draw a moving mean over a noisy curve.
    pub smooth: bool,
    /// A level to compare with.
    pub full_precision: Option<f64>,
    /// A level to compare with.
    pub post_training_quantized: Option<f64>,
}

impl Chart<'_> {
    /// Finite points, in order.
    fn drawable(&self) -> Vec<(f64, f64)> {
        let finite = |&&(_, value): &&(usize, f64)| value.abs() < LARGEST;
        self.points.iter().filter(finite).map(|&(step, value)| (step as f64, value)).collect()
    }

    /// Steps over which a mean is taken; `None` if the curve is drawn as it is.
    pub(super) fn window(&self) -> Option<usize> {
        let count = self.drawable().len();
        (self.smooth && count >= SMOOTHED_FROM).then_some((count / 20).max(3) | 1)
    }

    /// The drawing; `None` if there is no finite point.
    ///
    /// # Errors
    /// [`EvalError::Chart`].
    pub(super) fn svg(&self) -> Result<Option<String>, EvalError> {
        let points = self.drawable();
        if points.is_empty() {
            return Ok(None);
        }
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let drawn = self.draw(&area, &points).and_then(|()| area.present());
        drop(area);
        drawn.map_err(|error| EvalError::Chart {
            chart: self.title.to_string(),
            problem: error.to_string(),
        })?;
        // Inline SVG needs no namespace, and without a size it fills its box.
        let body = svg.find('>').map_or("", |end| &svg[end + 1..]);
        Ok(Some(format!(r#"<svg viewBox="0 0 {} {}" aria-hidden="true">{body}"#, SIZE.0, SIZE.1)))
    }

    fn draw<'b>(&self, area: &Area<'b>, points: &[(f64, f64)]) -> Result<(), Drawing<'b>> {
        let levels =
            [(self.full_precision, FULL_PRECISION), (self.post_training_quantized, POST_TRAINING)];
        let levels: Vec<(f64, RGBColor)> = levels
            .into_iter()
            .filter_map(|(level, colour)| Some((level.filter(|l| l.abs() < LARGEST)?, colour)))
            .collect();
        let values = Axis::values(points.iter().map(|p| p.1).chain(levels.iter().map(|l| l.0)));
        let axis = if values.logarithmic { ", log scale" } else { "" };
        let (first, last) = (points[0].0, points[points.len() - 1].0);
        let steps = Axis::steps(first, last);

        let mut chart = ChartBuilder::on(area)
            .margin_top(24)
            .margin_right(48)
            .x_label_area_size(150)
            .y_label_area_size(250)
            .build_cartesian_2d(steps, values)?;
        let font = ("sans-serif", FONT).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(MESH.stroke_width(2))
            .light_line_style(TRANSPARENT)
            .axis_style(INK.stroke_width(2))
            .label_style(font.clone())
            .axis_desc_style(font)
            .x_desc("optimiser step")
            .y_desc(format!("{}{axis}", self.axis))
            .x_label_formatter(&|step| grouped(*step as u64))
            .y_label_formatter(&|value| short(*value))
            .draw()?;

        let mut line = |points: &[(f64, f64)], colour: RGBColor, width: u32| {
            let series = LineSeries::new(thinned(points), colour.stroke_width(width));
            chart.draw_series(series).map(|_| ())
        };
        for (level, colour) in &levels {
            line(&[(first, *level), (last, *level)], *colour, 5)?;
        }
        if let Some(window) = self.window() {
            line(points, FAINT, 3)?;
            return line(&moving_mean(points, window), SERIES, 7);
        }
        line(points, SERIES, 6)?;
        if points.len() < SMOOTHED_FROM {
            let dot = |point: &(f64, f64)| Circle::new(*point, 10, SERIES.filled());
            chart.draw_series(points.iter().map(dot))?;
        }
        Ok(())
    }
}

type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;
type Drawing<'b> = DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>;

/// An axis whose ends and marks are ours.
#[derive(Clone)]
struct Axis {
    logarithmic: bool,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// The horizontal axis: whole steps.
    fn steps(first: f64, last: f64) -> Self {
        let (low, high) =
            if last > first { (first, last) } else { (first, first + first.max(1.0)) };
        let ticks = nice(low, high).into_iter().filter(|step| step.fract() == 0.0).collect();
        Self { logarithmic: false, low, high, ticks }
    }

    /// The vertical axis. Values that span a decade or more are shown on a log scale.
    fn values(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let logarithmic = low >= f64::MIN_POSITIVE && high / low >= 10.0;
        if logarithmic {
            let (low, high) = (low / 1.12, high * 1.12);
            return Self { logarithmic, low, high, ticks: decades(low, high) };
        }
        let span = high - low;
        let flat = span <= 1e-9 * low.abs().max(high.abs());
        let pad = if flat { (0.05 * high.abs()).max(1e-3) } else { 0.05 * span };
        // Room below must not suggest that a loss could be negative.
        let low = if low >= 0.0 { (low - pad).max(0.0) } else { low - pad };
        let high = high + pad;
        Self { logarithmic, low, high, ticks: nice(low, high) }
    }

    /// Where a value lies: 0 at the low end, 1 at the high one.
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.ln() } else { value };
        (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (from, to) = (f64::from(limit.0), f64::from(limit.1));
        (from + (to - from) * self.place(*value)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// Multiples of 1, 2 or 5 · 10ⁿ within a range of positive length, seven at most.
fn nice(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    let decade = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|multiple| multiple * decade);
    let step = steps.into_iter().find(|step| *step >= 0.999 * rough).unwrap_or(10.0 * decade);
    let (from, to) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (from..=to).map(|multiple| multiple as f64 * step).collect()
}

/// 1, 2 and 5 · 10ⁿ within a range above zero; fewer where it is long.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let decades = (last - first).max(1) as usize;
    let marks: &[f64] = if decades <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    (first..=last)
        .step_by(decades.div_ceil(6))
        .flat_map(|decade| marks.iter().map(move |mark| mark * 10f64.powi(decade)))
        .filter(|tick| (low..=high).contains(tick))
        .collect()
}

/// At most [`MAX_POINTS`] points: of each stretch the lowest and the highest, so that no spike
/// is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MAX_POINTS / 2);
    let mut kept = Vec::with_capacity(MAX_POINTS);
    for stretch in points.chunks(stretch) {
        let (mut low, mut high) = (0, 0);
        for (index, point) in stretch.iter().enumerate() {
            low = if point.1 < stretch[low].1 { index } else { low };
            high = if point.1 > stretch[high].1 { index } else { high };
        }
        kept.push(stretch[low.min(high)]);
        if low != high {
            kept.push(stretch[low.max(high)]);
        }
    }
    kept
}

/// Means over the `window` points (odd) around each, as far as there are so many.
fn moving_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let mut sums = vec![0.0];
    for point in points {
        sums.push(sums[sums.len() - 1] + point.1);
    }
    let mean = |index: usize| {
        let from = index.saturating_sub(window / 2);
        let to = (index + window / 2 + 1).min(points.len());
        (points[index].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..points.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_survives_thinning() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[54_321].1 = 9.0;
        let thinned = thinned(&points);
        assert!(thinned.len() <= MAX_POINTS, "{}", thinned.len());
        assert!(thinned.contains(&(54_321.0, 9.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn a_moving_mean_looks_as_far_back_as_ahead_and_not_beyond_the_ends() {
        let squares: Vec<(f64, f64)> = (0..5).map(|i| (f64::from(i), f64::from(i * i))).collect();
        let means: Vec<f64> = moving_mean(&squares, 3).iter().map(|point| point.1).collect();
        assert_eq!(means, [0.5, 5.0 / 3.0, 14.0 / 3.0, 29.0 / 3.0, 12.5]);
    }

    #[test]
    fn axes_carry_round_numbers() {
        assert_eq!(nice(0.0, 300.0), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]);
        let axis = Axis::values([18.0, 950.0].into_iter());
        assert!(axis.logarithmic);
        let labels: Vec<String> = axis.ticks.iter().map(|tick| short(*tick)).collect();
        assert_eq!(labels, ["20", "50", "100", "200", "500", "1000"]);
    }

    #[test]
    fn no_curve_however_odd_breaks_the_drawing() {
        let odd: [&[(usize, f64)]; 8] = [
            &[(0, 0.0)],
            &[(5, -3.0), (5, -3.0)],
            &[(0, 1e-300), (1, 1e29)],
            &[(0, -1e29), (1, 1e29)],
            &[(0, 1.0), (1, 1.0 + f64::EPSILON)],
            &[(0, f64::NAN), (1, 2.0), (2, f64::INFINITY)],
            &[(usize::MAX, 1.0)],
            &[(9, 1.0), (3, 2.0)],
        ];
        for points in odd {
            let chart = Chart { points, full_precision: Some(f64::NAN), ..Chart::default() };
            let svg = chart.svg().unwrap().expect("one point is finite");
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{points:?}: {svg}");
        }
        let nothing = Chart { points: &[(0, f64::NAN)], ..Chart::default() };
        assert_eq!(nothing.svg().unwrap(), None);
    }
}
