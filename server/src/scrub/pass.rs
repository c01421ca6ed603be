//! One pass over everything: originals, packs, index.
//!
//! In: the originals, the store, where to begin. Out: a [`Report`]. Invariant: without `repair` nothing is changed. With
//! it, what is damaged is set aside or forgotten, and nothing else is; packs are rewritten last, after everything that
//! the index knows of them is in the log again. Findings are bounded, and one that cannot be mended ends nothing.
//! Not here: when ([`super`]), what is damaged in the store ([`crate::store::audit`]).

use std::{collections::HashMap, io, time::Duration};

use super::{
    pace::Pace,
    position::{Position, Stage},
    quarantine::Quarantine,
    report::{Damage, Progress, Report},
};
use crate::store::{
    PackId, Store, StoreError,
    audit::{Audited, Finding, Subject},
    disk::is_want,
    intact::{self, Verdict},
    mend::Mended,
    originals::Originals,
};

/// Fits "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    #[error("read the originals: {0}")]
    Originals(#[from] io::Error),
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// What a pass says while it runs.
#[derive(Debug)]
pub enum Told<'a> {
    /// Bytes of `originals`, `packs` or `index` were read.
    Read(&'static str, u64, Progress),
    Damage(&'a Damage),
    /// Whoever resumes it may begin here.
    At(&'a Position),
}

/// Who runs a pass.
pub trait Runner {
    /// Whether to go on; asked often.
    fn go_on(&self) -> bool;
    /// Rests so long, but not beyond a stop.
    fn rest(&self, time: Duration);
    fn tell(&mut self, told: Told<'_>);
    /// See [`Store::rewrite_packs`].
    fn rewrite(&self, packs: &[PackId]) -> Result<(), String>;
}

/// How a pass ended.
#[derive(Debug)]
pub struct Ended {
    pub report: Report,
    /// Not told to stop before.
    pub whole: bool,
    /// The index is to be rebuilt, by opening the store again.
    pub reopen: bool,
}

pub struct Pass<'a> {
    originals: &'a Originals,
    store: &'a Store,
    quarantine: &'a Quarantine,
    runner: &'a mut dyn Runner,
    pace: Pace,
    report: Report,
    progress: Progress,
    rewrite: Vec<PackId>,
    /// Damages of packs, which are mended by that.
    waiting: Vec<(PackId, Damage)>,
    /// How many more there are than [`WAITING_MAX`].
    unlisted: HashMap<PackId, u64>,
    reopen: bool,
}

/// Damages remembered one by one until their packs are rewritten.
const WAITING_MAX: usize = 1_000;

fn unlisted(pack: PackId) -> Damage {
    Damage {
        what: "record".into(),
        name: format!("pack {}", pack.0),
        why: "no record can be read in one of many places".into(),
        repaired: false,
    }
}

impl<'a> Pass<'a> {
    pub fn new(
        originals: &'a Originals,
        store: &'a Store,
        quarantine: &'a Quarantine,
        runner: &'a mut dyn Runner,
        bytes_per_sec: u64,
        repair: bool,
    ) -> Self {
        Self {
            originals,
            store,
            quarantine,
            runner,
            pace: Pace::new(bytes_per_sec),
            report: Report {
                repair,
                ..Report::default()
            },
            progress: Progress::default(),
            rewrite: Vec::new(),
            waiting: Vec::new(),
            unlisted: HashMap::new(),
            reopen: false,
        }
    }

    pub fn run(mut self, from: &Position) -> Result<Ended, ScrubError> {
        self.rewrite = from.rewrite.iter().copied().map(PackId).collect();
        let whole = match self.stages(from) {
            Ok(whole) => whole,
            // The index itself fails: it is marked, and rebuilt when the store is opened again.
            Err(ScrubError::Store(StoreError::Index(error))) => {
                self.reopen = self.report.repair;
                self.damage(Damage {
                    what: "index".into(),
                    name: "the index".into(),
                    why: error.to_string(),
                    repaired: false,
                });
                false
            }
            Err(error) => return Err(error),
        };
        // Not rewritten: told to stop.
        for (_, damage) in std::mem::take(&mut self.waiting) {
            self.damage(damage);
        }
        for (pack, count) in std::mem::take(&mut self.unlisted) {
            (0..count).for_each(|_| self.damage(unlisted(pack)));
        }
        Ok(Ended {
            report: self.report,
            whole,
            reopen: self.reopen,
        })
    }

    fn stages(&mut self, from: &Position) -> Result<bool, ScrubError> {
        let shards = match from.stage {
            Stage::Originals => self.originals.shards()?,
            _ => Vec::new(),
        };
        let mut work = Vec::new();
        for shard in shards {
            let name = shard.to_string_lossy().into_owned();
            if name <= from.shard {
                continue;
            }
            match self.originals.in_shard(&shard) {
                Ok(files) => work.push((name, files)),
                Err(error) if is_want(&error) => return Err(error.into()),
                // One directory must not keep the others from being looked at.
                Err(error) => self.closed("original", name, &error),
            }
        }
        let mut packs = match from.stage {
            Stage::Index => Vec::new(),
            _ => self.store.audit_packs()?,
        };
        packs.retain(|(pack, _)| pack.0 > from.pack);
        let of_originals = work.iter().flat_map(|(_, files)| files).map(|(_, len)| len);
        self.progress.total_bytes = of_originals.sum::<u64>() + packs.iter().map(|(_, len)| len).sum::<u64>();
        let mut at = from.clone();
        for (shard, files) in work {
            for (digest, _) in files {
                if !self.original(&digest)? {
                    return Ok(false);
                }
            }
            at.shard = shard;
            self.runner.tell(Told::At(&at));
        }
        at.stage = at.stage.max(Stage::Packs);
        for (pack, len) in packs {
            if !self.pack(pack, len)? {
                return Ok(false);
            }
            at.pack = pack.0;
            at.rewrite = self.rewrite.iter().map(|pack| pack.0).collect();
            self.runner.tell(Told::At(&at));
        }
        at.stage = Stage::Index;
        self.runner.tell(Told::At(&at));
        self.index()
    }

    /// Counts, rests, and says whether to go on.
    fn read(&mut self, what: &'static str, bytes: u64) -> bool {
        if what != "index" {
            self.progress.done_bytes += bytes;
        }
        self.runner.tell(Told::Read(what, bytes, self.progress));
        if let Some(rest) = self.pace.rest(bytes) {
            self.runner.rest(rest);
        }
        self.runner.go_on()
    }

    fn damage(&mut self, damage: Damage) {
        self.runner.tell(Told::Damage(&damage));
        self.report.add(damage);
    }

    fn closed(&mut self, what: &str, name: String, error: &io::Error) {
        self.damage(Damage {
            what: what.into(),
            name,
            why: format!("it cannot be read: {error}"),
            repaired: false,
        });
    }

    fn original(&mut self, digest: &headstart_layer_format::BlobDigest) -> Result<bool, ScrubError> {
        let originals = self.originals;
        let mut read = 0;
        let verdict = intact::check(originals, digest, &mut |bytes| {
            read += bytes;
            self.read("originals", bytes)
        })?;
        self.report.originals_count += 1;
        self.report.originals_bytes += read;
        if let Verdict::Closed(error) = &verdict {
            self.closed("original", digest.to_string(), error);
        }
        if let Verdict::Damaged(damaged) = verdict {
            let place = || self.quarantine.place(&digest.hex());
            let set_aside = || intact::set_aside(originals, digest, &damaged, place);
            let moved = self.report.repair.then(set_aside);
            if let Some(Err(error)) = &moved {
                tracing::error!(%digest, %error, "failed to set a damaged original aside");
            }
            if let (Some(_), Err(error)) = (&moved, self.quarantine.trim()) {
                tracing::warn!(%error, "the quarantine is not trimmed");
            }
            self.damage(Damage {
                what: "original".into(),
                name: digest.to_string(),
                why: damaged.why.into(),
                repaired: matches!(moved, Some(Ok(()))),
            });
        }
        Ok(self.runner.go_on())
    }

    fn pack(&mut self, pack: PackId, len: u64) -> Result<bool, ScrubError> {
        self.report.packs_count += 1;
        let store = self.store;
        let audited = store.audit_pack(pack, len, &mut |at| self.audited("packs", at));
        match audited {
            // Stopped, or swept meanwhile.
            Ok(None) => Ok(self.runner.go_on()),
            Ok(Some(())) => Ok(true),
            // No damage: it is looked at again when what is lacking is there again.
            Err(StoreError::Io { source, .. }) if !is_want(&source) => {
                self.closed("pack", format!("pack {}", pack.0), &source);
                Ok(self.runner.go_on())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn audited(&mut self, kind: &'static str, at: Audited) -> bool {
        match at {
            Audited::Record { bytes } => {
                self.report.records_count += 1;
                self.report.packs_bytes += bytes;
                self.read(kind, bytes)
            }
            Audited::Row { bytes } => {
                self.report.rows_count += 1;
                self.read(kind, bytes)
            }
            Audited::Found(finding) => {
                self.found(&finding);
                self.runner.go_on()
            }
        }
    }

    fn found(&mut self, finding: &Finding) {
        let mut damage = Damage::of(finding);
        if self.report.repair {
            match self.store.mend(finding) {
                Ok(Mended::Done) => damage.repaired = true,
                Ok(Mended::Rewrite(pack) | Mended::SetAside(pack)) => {
                    if !self.rewrite.contains(&pack) {
                        self.rewrite.push(pack);
                    }
                    match self.waiting.len() < WAITING_MAX {
                        true => self.waiting.push((pack, damage)),
                        false => *self.unlisted.entry(pack).or_default() += 1,
                    }
                    return;
                }
                Ok(Mended::Reopen) => self.reopen = true,
                Err(error) => tracing::error!(%error, name = damage.name, "failed to mend what a scrub found"),
            }
        }
        self.damage(damage);
    }

    fn index(&mut self) -> Result<bool, ScrubError> {
        let store = self.store;
        for finding in store.audit_strangers()? {
            self.found(&finding);
        }
        // Rows of chunks come before those of layers, which then miss them; a TOC is read with its layer.
        if store.audit_index(&mut |at| self.audited("index", at))?.is_none() {
            return Ok(false);
        }
        if !self.rewrite.is_empty() && self.report.repair {
            self.rewrite_packs()?;
        }
        Ok(true)
    }

    fn rewrite_packs(&mut self) -> Result<(), ScrubError> {
        let runner = &*self.runner;
        let restored = self.store.restore(&|| runner.go_on())?;
        tracing::warn!(
            packs = self.rewrite.len(),
            restored,
            "packs with damaged records are rewritten"
        );
        for pack in std::mem::take(&mut self.rewrite) {
            let outcome = match self.store.mend(&Finding {
                subject: Subject::Pack(pack),
                why: "",
            }) {
                Ok(Mended::SetAside(pack)) => self.set_pack_aside(pack),
                Ok(_) => self.runner.rewrite(&[pack]),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = &outcome {
                tracing::error!(pack = pack.0, error, "failed to rewrite a damaged pack");
            }
            let (done, left) = std::mem::take(&mut self.waiting)
                .into_iter()
                .partition(|(of, _)| *of == pack);
            self.waiting = left;
            let done: Vec<(PackId, Damage)> = done;
            let more = self.unlisted.remove(&pack).unwrap_or(0);
            let done = done.into_iter().map(|(_, damage)| damage);
            for mut damage in done.chain((0..more).map(|_| unlisted(pack))) {
                damage.repaired = outcome.is_ok();
                self.damage(damage);
            }
        }
        Ok(())
    }

    fn set_pack_aside(&self, pack: PackId) -> Result<(), String> {
        let to = self
            .quarantine
            .place(&format!("{:08}.pack", pack.0))
            .map_err(|e| e.to_string())?;
        self.store.set_pack_aside(pack, &to).map_err(|e| e.to_string())?;
        self.quarantine.trim().map_err(|e| e.to_string())
    }
}
