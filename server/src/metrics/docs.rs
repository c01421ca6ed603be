//! `METRICS.md`: the tables as documentation.
//!
//! In: [`super::names`]. Out: Markdown, which a test compares with the file.
//! Invariant: the file lists every metric and no other.
//! Not here: prose; that is in the file, outside the marks.
#![cfg(test)]

use std::{fmt::Write as _, path::Path};

use super::{
    names,
    table::{Entry, Values},
};

fn table() -> String {
    let mut out = String::from("| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
    let mut labels: Vec<(&str, String)> = Vec::new();
    for entry in names::all() {
        let Entry { name, unit, help, .. } = entry;
        let keys: Vec<_> = entry.labels.iter().map(|l| format!("`{}`", l.key)).collect();
        let _ = writeln!(
            out,
            "| `{name}` | {} | {unit} | {} | {help} |",
            entry.kind.as_str(),
            keys.join(" ")
        );
        for label in entry.labels {
            let values = match label.values {
                Values::Upstreams => "names of the configured upstreams".to_owned(),
                Values::Closed(values) => values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(" "),
            };
            if !labels.iter().any(|(k, v)| *k == label.key && *v == values) {
                labels.push((label.key, values));
            }
        }
    }
    out.push_str("\n| label | values |\n|---|---|\n");
    for (key, values) in labels {
        let _ = writeln!(out, "| `{key}` | {values} |");
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
    for entry in names::all() {
        assert!(seen.insert(entry.name), "{} is there twice", entry.name);
        let ours = entry.name.starts_with("headstart_");
        assert!(ours || entry.name.starts_with("process_"), "{}", entry.name);
        if ours && entry.kind == super::table::Kind::Counter {
            assert!(entry.name.ends_with("_total"), "{}", entry.name);
        }
        if matches!(entry.unit, "bytes" | "seconds") {
            assert!(entry.name.contains(entry.unit), "{}", entry.name);
        }
    }
}

/// A row alone records nothing. One was documented though it was never recorded.
#[test]
fn every_metric_is_recorded_somewhere() {
    let mut code = String::new();
    let mut rooms = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(room) = rooms.pop() {
        for entry in std::fs::read_dir(room).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rooms.push(path);
            } else if !path.ends_with("metrics/names.rs") {
                code.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let uses = |entry: &&Entry| {
        let mut found = code.match_indices(entry.variant);
        found.any(|(at, name)| !code[at + name.len()..].starts_with(|c: char| c.is_alphanumeric()))
    };
    let unused: Vec<_> = names::all().filter(|entry| !uses(entry)).map(|e| e.name).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
