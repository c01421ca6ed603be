//! What readers saw, as a table for people and as JSON.
//!
//! In: counts by system. Out: a table. Invariant: a system that was asked for and could not be had is named, with the reason.
//! Not here: counting.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::readers::Counts;
use super::{Blow, SurvivalConfig};
use crate::bench::report::plain_table;

/// Notes shown of one system; further ones are counted.
const NOTES_MAX: usize = 8;

/// Of one system.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    pub name: String,
    /// Kills, or times its server was away.
    pub blows: usize,
    pub right: u64,
    pub wrong: u64,
    /// Reads that failed, by error.
    pub errors: BTreeMap<String, u64>,
    /// Readers that waited for more than 2 s after all was up again.
    pub stuck: usize,
    /// Readers that never came back.
    pub hanging: usize,
    pub wait_max: Duration,
    /// Rounds after which the mount that readers had went on, without an error.
    pub went_on: usize,
    /// Rounds after which a new mount of the image was right.
    pub fresh_right: usize,
    pub notes: Vec<String>,
}

impl Seen {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            blows: 0,
            right: 0,
            wrong: 0,
            errors: BTreeMap::new(),
            stuck: 0,
            hanging: 0,
            wait_max: Duration::ZERO,
            went_on: 0,
            fresh_right: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, counts: &Counts) {
        let mut sum = Counts {
            right: self.right,
            wrong: self.wrong,
            errors: std::mem::take(&mut self.errors),
        };
        sum.add(counts);
        (self.right, self.wrong, self.errors) = (sum.right, sum.wrong, sum.errors);
    }

    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn errors_but(&self, known: &[&str]) -> String {
        let rest = self.errors.iter().filter(|(kind, _)| !known.contains(&kind.as_str()));
        let rest: Vec<String> = rest.map(|(kind, count)| format!("{kind} {count}")).collect();
        if rest.is_empty() { "0".into() } else { rest.join(", ") }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub rounds: usize,
    /// "daemon" or "server".
    pub blow: &'static str,
    pub systems: Vec<Seen>,
    /// What was asked for and was not measured, and why.
    pub absent: Vec<(String, String)>,
}

impl Report {
    pub(super) fn new(config: &SurvivalConfig) -> Self {
        Self {
            rounds: config.rounds,
            blow: match config.blow {
                Blow::Daemon => "daemon",
                Blow::Server => "server",
            },
            systems: Vec::new(),
            absent: Vec::new(),
        }
    }

    pub fn table(&self) -> String {
        let what = match self.blow {
            "server" => "server or registry away for 3 s",
            _ => "daemon killed with -9, started again after 1 s",
        };
        let mut out = format!(
            "{} round(s) a system: {what}, under {} readers that compare bytes nobody read before.\n",
            self.rounds,
            super::readers::READERS
        );
        let mut table = plain_table(&[
            "system",
            "blows",
            "reads right",
            "wrong bytes",
            "ENOTCONN",
            "EIO",
            "other errors",
            "stuck > 2 s",
            "longest wait after up",
            "never back",
            "mount went on",
            "new mount right",
        ]);
        for seen in &self.systems {
            let count = |kind: &str| seen.errors.get(kind).copied().unwrap_or(0).to_string();
            table.add_row([
                seen.name.clone(),
                seen.blows.to_string(),
                seen.right.to_string(),
                seen.wrong.to_string(),
                count("ENOTCONN"),
                count("EIO"),
                seen.errors_but(&["ENOTCONN", "EIO"]),
                seen.stuck.to_string(),
                format!("{:.2} s", seen.wait_max.as_secs_f64()),
                seen.hanging.to_string(),
                format!("{} of {}", seen.went_on, seen.blows),
                format!("{} of {}", seen.fresh_right, seen.blows),
            ]);
        }
        out.push_str(&format!("{table}\n"));
        for seen in &self.systems {
            for note in seen.notes.iter().take(NOTES_MAX) {
                out.push_str(&format!("{}: {note}\n", seen.name));
            }
            if seen.notes.len() > NOTES_MAX {
                out.push_str(&format!("{}: and {} more\n", seen.name, seen.notes.len() - NOTES_MAX));
            }
        }
        for (name, why) in &self.absent {
            out.push_str(&format!("{name}: not measured: {why}\n"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_kind_of_error_and_who_is_absent() {
        let config = SurvivalConfig {
            rounds: 2,
            blow: Blow::Daemon,
            rivals: Vec::new(),
            peers: None,
            files: 1,
            big_bytes: 1,
        };
        let mut report = Report::new(&config);
        let mut seen = Seen::new("somebody");
        let counts = Counts {
            right: 77,
            wrong: 0,
            errors: [("ENOTCONN".to_owned(), 5), ("errno 99".to_owned(), 3)].into(),
        };
        seen.add(&counts);
        seen.add(&counts);
        (0..NOTES_MAX + 2).for_each(|n| seen.note(format!("note {n}")));
        report.systems.push(seen);
        report.absent.push(("other".into(), "it is not there".into()));
        let table = report.table();
        for part in [
            "154",
            "errno 99 6",
            "and 2 more",
            "other: not measured: it is not there",
        ] {
            assert!(table.contains(part), "{part} in {table}");
        }
    }
}
