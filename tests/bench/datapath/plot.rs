//! The figures as an SVG: instructions per packet as bars, packets per second as medians with their spread.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::contestant::{Contestant, Mode};
use crate::figures::Figures;

const COLOURS: [RGBColor; 5] = [
    RGBColor(150, 150, 150),
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(255, 127, 14),
];

/// Draws what there is.
pub(crate) fn draw(figures: &Figures, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let area = SVGBackend::new(path, (960, 420)).into_drawing_area();
    draw_both(figures, &area).map_err(|error| anyhow!("{}: {error}", path.display()))
}

type Failure = Box<dyn std::error::Error>;

fn draw_both(
    figures: &Figures,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<(), Failure> {
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(480);
    let instructions = |contestant, mode| figures.instructions(contestant, mode).map(|it| [it; 3]);
    // Each legend where the bars are low.
    let (at_left, at_right) = (SeriesLabelPosition::UpperLeft, SeriesLabelPosition::UpperRight);
    chart(&left, "user-space instructions per packet", at_left, instructions)?;
    let rates = |contestant, mode| {
        let spread = figures.rate(contestant, mode)?;
        Some([spread.lowest, spread.median, spread.highest].map(|it| it * 1e-3))
    };
    chart(&right, "thousands of packets per second", at_right, rates)?;
    area.present()?;
    Ok(())
}

/// Groups of bars, one group for each mode; `value` gives lowest, median and highest.
fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    caption: &str,
    legend: SeriesLabelPosition,
    value: impl Fn(Contestant, Mode) -> Option<[f64; 3]>,
) -> Result<(), Failure> {
    /// Of a group, of which the rest is the gap to the next one.
    const BAR: f64 = 0.16;
    let all = Mode::RATES
        .iter()
        .flat_map(|&mode| Contestant::ALL.map(|contestant| value(contestant, mode)));
    let top = all.flatten().map(|[_, _, highest]| highest).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..3.0, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_labels(0)
        .y_label_style(("sans-serif", 13))
        .draw()?;
    for (index, (contestant, colour)) in Contestant::ALL.into_iter().zip(COLOURS).enumerate() {
        let mut bars = Vec::new();
        let mut whiskers = Vec::new();
        for (group, mode) in (0_u32..).zip(Mode::RATES) {
            let Some([lowest, median, highest]) = value(contestant, mode) else {
                continue;
            };
            let start = f64::from(group) + 0.1 + f64::from(u32::try_from(index)?) * BAR;
            bars.push(Rectangle::new(
                [(start, 0.0), (start + BAR, median)],
                colour.filled(),
            ));
            let middle = start + BAR / 2.0;
            whiskers.push(PathElement::new(vec![(middle, lowest), (middle, highest)], BLACK));
        }
        chart
            .draw_series(bars)?
            .label(contestant.title())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
        chart.draw_series(whiskers)?;
    }
    let names = (0_u32..).zip(Mode::RATES).map(|(group, mode)| {
        let style = ("sans-serif", 14).into_font().color(&BLACK);
        let place = (f64::from(group) + 0.5, 0.0);
        EmptyElement::at(place) + Text::new(mode.name().to_owned(), (-20, 8), style)
    });
    chart.draw_series(names)?;
    chart
        .configure_series_labels()
        .position(legend)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
