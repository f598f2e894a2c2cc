//! Line charts as SVG. Colours are the page's (`var(--c0)` and so on), so that a chart is right on
//! light and dark paper; sizes are those of a phone, and a wide page shows several beside each other.

use std::fmt::Write as _;

/// One line of a chart.
pub(super) struct Series {
    pub(super) name: String,
    /// Which of the page's colours.
    pub(super) colour: usize,
    pub(super) dashed: bool,
    /// Ascending in x; a value that is not finite is a gap.
    pub(super) points: Vec<(f64, f64)>,
}

/// How an axis divides its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0, or from the least value where that is below.
    Linear,
    /// Values that are not above 0 are left out.
    Log,
    /// Of 1/(1-q), where q is a quantile: each nine is as long as the one before.
    Nines,
}

/// A chart: title, axes and lines.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: Scale,
    pub(super) y: Scale,
    pub(super) x_text: &'a dyn Fn(f64) -> String,
    pub(super) y_text: &'a dyn Fn(f64) -> String,
    pub(super) x_name: &'a str,
    pub(super) series: Vec<Series>,
}

/// Colours that the page has.
pub(super) const COLOURS: usize = 6;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 270.0;
/// Room for the labels left of the plot and below it, and for half a label right of it.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 42.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 12.0;

impl Chart<'_> {
    /// The chart as a `figure`, or nothing, when there is nothing to draw.
    pub(super) fn html(&self) -> String {
        let drawable = |x: f64, y: f64| {
            let fits = |scale: Scale, value: f64| {
                value.is_finite() && (scale == Scale::Linear || value > 0.0)
            };
            fits(self.x, x) && fits(self.y, y)
        };
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let shown: Vec<(f64, f64)> = points().filter(|(x, y)| drawable(*x, *y)).collect();
        if shown.is_empty() {
            return String::new();
        }
        let x = Axis::new(self.x, shown.iter().map(|point| point.0));
        let y = Axis::new(self.y, shown.iter().map(|point| point.1));
        let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = String::new();
        // Writing into a `String` cannot fail, here and below.
        let _ = write!(
            svg,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        for tick in y.ticks(5) {
            let place = at_y(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                place + 4.0,
                escape(&(self.y_text)(tick))
            );
        }
        for tick in x.ticks(6) {
            let place = at_x(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
                 <text x=\"{place:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                escape(&(self.x_text)(tick))
            );
        }
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 6.0,
            escape(self.x_name)
        );
        for series in &self.series {
            let mut path = String::new();
            let mut dots = Vec::new();
            let mut is_gap = true;
            for (px, py) in &series.points {
                if !drawable(*px, *py) {
                    is_gap = true;
                    continue;
                }
                let (px, py) = (at_x(*px), at_y(*py));
                let _ = write!(path, "{}{px:.1} {py:.1}", if is_gap { "M" } else { "L" });
                dots.push((px, py));
                is_gap = false;
            }
            let colour = series.colour % COLOURS;
            let dashed = if series.dashed { " dashed" } else { "" };
            let name = escape(&series.name);
            let _ = write!(
                svg,
                "<path class=\"line{dashed}\" stroke=\"var(--c{colour})\" d=\"{path}\"><title>{name}</title></path>"
            );
            // Few seconds are few points: a line alone would hardly be seen.
            if dots.len() <= 12 {
                for (px, py) in dots {
                    let _ = write!(
                        svg,
                        "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.5\" fill=\"var(--c{colour})\"/>"
                    );
                }
            }
        }
        svg.push_str("</svg>");
        let mut legend = String::new();
        for series in self.series.iter().filter(|_| self.series.len() > 1) {
            let style = if series.dashed { "dashed" } else { "solid" };
            let _ = write!(
                legend,
                "<li><span style=\"border-top:2px {style} var(--c{})\"></span>{}</li>",
                series.colour % COLOURS,
                escape(&series.name)
            );
        }
        let title = escape(self.title);
        format!("<figure><figcaption>{title}</figcaption>{svg}<ul>{legend}</ul></figure>\n")
    }
}

struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    /// One that has room for all values, of which there is at least one.
    fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Axis {
        let low = values.clone().fold(f64::MAX, f64::min);
        let high = values.fold(f64::MIN, f64::max);
        match scale {
            Scale::Linear => {
                let low = low.min(0.0);
                let step = step((high - low).max(1e-9), 5);
                Axis { scale, low, high: ((high / step).ceil() * step).max(low + step) }
            }
            Scale::Log => {
                // To the next of 1, 2, 5 on both sides, so that the ends have a tick.
                let low = log_ticks(low / 10.0, low).last().copied().unwrap_or(low);
                let high = log_ticks(high, high * 10.0).first().copied().unwrap_or(high);
                Axis { scale, low, high: if high > low { high } else { low * 10.0 } }
            }
            Scale::Nines => Axis { scale, low: 1.0, high: high.max(10.0) },
        }
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            _ => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }

    /// Some `count` values to be marked.
    fn ticks(&self, count: usize) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high - self.low, count);
                let first = (self.low / step).ceil() as i64;
                let last = (self.high / step + 1e-9).floor() as i64;
                (first..=last).map(|k| k as f64 * step).collect()
            }
            Scale::Log => {
                let all = log_ticks(self.low, self.high);
                let decade = |tick: &f64| (tick.log10() - tick.log10().round()).abs() < 1e-6;
                let decades: Vec<f64> = all.iter().copied().filter(decade).collect();
                if all.len() <= count + 2 || decades.len() < 2 { all } else { decades }
            }
            Scale::Nines => {
                let nines = self.high.log10().floor() as i32;
                (0..=nines).map(|power| 10f64.powi(power)).collect()
            }
        }
    }
}

/// A round step that divides a length into about `count` parts.
fn step(length: f64, count: usize) -> f64 {
    let rough = length / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power)
}

/// The 1, 2 and 5 of each decade between two values, both included.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let ticks = decades.flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)));
    ticks.filter(|tick| (low * 0.999..=high * 1.001).contains(tick)).collect()
}

/// A text as it may stand in HTML, between tags and in quotes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_that_enclose_the_values() {
        let axis = |scale, values: &[f64]| Axis::new(scale, values.iter().copied());
        let linear = axis(Scale::Linear, &[3.0, 87.0]);
        assert_eq!((linear.low, linear.high), (0.0, 100.0));
        assert_eq!(linear.ticks(5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        let log = axis(Scale::Log, &[30.0, 4000.0]);
        assert_eq!((log.low, log.high), (20.0, 5000.0));
        assert_eq!(log.ticks(5), [100.0, 1000.0]);
        assert_eq!(axis(Scale::Log, &[30.0, 60.0]).ticks(5), [20.0, 50.0, 100.0]);
        assert_eq!(axis(Scale::Nines, &[1.0, 5000.0]).ticks(6), [1.0, 10.0, 100.0, 1000.0]);
        // A single value has room as well.
        for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
            for value in [0.001, 1.0, 20.0, 1e9] {
                let axis = axis(scale, &[value]);
                let place = axis.place(value);
                assert!(
                    (0.0..=1.0001).contains(&place) || scale == Scale::Nines,
                    "{value}: {place}"
                );
                assert!(axis.high > axis.low && axis.ticks(5).len() < 15, "{value}");
            }
        }
        assert!(axis(Scale::Linear, &[0.0]).place(0.0).abs() < 1e-9);
    }

    #[test]
    fn gaps_are_not_bridged_and_nothing_draws_nothing() {
        let text = |value: f64| format!("<{value}>");
        let chart = |points: Vec<(f64, f64)>| Chart {
            title: "a & b",
            x: Scale::Linear,
            y: Scale::Log,
            x_text: &text,
            y_text: &text,
            x_name: "s",
            series: vec![Series { name: "<x>".into(), colour: 7, dashed: true, points }],
        };
        let html =
            chart(vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 0.0), (4.0, 2.0)]).html();
        let path = html.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
        assert!(html.contains("a &amp; b") && html.contains("&lt;x&gt;") && html.contains("--c1"));
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        assert_eq!(chart(vec![(0.0, f64::NAN)]).html(), "");
        assert_eq!(chart(Vec::new()).html(), "");
    }
}
