//! The node's samples as tables and as JSON.
//!
//! In: samples by row, way and heat. Out: medians, and speed beside the plain way. Invariant: a ratio is taken within a round; the
//! JSON has every sample.
//! Not here: measuring.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Serialize;

use super::NodeBenchConfig;
use super::memory::Memory;
use super::rows::Row;
use super::watch::Seen;
use crate::bench::report::{number, plain_table};
use crate::playground::report::median;

#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub seconds: f64,
    /// Over FUSE, by name; absent where the kernel could not count, or nobody serves by FUSE.
    pub requests: Option<BTreeMap<String, u64>>,
    pub daemon_cpu_seconds: f64,
    pub daemon_rss_bytes: u64,
}

impl Sample {
    pub fn new(seconds: f64, seen: &Seen) -> Self {
        Self {
            seconds,
            requests: seen.requests.clone(),
            daemon_cpu_seconds: seen.cpu.as_secs_f64(),
            daemon_rss_bytes: seen.rss_bytes,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Cell {
    pub row: &'static str,
    pub way: String,
    pub cold: bool,
    /// One a round.
    pub samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub rounds: usize,
    pub files: usize,
    pub big_bytes: u64,
    /// Before the first round and after each: over 1, 5 and 15 minutes.
    pub load: Vec<String>,
    /// The plain way is the first of its row and heat.
    pub cells: Vec<Cell>,
    pub memory: Vec<Memory>,
    /// What was asked for and was not measured, or not to the end, and why.
    pub absent: Vec<(String, String)>,
    pub notes: Vec<String>,
}

impl Report {
    pub fn new(config: &NodeBenchConfig) -> Self {
        Self {
            rounds: config.rounds,
            files: config.files,
            big_bytes: config.big_bytes,
            load: Vec::new(),
            cells: Vec::new(),
            memory: Vec::new(),
            absent: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn absent(&mut self, what: &str, why: impl Display) {
        self.absent.push((what.to_owned(), why.to_string()));
    }

    pub fn add(&mut self, row: Row, way: &str, cold: bool, sample: Sample) {
        let same = |c: &&mut Cell| c.row == row.name() && c.way == way && c.cold == cold;
        if let Some(cell) = self.cells.iter_mut().find(same) {
            cell.samples.push(sample);
            return;
        }
        self.cells.push(Cell {
            row: row.name(),
            way: way.to_owned(),
            cold,
            samples: vec![sample],
        });
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "Medians of {} round(s); {} files, one of {} MiB. Speed: the unpacked image's time / this one's. Load: {}.\n",
            self.rounds,
            self.files,
            self.big_bytes >> 20,
            self.load.join(", ")
        );
        let head = [
            "row",
            "",
            "way",
            "ms",
            "speed",
            "FUSE requests",
            "daemon CPU ms",
            "daemon RSS MiB",
        ];
        let mut table = plain_table(&head);
        for row in Row::ALL {
            for cold in [true, false] {
                for cell in self.cells.iter().filter(|c| c.row == row.name() && c.cold == cold) {
                    table.add_row([
                        cell.row.to_owned(),
                        if cold { "cold" } else { "warm" }.to_owned(),
                        cell.way.clone(),
                        number(median(cell.samples.iter().map(|s| s.seconds * 1e3))),
                        self.speed(cell).map_or("-".to_owned(), number),
                        requests(cell).map_or("-".to_owned(), |n| format!("{n:.0}")),
                        number(median(cell.samples.iter().map(|s| s.daemon_cpu_seconds * 1e3))),
                        number(median(cell.samples.iter().map(|s| mib(s.daemon_rss_bytes)))),
                    ]);
                }
            }
        }
        out.push_str(&format!("{table}\n\n"));
        let mut table = plain_table(&["daemon", "", "layers", "RSS MiB", "idle CPU %", "ms a layer"]);
        for memory in &self.memory {
            table.add_row([
                memory.who.to_owned(),
                memory.what.to_owned(),
                memory.layers.to_string(),
                number(mib(memory.rss_bytes)),
                number(memory.idle_cpu_percent),
                memory.mount_ms.map_or("-".to_owned(), number),
            ]);
        }
        out.push_str(&format!("{table}\n"));
        for note in &self.notes {
            out.push_str(&format!("{note}\n"));
        }
        for (what, why) in &self.absent {
            out.push_str(&format!("Not measured: {what}: {why}\n"));
        }
        out
    }

    /// Beside the plain way in the same rounds; more is better.
    fn speed(&self, cell: &Cell) -> Option<f64> {
        let same = |c: &&Cell| c.row == cell.row && c.cold == cell.cold && c.way == "unpacked";
        let plain = self.cells.iter().find(same)?;
        let ratios = plain.samples.iter().zip(&cell.samples);
        Some(median(ratios.map(|(a, b)| a.seconds / b.seconds)))
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn requests(cell: &Cell) -> Option<f64> {
    let counts: Option<Vec<f64>> = cell
        .samples
        .iter()
        .map(|s| s.requests.as_ref().map(|r| r.values().sum::<u64>() as f64))
        .collect();
    counts.map(median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_taken_round_by_round() {
        let mut report = Report::new(&NodeBenchConfig::default());
        for (plain, ours) in [(1.0, 2.0), (10.0, 5.0), (4.0, 4.0)] {
            report.add(Row::Walk, "unpacked", true, Sample::new(plain, &Seen::default()));
            report.add(Row::Walk, "erofs", true, Sample::new(ours, &Seen::default()));
        }
        assert_eq!(report.speed(&report.cells[1]), Some(1.0));
        assert!(report.table().contains("walk"));
    }

    #[test]
    fn who_was_not_measured_is_named() {
        let mut report = Report::new(&NodeBenchConfig::default());
        report.absent("soci", "it has no certificate");
        assert!(report.table().contains("Not measured: soci: it has no certificate\n"));
    }
}
