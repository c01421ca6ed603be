//! The text format of Prometheus.
//!
//! In: rows and their samples. Out: text (version 0.0.4). Invariant: a sample's label has a value that its row names, so
//! nothing needs escaping.
//! Not here: which metrics there are ([`super::names`]).

use std::fmt::{Display, Write as _};

use super::Seen;
use super::names::Row;
use crate::counters::Histogram;

#[derive(Debug, Default)]
pub(super) struct Text(String);

/// Takes the samples of one row.
#[derive(Debug)]
pub struct Samples<'a> {
    row: &'a Row,
    out: &'a mut String,
}

impl Text {
    pub(super) fn row(&mut self, row: &Row, seen: &Seen) {
        let kind = row.kind.as_str();
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {0} {1}\n# TYPE {0} {kind}", row.name, row.help);
        (row.read)(seen, &mut Samples { row, out: &mut self.0 });
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Samples<'_> {
    pub fn plain(&mut self, value: u64) {
        self.sample("", None, None, value);
    }

    pub fn float(&mut self, value: f64) {
        self.sample("", None, None, value);
    }

    pub fn labelled(&mut self, key: &str, value: &str, sample: u64) {
        self.sample("", Some((key, value)), None, sample);
    }

    pub fn histogram(&mut self, label: Option<(&str, &str)>, histogram: &Histogram) {
        let cumulative = histogram.cumulative();
        for (i, count) in cumulative.iter().enumerate() {
            let bound = Histogram::BOUNDS_MS.get(i).map(|ms| (*ms as f64 / 1000.0).to_string());
            self.sample("_bucket", label, Some(bound.as_deref().unwrap_or("+Inf")), count);
        }
        self.sample("_sum", label, None, histogram.seconds());
        // Of the same moment as the buckets.
        self.sample("_count", label, None, cumulative[cumulative.len() - 1]);
    }

    fn sample(&mut self, suffix: &str, label: Option<(&str, &str)>, bound: Option<&str>, value: impl Display) {
        debug_assert!(
            label.is_none_or(|(key, value)| self.row.label.is_some_and(|(k, vs)| k == key && vs.contains(&value))),
            "{}: {label:?}",
            self.row.name
        );
        let pairs = label.into_iter().chain(bound.map(|b| ("le", b)));
        let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let labels = if pairs.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", pairs.join(","))
        };
        let _ = writeln!(self.out, "{}{suffix}{labels} {value}", self.row.name);
    }
}
