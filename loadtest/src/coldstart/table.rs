//! The comparison as text for people.
//!
//! In: a [`Report`]. Out: a table for each image: medians over rounds.
//! Not here: single starts (JSON has them).

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table};

use super::{report::Report, way::Way};

pub fn seconds(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.2}", ms / 1000.0))
}

pub fn megabytes(bytes: Option<f64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |b| format!("{:.1}", b / 1e6))
}

fn times(part: Option<f64>, whole: Option<f64>) -> String {
    match (part, whole) {
        (Some(part), Some(whole)) if whole > 0.0 => format!("{:.2}", part / whole),
        _ => "-".to_owned(),
    }
}

pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for image in &report.images {
        let _ = writeln!(
            out,
            "{}: {} layers, {} MB compressed; ready is {}{}",
            image.name,
            image.layers,
            megabytes(Some(image.compressed_bytes as f64)),
            image.ready,
            match image.new_chunk_bytes {
                Some(new) => format!(
                    "; {} MB of its chunks are new to its nodes",
                    megabytes(Some(new as f64))
                ),
                None => String::new(),
            }
        );
        let _ = writeln!(out, "{}\n", table(report, &image.name));
        let told: Vec<String> = report
            .ways()
            .into_iter()
            .filter_map(|way| Some(format!("  {}: {}\n", way.title(), sources(report, &image.name, way)?)))
            .collect();
        if !told.is_empty() {
            let _ = writeln!(
                out,
                "Where the chunks were from that had come when it was ready, in MB:\n{}",
                told.concat()
            );
        }
        if let (Some(goal), Some(second)) = (
            report.goal_ms(&image.name),
            report.median(&image.name, Way::LazySecond, |s| s.total_ms),
        ) {
            let (goal, second) = (seconds(Some(goal)), seconds(Some(second)));
            let _ = writeln!(
                out,
                "The goal, 1.25 x unpacked + 0.15 s, is {goal} s; the second node took {second} s.\n"
            );
        }
        if let (Some(server), Some(ingest)) = (image.server_cpu_s, image.ingest_cpu_s) {
            let _ = writeln!(
                out,
                "A cold proxy used {server:.2} s of CPU to fetch, convert and serve it, {ingest:.2} s of that to convert.\n"
            );
        }
    }
    out.push_str(&conditions(report));
    out
}

/// `prefetched 11.8, on demand 0.2, copied from other layers 0.0`: these three, and of the rest what there was any of.
pub fn sources(report: &Report, image: &str, way: Way) -> Option<String> {
    let all = report.sources(image, way)?;
    let is_told =
        |name: &str, bytes: f64| bytes > 0.0 || ["prefetched", "on demand", "copied from other layers"].contains(&name);
    let told = all.into_iter().filter(|(name, bytes)| is_told(name, *bytes));
    let told: Vec<String> = told
        .map(|(name, bytes)| format!("{name} {}", megabytes(Some(bytes))))
        .collect();
    Some(told.join(", "))
}

fn table(report: &Report, image: &str) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "start",
        "pull s",
        "create to ready s",
        "total s",
        "x unpacked",
        "2nd start s",
        "pull and read all s",
        "to the node MB",
        "chunks read MB",
        "from the upstream MB",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let local = report.median(image, Way::Local, |s| s.total_ms);
    for way in report.ways() {
        if report.of(image, way).next().is_none() {
            continue;
        }
        let m = |f: fn(&super::report::Sample) -> f64| report.median(image, way, f);
        let declined = report.of(image, way).any(|s| s.declined > 0);
        table.add_row([
            format!("{}{}", way.title(), if declined { " (declined: ordinary)" } else { "" }),
            seconds(m(|s| s.pull_ms)),
            seconds(m(|s| s.ready_ms)),
            seconds(m(|s| s.total_ms)),
            times(m(|s| s.total_ms), local),
            seconds(report.median_some(image, way, |s| s.second_ms)),
            seconds(report.median_some(image, way, |s| s.full_read_ms)),
            megabytes(m(|s| s.node_bytes as f64)),
            megabytes(report.median_some(image, way, |s| s.read_bytes.map(|n| n as f64))),
            megabytes(m(|s| s.upstream_bytes as f64)),
        ]);
    }
    table
}

/// Under what conditions, and what is missing.
pub fn conditions(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    let (low, high) = report.load();
    let _ = writeln!(
        out,
        "Medians of {} round(s), interleaved. Every node on empty state{}. Between node and proxy: {}; to the upstream: {}.",
        report.rounds,
        if report.page_cache_dropped {
            ", page cache dropped before each start"
        } else {
            "; the page cache could NOT be dropped"
        },
        report.links.node.title(),
        report.links.upstream.title(),
    );
    let busy = crate::playground::report::median(report.samples.iter().map(|s| s.cpu_busy));
    let _ = writeln!(
        out,
        "Machine: {} CPUs, {:.1} GB, Linux {}{}; load average {low:.1} to {high:.1}, CPUs {:.0}% busy during a start (median).",
        machine.cpus,
        machine.memory_bytes as f64 / 1e9,
        machine.kernel,
        if machine.is_debug_build { ", DEBUG BUILD" } else { "" },
        busy * 100.0,
    );
    for (way, why) in &report.absent {
        let _ = writeln!(out, "Not measured: {}: {why}", way.title());
    }
    for failure in &report.errors {
        let _ = writeln!(
            out,
            "FAILED: {}, {}, round {}: {}",
            failure.image,
            failure.way.title(),
            failure.round,
            failure.why
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::report::{ImageFigures, Sample};
    use super::*;
    use crate::playground::sources::Sources;

    /// A start with these times and no more.
    pub(crate) fn sample(way: Way, pull_ms: f64, ready_ms: f64) -> Sample {
        Sample {
            image: "app".to_owned(),
            way,
            round: 1,
            pull_ms,
            ready_ms,
            total_ms: pull_ms + ready_ms,
            second_ms: None,
            node_bytes: 1_500_000,
            read_bytes: Some(1_000_000),
            sources: None,
            upstream_bytes: 0,
            full_read_ms: None,
            declined: 0,
            load_average: 1.0,
            cpu_busy: 0.5,
            timeline: None,
        }
    }

    #[test]
    fn medians_ratios_and_what_is_missing_are_shown() {
        let mut report = Report {
            rounds: 3,
            images: vec![ImageFigures {
                name: "app".to_owned(),
                layers: 3,
                compressed_bytes: 9_000_000,
                ..ImageFigures::default()
            }],
            absent: vec![(Way::Nydus, "nydusd is not there".to_owned())],
            ..Report::default()
        };
        for total in [300.0, 5000.0, 400.0] {
            report.samples.push(sample(Way::Local, 0.0, total));
            let sources = Sources {
                prefetched: total as u64 * 10_000,
                copied: 2_500_000,
                filled: 300_000,
                ..Sources::default()
            };
            report.samples.push(Sample {
                sources: Some(sources),
                ..sample(Way::LazySecond, total, total)
            });
        }
        let text = text(&report);
        for expected in [
            "app: 3 layers, 9.0 MB",
            " 0.80 |",
            " 2.00 |",
            "is 0.65 s; the second node took 0.80 s",
            "Not measured: Nydus: nydusd is not there",
            "  lazy, warm proxy, second node: prefetched 4.0, on demand 0.0, background fill 0.3, copied from other layers 2.5\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(
            !text.contains("  unpacked on the node: "),
            "nobody counts there:\n{text}"
        );
    }
}
