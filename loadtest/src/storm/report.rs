//! What a storm measured.
//!
//! In: timings and errors of all nodes. Out: a table for people, JSON for scripts.
//! Invariant: memory does not grow with the number of requests: histograms, counts, and the first few errors.
//! Not here: judging the numbers.

use std::fmt;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::registry::Timing;

/// Errors listed in full.
const ERRORS_LISTED_MAX: usize = 5;
/// An hour, in microseconds: the highest latency told apart.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Latencies in microseconds, within 0.1%.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds are valid"))
    }
}

impl Latencies {
    pub fn record(&mut self, elapsed: Duration) {
        self.0
            .saturating_record(elapsed.as_micros().clamp(1, u128::from(LATENCY_US_MAX)) as u64);
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    fn figures(&self) -> [(&'static str, u64); 5] {
        let q = |q| self.0.value_at_quantile(q);
        [
            ("p50_us", q(0.5)),
            ("p90_us", q(0.9)),
            ("p99_us", q(0.99)),
            ("max_us", self.0.max()),
            ("mean_us", self.0.mean() as u64),
        ]
    }
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub first_byte: Latencies,
    pub blob: Latencies,
    pub image: Latencies,
    pub bytes: u64,
    pub errors: u64,
    pub first_errors: Vec<String>,
    pub elapsed: Duration,
    pub lazy: bool,
}

impl Report {
    pub fn transferred(&mut self, timing: Timing) {
        self.first_byte.record(timing.first_byte);
        self.blob.record(timing.whole);
        self.bytes += timing.bytes;
    }

    pub fn failed(&mut self, error: String) {
        self.errors += 1;
        if self.first_errors.len() < ERRORS_LISTED_MAX {
            self.first_errors.push(error);
        }
    }

    pub fn bytes_per_sec(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub fn json(&self) -> Value {
        let histogram = |l: &Latencies| {
            let mut out = json!({ "count": l.count() });
            for (name, value) in l.figures() {
                out[name] = value.into();
            }
            out
        };
        json!({
            "lazy": self.lazy,
            "elapsed_us": self.elapsed.as_micros() as u64,
            "bytes": self.bytes,
            "bytes_per_sec": self.bytes_per_sec(),
            "errors": self.errors,
            "first_errors": self.first_errors,
            "first_byte": histogram(&self.first_byte),
            "transfer": histogram(&self.blob),
            "image": histogram(&self.image),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.set_header(["latency (ms)", "count", "p50", "p90", "p99", "max", "mean"]);
        let transfer = if self.lazy { "whole TOC or chunk" } else { "whole blob" };
        let image = if self.lazy {
            "image, TOCs and chunks"
        } else {
            "whole image"
        };
        for (name, l) in [
            ("first byte", &self.first_byte),
            (transfer, &self.blob),
            (image, &self.image),
        ] {
            let mut row = vec![Cell::new(name), right(l.count())];
            row.extend(l.figures().map(|(_, us)| right(format!("{:.2}", us as f64 / 1000.0))));
            table.add_row(row);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "{:.1} MB verified in {:.2} s: {:.1} MB/s; {} errors",
            self.bytes as f64 / 1e6,
            self.elapsed.as_secs_f64(),
            self.bytes_per_sec() / 1e6,
            self.errors
        )?;
        for error in &self.first_errors {
            writeln!(f, "  {error}")?;
        }
        Ok(())
    }
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}
