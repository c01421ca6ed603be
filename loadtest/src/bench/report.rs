//! Samples as a table for people and as JSON for programs.
//!
//! In: samples, by server and cell. Out: medians, and ratios between servers.
//! Invariant: a ratio is taken within each round and the median is that of the ratios, so that a slow minute of the
//! machine does not tilt it; the JSON has every sample.
//! Not here: measuring.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use serde_json::json;

use super::{BenchConfig, cell::Sample, peers::Peer};
use crate::playground::report::median;

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    servers: Vec<String>,
    rounds: usize,
    cell_ms: u64,
    /// In the order of measuring.
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Cell {
    asked: &'static str,
    connections: usize,
    /// By server, a sample a round.
    samples: BTreeMap<String, Vec<Sample>>,
}

/// Answers a second.
fn rate(s: &Sample) -> f64 {
    s.requests as f64 / s.seconds
}

fn megabytes_per_second(s: &Sample) -> f64 {
    s.bytes as f64 / 1e6 / s.seconds
}

fn cpu_per_gigabyte(s: &Sample) -> f64 {
    s.cpu_seconds / (s.bytes as f64 / 1e9)
}

fn cpu_per_100k(s: &Sample) -> f64 {
    s.cpu_seconds / (s.requests as f64 / 1e5)
}

impl Report {
    pub fn new(peers: &[Peer], config: &BenchConfig) -> Self {
        Self {
            servers: peers.iter().map(|p| p.label.clone()).collect(),
            rounds: config.rounds,
            cell_ms: config.cell_ms,
            cells: Vec::new(),
        }
    }

    pub fn add(&mut self, server: &str, asked: &'static str, connections: usize, sample: Sample) {
        let at = self
            .cells
            .iter()
            .position(|c| c.asked == asked && c.connections == connections);
        let at = at.unwrap_or_else(|| {
            self.cells.push(Cell {
                asked,
                connections,
                samples: BTreeMap::new(),
            });
            self.cells.len() - 1
        });
        self.cells[at]
            .samples
            .entry(server.to_owned())
            .or_default()
            .push(sample);
    }

    pub fn errors(&self) -> u64 {
        self.samples().map(|(_, s)| s.errors).sum()
    }

    pub fn first_error(&self) -> Option<String> {
        self.samples()
            .find_map(|(server, s)| s.first_error.as_ref().map(|e| format!("{server}: {e}")))
    }

    fn samples(&self) -> impl Iterator<Item = (&String, &Sample)> {
        self.cells.iter().flat_map(|c| {
            c.samples
                .iter()
                .flat_map(|(server, s)| s.iter().map(move |s| (server, s)))
        })
    }

    pub fn json(&self) -> serde_json::Value {
        let cells: Vec<_> = self
            .cells
            .iter()
            .map(|c| json!({ "asked": c.asked, "connections": c.connections, "samples": c.samples }))
            .collect();
        json!({ "servers": self.servers, "rounds": self.rounds, "cell_ms": self.cell_ms, "cells": cells })
    }

    pub fn table(&self) -> String {
        let mut table = plain_table(&[
            "asked",
            "conns",
            "server",
            "req/s",
            "MB/s",
            "p50 ms",
            "p99 ms",
            "CPU s/GB",
            "CPU s/100k req",
            "memory MB",
        ]);
        for cell in &self.cells {
            for server in &self.servers {
                let Some(samples) = cell.samples.get(server) else {
                    continue;
                };
                let of = |f: fn(&Sample) -> f64| {
                    let values = samples.iter().map(f).filter(|v| v.is_finite());
                    number(median(values))
                };
                let quantile = |f: fn(&Sample) -> Option<f64>| {
                    let values: Vec<f64> = samples.iter().filter_map(f).collect();
                    if values.is_empty() {
                        "-".to_owned()
                    } else {
                        number(median(values))
                    }
                };
                let manifest = cell.asked.starts_with("manifest");
                table.add_row([
                    cell.asked.to_owned(),
                    cell.connections.to_string(),
                    server.clone(),
                    of(rate),
                    of(megabytes_per_second),
                    quantile(|s| s.p50_ms),
                    quantile(|s| s.p99_ms),
                    if manifest { "-".to_owned() } else { of(cpu_per_gigabyte) },
                    if manifest { of(cpu_per_100k) } else { "-".to_owned() },
                    of(|s| s.memory_bytes as f64 / 1e6),
                ]);
            }
        }
        let millis = self.cell_ms;
        let head = format!("Medians of {} round(s), {millis} ms a cell.", self.rounds);
        format!("{head}\n{table}\n\n{}\n", self.ratios())
    }

    /// Headstart (each build of it) against every other server.
    fn ratios(&self) -> String {
        let mut table = plain_table(&["asked", "conns", "of", "to", "rate", "work per CPU second"]);
        let (ours, others): (Vec<_>, Vec<_>) = self
            .servers
            .iter()
            .partition(|s| !["registry", "registry-proxy", "nginx"].contains(&s.as_str()));
        for cell in &self.cells {
            for us in &ours {
                for them in others.iter().chain(ours.first().filter(|first| first != &us)) {
                    let (Some(a), Some(b)) = (cell.samples.get(*us), cell.samples.get(*them)) else {
                        continue;
                    };
                    let ratio = |f: &dyn Fn(&Sample) -> f64| {
                        let ratios = a.iter().zip(b).map(|(a, b)| f(a) / f(b));
                        number(median(ratios.filter(|r| r.is_finite())))
                    };
                    table.add_row([
                        cell.asked.to_owned(),
                        cell.connections.to_string(),
                        (*us).clone(),
                        (*them).clone(),
                        ratio(&megabytes_per_second),
                        ratio(&|s| s.bytes as f64 / s.cpu_seconds),
                    ]);
                }
            }
        }
        table.to_string()
    }
}

pub(crate) fn plain_table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(head.to_vec());
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three figures are more than a noisy machine deserves.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let sample = |mb: u64, cpu: f64| Sample {
            seconds: 1.0,
            requests: mb,
            bytes: mb * 1_000_000,
            cpu_seconds: cpu,
            ..Sample::default()
        };
        let mut report = Report {
            servers: vec!["nginx".into(), "headstart".into()],
            rounds: 3,
            cell_ms: 1,
            cells: Vec::new(),
        };
        // The machine is ten times slower in the second round, for both.
        for (us, them) in [(300, 200), (30, 20), (600, 200)] {
            report.add("nginx", "blob-small", 16, sample(them, 1.0));
            report.add("headstart", "blob-small", 16, sample(us, 2.0));
        }
        let text = report.table();
        let ratio = text.lines().last().unwrap_or_default();
        assert!(ratio.contains(" 1.50 ") && ratio.contains(" 0.750 "), "{text}");
        assert_eq!(
            report.json()["cells"][0]["samples"]["nginx"].as_array().map(Vec::len),
            Some(3)
        );
        assert_eq!((report.errors(), report.first_error()), (0, None));
    }
}
