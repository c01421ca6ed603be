//! Drawings in SVG, for a page that needs nothing but itself.
//!
//! In: numbers and names. Out: `<svg>` elements. Invariant: well-formed, every text escaped, no script, no reference to
//! anything outside; colours are classes of the page's style, so that a dark page has dark drawings.
//! Not here: what is drawn ([`super::page`]).

use std::fmt::Write as _;

use super::timeline::Timeline;

const WIDTH: f64 = 860.0;
const LABEL_WIDTH: f64 = 230.0;
const VALUE_WIDTH: f64 = 90.0;
const BAR_HEIGHT: f64 = 16.0;
const BAR_STEP: f64 = 22.0;
const PLOT_HEIGHT: f64 = 220.0;

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write the others.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// One bar: stacked parts, each with its class, and the ends of the whisker.
#[derive(Clone, Debug)]
pub struct Bar {
    pub label: String,
    pub class: &'static str,
    pub parts: Vec<(f64, &'static str)>,
    /// Lowest and highest of the single values.
    pub range: Option<(f64, f64)>,
    pub value: String,
    pub hint: String,
}

/// Horizontal bars. `mark`: a line across them, with its name.
pub fn bars(bars: &[Bar], mark: Option<(f64, &str)>) -> String {
    let full = |b: &Bar| b.parts.iter().map(|(v, _)| v).sum::<f64>();
    let longest = bars
        .iter()
        .map(|b| b.range.map_or(full(b), |(_, high)| high.max(full(b))))
        .chain(mark.map(|(at, _)| at))
        .fold(0.0, f64::max)
        .max(1e-9);
    let scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / longest;
    let top = if mark.is_some() { 18.0 } else { 2.0 };
    let height = top + bars.len() as f64 * BAR_STEP + 4.0;
    let mut out = open(height);
    for (i, bar) in bars.iter().enumerate() {
        let y = top + i as f64 * BAR_STEP;
        let middle = y + BAR_HEIGHT / 2.0;
        let _ = write!(
            out,
            "<g><title>{}</title><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            escape(&bar.hint),
            LABEL_WIDTH - 8.0,
            y + 12.0,
            escape(&bar.label)
        );
        let mut x = LABEL_WIDTH;
        for (value, class) in &bar.parts {
            let width = value * scale;
            let _ = write!(
                out,
                "<rect class=\"{} {class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\"/>",
                bar.class
            );
            x += width;
        }
        if let Some((low, high)) = bar.range {
            let (low, high) = (LABEL_WIDTH + low * scale, LABEL_WIDTH + high * scale);
            let _ = write!(out, "<path class=\"whisker\" d=\"M{low:.1} {middle:.1}H{high:.1}\"/>");
            x = x.max(high);
        }
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            x + 6.0,
            y + 12.0,
            escape(&bar.value)
        );
    }
    if let Some((at, name)) = mark {
        let x = LABEL_WIDTH + at * scale;
        let _ = write!(
            out,
            "<path class=\"mark\" d=\"M{x:.1} 14V{height:.1}\"/><text class=\"small\" x=\"{x:.1}\" y=\"11\" \
             text-anchor=\"middle\">{}</text>",
            escape(name)
        );
    }
    out + "</svg>"
}

/// Bytes over time by source, with the moments as lines.
pub fn timeline(timeline: &Timeline) -> String {
    let (left, right, top) = (60.0, 10.0, 64.0);
    let end_ms = timeline.moments.iter().map(|m| m.ms).fold(1.0, f64::max);
    let most = timeline
        .series
        .iter()
        .filter_map(|s| s.points.last())
        .map(|(_, n)| *n)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let bottom = top + PLOT_HEIGHT;
    let height = bottom + 30.0 + timeline.series.len() as f64 * 18.0;
    let x = |ms: f64| left + (WIDTH - left - right) * ms / end_ms;
    let y = |bytes: f64| bottom - PLOT_HEIGHT * bytes / most;
    let mut out = open(height);
    let _ = write!(
        out,
        "<path class=\"axis\" d=\"M{left:.1} {top:.1}V{bottom:.1}H{:.1}\"/>",
        WIDTH - right
    );
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let _ = write!(
            out,
            "<text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.2} s</text>\
             <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.1} MB</text>",
            x(end_ms * share).clamp(left, WIDTH - 30.0),
            bottom + 14.0,
            end_ms * share / 1000.0,
            left - 4.0,
            y(most * share) + 4.0,
            most * share / 1e6,
        );
    }
    for (i, moment) in timeline.moments.iter().enumerate() {
        // Names that would stand on each other take turns in height.
        let text_y = 12.0 + (i % 4) as f64 * 13.0;
        let anchor = if x(moment.ms) > WIDTH * 0.75 { "end" } else { "start" };
        let _ = write!(
            out,
            "<path class=\"mark\" d=\"M{at:.1} {text_y:.1}V{bottom:.1}\"/><text class=\"small\" x=\"{at:.1}\" \
             y=\"{text_y:.1}\" text-anchor=\"{anchor}\">{} {:.2} s</text>",
            escape(moment.name),
            moment.ms / 1000.0,
            at = x(moment.ms),
        );
    }
    for (i, series) in timeline.series.iter().enumerate() {
        let mut path = format!("M{:.1} {bottom:.1}", x(0.0));
        let mut last = 0;
        for (ms, bytes) in &series.points {
            // Steps: the counter stood still in between.
            let _ = write!(path, "H{:.1}V{:.1}", x(*ms), y(*bytes as f64));
            last = *bytes;
        }
        let _ = write!(path, "H{:.1}", x(end_ms));
        let legend_y = bottom + 34.0 + i as f64 * 18.0;
        let _ = write!(
            out,
            "<path class=\"line s{i}\" d=\"{path}\"/><path class=\"line s{i}\" d=\"M{left:.1} {legend_y:.1}h24\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}: {:.2} MB</text>",
            left + 30.0,
            legend_y + 4.0,
            escape(series.source),
            last as f64 / 1e6,
        );
    }
    out + "</svg>"
}

fn open(height: f64) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" role=\"img\">")
}
