//! Reading of packs: by location, open ones kept open.
//!
//! In: locations. Out: verified payloads. Invariant: a record that moved since it was looked up is looked up again; what
//! cannot be read now is an error, what is wrong is a miss.
//! Not here: what a record looks like ([`crate::store::pack`], [`crate::store::record`]).

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Packs;
use crate::store::StoreError;
use crate::store::pack::{Location, Pack, PackId};
use crate::store::record::RecordKind;

/// A record may be moved while it is looked for; twice within one read is already very unlikely.
const LOOKUPS_MAX: usize = 3;

impl Packs {
    /// An open pack; `None`: it has no valid header.
    pub fn pack(&self, id: PackId) -> io::Result<Option<Arc<Pack>>> {
        let current = Arc::clone(&self.fresh().pack);
        if current.id == id {
            return Ok(Some(current));
        }
        if let Some(pack) = self.sealed.get(&id) {
            return Ok(Some(pack));
        }
        // Before the file is opened: one that is deleted meanwhile is not kept open.
        let ticket = self.sealed.ticket();
        let Some(pack) = Pack::open(&self.disk, &self.dir, id)? else {
            return Ok(None);
        };
        let pack = Arc::new(pack);
        self.sealed.keep(ticket, id, Arc::clone(&pack), 1);
        Ok(Some(pack))
    }

    /// The pack's file opened anew: what is on the disk now, whatever was read of it before. `Ok(None)`: its header is
    /// damaged.
    pub fn open_anew(&self, id: PackId) -> io::Result<Option<Pack>> {
        Pack::open(&self.disk, &self.dir, id)
    }

    /// Files that are named like packs and are not in use: their headers could not be read.
    pub fn strangers(&self) -> io::Result<Vec<PackId>> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            out.extend(entry?.file_name().to_str().and_then(PackId::from_file_name));
        }
        // Asked afterwards: a pack that is new since is in use by now, and one that was swept is no file any more.
        out.sort();
        let (current, _) = self.current();
        let lengths = self.lengths();
        // A later one than the current is made anew by the next roll.
        out.retain(|id| *id < current && !lengths.contains_key(id));
        Ok(out)
    }

    /// Moves the file of a sealed pack, of which nothing can be read, out of the way; it may be gone already.
    pub fn set_aside(&self, id: PackId, to: &Path) -> io::Result<()> {
        match self.disk.rename(&id.path(&self.dir), to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.gone(id)
    }

    /// The payload of the record that `locate` finds. A pack may be swept between the look-up and the read, so a miss
    /// looks once more. `Err(at)`: the record there is damaged or gone.
    pub fn read_located(
        &self,
        kind: RecordKind,
        key: &[u8],
        locate: impl Fn() -> Result<Option<Location>, StoreError>,
    ) -> Result<Option<Result<Bytes, Location>>, StoreError> {
        let mut last = None;
        for _ in 0..LOOKUPS_MAX {
            let Some(at) = locate()? else { return Ok(None) };
            if last == Some(at) {
                break;
            }
            if let Some(payload) = self.read(at, kind, key)? {
                return Ok(Some(Ok(payload)));
            }
            last = Some(at);
        }
        Ok(last.map(Err))
    }

    /// The verified payload; `None` when the record is damaged or gone. An error says nothing about the record.
    pub fn read(&self, at: Location, kind: RecordKind, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.in_pack(at.pack, |pack| pack.read(at, kind, key))
    }

    /// As [`Packs::read`], of records of one pack that lie one behind the other.
    pub fn read_run(&self, kind: RecordKind, run: &[(Location, &[u8])]) -> io::Result<Vec<Option<Bytes>>> {
        let Some((first, _)) = run.first() else {
            return Ok(Vec::new());
        };
        let read = self.in_pack(first.pack, |pack| pack.read_run(kind, run).map(Some))?;
        Ok(read.unwrap_or_default())
    }

    /// Whether the header of exactly this record is there; as [`Packs::read`].
    pub fn is_header(&self, at: Location, kind: RecordKind, key: &[u8]) -> io::Result<bool> {
        let header = self.in_pack(at.pack, |pack| pack.header(at, kind, key))?;
        Ok(header.is_some())
    }

    fn in_pack<T>(&self, id: PackId, read: impl Fn(&Pack) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        match self.pack(id) {
            Ok(Some(pack)) => read(&pack),
            Ok(None) => Ok(None),
            // Swept since the location was looked up: the caller looks it up again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
