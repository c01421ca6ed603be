//! `METRICS.md`: the rows as documentation.
//!
//! In: [`super::names`]. Out: Markdown, which a test compares with the file. Invariant: the file lists every metric and
//! no other. Not here: prose; that is in the file, outside the marks.
#![cfg(test)]

use std::fmt::Write as _;

use super::names::{ROWS, Type};
use super::{Seen, text};

fn table() -> String {
    let mut out = String::from("| name | type | unit | label | meaning |\n|---|---|---|---|---|\n");
    for row in ROWS {
        let label = match row.label {
            None => String::new(),
            Some(("version", _)) => "`version`".into(),
            Some((key, values)) => {
                let values: Vec<String> = values.iter().map(|v| format!("`{v}`")).collect();
                format!("`{key}`: {}", values.join(" "))
            }
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {label} | {} |",
            row.name,
            row.kind.as_str(),
            row.unit,
            row.help
        );
    }
    out
}

#[test]
fn the_document_has_every_metric() {
    headstart_loadtest::check::assert_document(env!("CARGO_MANIFEST_DIR"), "METRICS.md", &table());
}

#[test]
fn names_say_their_unit_and_are_unique() {
    let mut seen = std::collections::HashSet::new();
    for row in ROWS {
        assert!(seen.insert(row.name), "{} is there twice", row.name);
        let ours = row.name.starts_with("headstart_shim_");
        assert!(ours || row.name.starts_with("process_"), "{}", row.name);
        assert_eq!(row.kind == Type::Counter, row.name.ends_with("_total"), "{}", row.name);
        if matches!(row.unit, "bytes" | "seconds") {
            assert!(row.name.contains(row.unit), "{}", row.name);
        }
    }
}

/// Every row has samples on a node that did nothing yet, so that a rate of nothing is 0 and not absent; and each line is
/// one that Prometheus reads.
#[test]
fn an_idle_node_has_every_series() {
    let seen = Seen {
        lazy: Some(crate::layers::NodeStatus {
            presentation: "fuse",
            counters: Default::default(),
            layers: Vec::new(),
            lent_bytes: 0,
            prefetches: Vec::new(),
        }),
        snapshots: Vec::new(),
        pulls: Default::default(),
        calls: Default::default(),
        process: super::process::Process::now(),
        starts: 1,
    };
    let text = text(&seen);
    for row in ROWS {
        let samples: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with(row.name) && !l.starts_with('#'))
            .collect();
        let each = if row.kind == Type::Histogram { 16 } else { 1 };
        let values = row.label.map_or(1, |(_, values)| values.len());
        let own = samples.iter().filter(|l| {
            let rest = &l[row.name.len()..];
            rest.starts_with(['{', ' ']) || row.kind == Type::Histogram
        });
        assert_eq!(own.count(), each * values, "{}", row.name);
    }
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
        assert!(labels.ends_with('}') && labels.matches('"').count() % 2 == 0, "{line}");
    }
    assert!(text.contains("headstart_shim_presentation{presentation=\"fuse\"} 1"));
}
