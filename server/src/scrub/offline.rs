//! The same without a server: on the data directory itself, under the store's lock.
//!
//! In: a data directory that nobody uses. Out: a [`Report`]. Invariant: without `repair` nothing in it is different
//! afterwards, not even what a crash left. With it, the store is opened as a server opens it (torn tails are cut, an index
//! that is not to be trusted is rebuilt), and once more when a pass finds that the index is wrong.
//! Not here: whether a server runs (`cli/fsck.rs`).

use std::{path::Path, time::Duration};

use super::{
    Damage, Progress, Report,
    pass::{Pass, Runner, ScrubError, Told},
    position::{Position, Stage},
    quarantine::Quarantine,
};
use crate::{
    config::CacheConfig,
    store::{OpenReport, PackId, Store, StoreError, originals::Originals},
};

/// What to check, and how.
#[derive(Debug)]
pub struct Fsck<'a> {
    pub data_dir: &'a Path,
    pub cache: &'a CacheConfig,
    pub quarantine_bytes_max: u64,
    pub bytes_per_sec: u64,
    pub repair: bool,
}

impl Fsck<'_> {
    pub fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<Report, ScrubError> {
        let (report, reopen) = self.pass(&Position::default(), progress)?;
        if !reopen {
            return Ok(report);
        }
        // Opening rebuilds the index; what is left to see is what it says then.
        let from = Position {
            stage: Stage::Index,
            ..Position::default()
        };
        let (again, _) = self.pass(&from, progress)?;
        let mut all = Report {
            damages: Vec::new(),
            damaged_count: 0,
            repaired_count: 0,
            ..report.clone()
        };
        let unlisted = report.damaged_count - report.damages.len() as u64;
        all.damaged_count = unlisted;
        for mut damage in report.damages {
            damage.repaired |= damage.what == "index";
            all.add(damage);
        }
        // That the index was rebuilt is the repair of what is listed already.
        for damage in again.damages.into_iter().filter(|damage| damage.name != REBUILT) {
            all.add(damage);
        }
        Ok(all)
    }

    fn pass(&self, from: &Position, progress: &mut dyn FnMut(Progress)) -> Result<(Report, bool), ScrubError> {
        let (originals, store) = match self.repair {
            true => {
                let budgets = self.cache.budgets(self.data_dir)?;
                let store = Store::open_with(self.data_dir, budgets.pack_size_max())?;
                (Originals::open(self.data_dir)?, store)
            }
            false => {
                let store = Store::open_to_check(self.data_dir)?;
                (Originals::open_to_check(self.data_dir), store)
            }
        };
        let quarantine = Quarantine::new(self.data_dir, self.quarantine_bytes_max);
        let mut runner = Alone {
            store: &store,
            progress,
        };
        let pass = Pass::new(
            &originals,
            &store,
            &quarantine,
            &mut runner,
            self.bytes_per_sec,
            self.repair,
        );
        let ended = pass.run(from)?;
        let mut report = ended.report;
        opened(&store.open_report(), self.repair, &mut report);
        if self.repair {
            // One that is distrusted by now is rebuilt whatever it says.
            match store.flush() {
                Err(StoreError::Index(_)) if ended.reopen => {}
                flushed => flushed?,
            }
        }
        Ok((report, ended.reopen))
    }
}

const REBUILT: &str = "the index as a whole";

/// What opening found, and mended or would mend.
fn opened(opened: &OpenReport, repair: bool, report: &mut Report) {
    if opened.index_rebuilt || opened.packs_lack {
        let why = match opened.packs_lack {
            true => "it knows records that no pack has",
            false => "it is missing, foreign or broken; it is rebuilt from the packs",
        };
        report.add(Damage {
            what: "index".into(),
            name: REBUILT.into(),
            why: why.into(),
            repaired: repair,
        });
    }
}

struct Alone<'a> {
    store: &'a Store,
    progress: &'a mut dyn FnMut(Progress),
}

impl Runner for Alone<'_> {
    /// Ctrl-C ends the process, which a store survives at any moment.
    fn go_on(&self) -> bool {
        true
    }

    fn rest(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn tell(&mut self, told: Told<'_>) {
        if let Told::Read(_, _, progress) = told {
            (self.progress)(progress);
        }
    }

    fn rewrite(&self, packs: &[PackId]) -> Result<(), String> {
        match self.store.rewrite_packs(packs, &|| true) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
