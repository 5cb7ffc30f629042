//! The report as a picture: for each case its ratio, the spread of the rounds, and the target.
//!
//! A small SVG without scripts, fonts or links. The axis is logarithmic, so that twice and half are equally far from 1.

use std::fmt::Write as _;
use std::path::Path;

use super::report::{Line, Report};
use crate::error::{Error, Result};

const LEFT: f64 = 330.0;
const WIDTH: f64 = 560.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 100.0;
const ROW: f64 = 20.0;
/// Between two groups.
const GAP: f64 = 10.0;
/// From the right edge of the axis to the figures, and to the targets.
const FIGURES: f64 = 14.0;
const TARGETS: f64 = 60.0;
const BOTTOM: f64 = 50.0;
/// Ratios outside of this are drawn at the edge.
const RATIO_MIN: f64 = 0.125;
const RATIO_MAX: f64 = 16.0;
const TICKS: [(f64, &str); 8] =
    [(0.125, "1/8"), (0.25, "1/4"), (0.5, "1/2"), (1.0, "1"), (2.0, "2"), (4.0, "4"), (8.0, "8"), (16.0, "16")];

/// Writes the picture to a file.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(path: &Path, report: &Report) -> Result<()> {
    let lines: Vec<&Line> = report.lines().into_iter().filter(|line| line.is_ratio()).collect();
    std::fs::write(path, picture(&lines)).map_err(|error| Error::from_io("Writing", path, error))
}

fn picture(lines: &[&Line]) -> String {
    let gap_before = |index: usize| if index > 0 && lines[index].group != lines[index - 1].group { GAP } else { 0.0 };
    let rows: f64 = (0..lines.len()).map(|index| gap_before(index) + ROW).sum();
    let (width, height) = (LEFT + WIDTH + RIGHT, TOP + rows + BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">rok-blk bench: ratios, median and spread of the rounds</text>\n\
         <text x=\"{LEFT}\" y=\"44\" fill=\"#555\">dot: measured; bar: all rounds; line across: target; \
         grey band: the control</text>\n\
         <text x=\"{LEFT}\" y=\"62\" fill=\"#555\">right of 1 the second contestant makes more requests a second; \
         in tail- cases it waits longer</text>\n"
    );
    axis(&mut svg, rows);
    let mut y = TOP;
    for (index, line) in lines.iter().enumerate() {
        y += gap_before(index);
        row(&mut svg, line, y + ROW / 2.0);
        y += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where a ratio is.
fn x_of(ratio: f64) -> f64 {
    let ratio = if ratio.is_finite() { ratio.clamp(RATIO_MIN, RATIO_MAX) } else { RATIO_MAX };
    LEFT + WIDTH * (ratio / RATIO_MIN).log2() / (RATIO_MAX / RATIO_MIN).log2()
}

fn axis(svg: &mut String, rows: f64) {
    let bottom = TOP + rows;
    for (ratio, text) in TICKS {
        let x = x_of(ratio);
        let (color, stroke) = if text == "1" { ("#888", 1.5) } else { ("#ddd", 1.0) };
        put(
            svg,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{text}</text>\n\
                 <line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{color}\" stroke-width=\"{stroke}\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{text}</text>\n",
                TOP - 8.0,
                bottom + 18.0
            ),
        );
    }
    for (place, text) in [(FIGURES, "found"), (TARGETS, "target")] {
        let (x, y) = (LEFT + WIDTH + place, TOP - 8.0);
        put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#555\">{text}</text>\n"));
    }
}

fn row(svg: &mut String, line: &Line, y: f64) {
    let color = match line.is_target_met {
        Some(true) => "#1a7f37",
        Some(false) => "#c62828",
        None => "#3b5b92",
    };
    let (figure, control) = (&line.figure, &line.control);
    let (low, high) = (x_of(control.min), x_of(control.max));
    let (min, median, max) = (x_of(figure.min), x_of(figure.median), x_of(figure.max));
    put(
        svg,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect x=\"{low:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"#000\" fill-opacity=\"0.08\"/>\n\
         <line x1=\"{min:.1}\" y1=\"{y:.1}\" x2=\"{max:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-width=\"3\" \
         stroke-opacity=\"0.45\"/>\n\
         <circle cx=\"{median:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{:.2}</text>\n",
            LEFT - 12.0,
            y + 4.0,
            line.name(),
            y - 6.0,
            (high - low).max(1.0),
            LEFT + WIDTH + FIGURES,
            y + 4.0,
            figure.median,
        ),
    );
    if let Some(target) = line.target {
        let x = x_of(target);
        let sign = if line.is_upper_bound { "\u{2264}" } else { "\u{2265}" };
        put(
            svg,
            format_args!(
                "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#000\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">{sign} {target:.2}</text>\n",
                y - 8.0,
                y + 8.0,
                LEFT + WIDTH + TARGETS,
                y + 4.0,
            ),
        );
    }
}

fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_and_half_are_equally_far_from_one_and_nothing_leaves_the_picture() {
        let distance = |ratio| x_of(ratio) - x_of(1.0);
        assert!((distance(2.0) + distance(0.5)).abs() < 1e-9 && distance(2.0) > 10.0);
        for ratio in [0.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!((LEFT..=LEFT + WIDTH).contains(&x_of(ratio)), "{ratio}");
        }
    }
}
