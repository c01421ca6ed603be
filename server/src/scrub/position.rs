//! Where the scrub that runs by itself is, so that a restart goes on there.
//!
//! In and out: `<data_dir>/scrub.json`. Invariant: replaced as a whole; one that does not parse is no position, and the
//! scrub begins anew. Losing it costs reading.
//! Not here: orders of the operator, which are not resumed.

use std::{fs, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

const FILE: &str = "scrub.json";

/// Parts of a pass, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    #[default]
    Originals,
    Packs,
    Index,
}

/// How far a pass is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub stage: Stage,
    /// Everything up to this directory of originals is done.
    pub shard: String,
    /// Everything up to this pack is done.
    pub pack: u32,
    /// These packs are to be rewritten at the end.
    pub rewrite: Vec<u32>,
}

/// What is in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// When the last whole pass ended; 0: never.
    pub ended_unix_ms: u64,
    /// Of a pass that did not end.
    pub position: Option<Position>,
}

impl State {
    pub fn load(data_dir: &Path) -> Self {
        let text = fs::read(data_dir.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// A pass cannot have ended after now: the clock was set back since, and the next one must not wait until it has
    /// caught up.
    pub fn is_now(&mut self, now_unix_ms: u64) {
        self.ended_unix_ms = self.ended_unix_ms.min(now_unix_ms);
    }

    /// When the next pass is due.
    pub fn due_in(&self, interval_ms: u64, now_unix_ms: u64) -> Duration {
        let due = self.ended_unix_ms.saturating_add(interval_ms);
        Duration::from_millis(due.saturating_sub(now_unix_ms).min(interval_ms))
    }

    pub fn save(&self, data_dir: &Path) -> io::Result<()> {
        let (path, new) = (data_dir.join(FILE), data_dir.join(FILE).with_extension("new"));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock was years ahead when a pass ended, and is right again.
    #[test]
    fn a_clock_that_was_wrong_does_not_put_the_next_pass_off_for_years() {
        let (now, week, year) = (1_800_000_000_000, 604_800_000, 31_536_000_000);
        let mut state = State {
            ended_unix_ms: now + 10 * year,
            position: None,
        };
        state.is_now(now);
        assert_eq!(state.due_in(week, now), Duration::from_millis(week));
        state.is_now(now + week / 2);
        assert_eq!(state.due_in(week, now + week / 2), Duration::from_millis(week / 2));
        assert_eq!(state.due_in(week, now + week), Duration::ZERO);
        assert_eq!(State::default().due_in(week, now), Duration::ZERO);
    }

    #[test]
    fn what_is_saved_is_loaded_and_rubbish_is_a_beginning() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()), State::default());
        let state = State {
            ended_unix_ms: 7,
            position: Some(Position {
                stage: Stage::Packs,
                shard: "sha256/ab".into(),
                pack: 3,
                rewrite: vec![2],
            }),
        };
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()), state);
        fs::write(dir.path().join(FILE), b"{\"ended").unwrap();
        assert_eq!(State::load(dir.path()), State::default());
    }
}
