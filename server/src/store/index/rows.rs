//! What is in the index, by kind.
//!
//! In: digests, names. Out: locations, states and facts. Invariant: a row that does not parse is doubt about the index, and
//! is said so.
//! Not here: sled ([`super`]), the keys' bytes ([`crate::store::keys`]).

use headstart_layer_format::{BlobDigest, ChainId, ChunkDigest, DiffId, TocDigest};
use serde::{Deserialize, Serialize};

use super::{Index, IndexError, RawRow};
use crate::store::facts::{Membership, Source, TagFact};
use crate::store::keys;
use crate::store::layers::LayerRecord;
use crate::store::pack::{Location, PackId};
use crate::store::usage::now_ms;

const MS_A_DAY: u64 = 24 * 60 * 60 * 1000;

/// One layer that a chain ID was said to end in, and the manifests that said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRow {
    pub layer: BlobDigest,
    pub diff_id: DiffId,
    pub manifests: Vec<BlobDigest>,
}

/// A tag, and when its fact was last written to a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRow {
    pub fact: TagFact,
    pub packed_unix_secs: u64,
}

impl Index {
    fn get_json<T: for<'a> Deserialize<'a>>(&self, what: &'static str, key: &[u8]) -> Result<Option<T>, IndexError> {
        let Some(row) = self.get(what, key)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&row) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.bad_row(what)),
        }
    }

    fn put_json<T: Serialize>(&self, what: &'static str, key: Vec<u8>, value: &T) -> Result<(), IndexError> {
        let bytes = serde_json::to_vec(value).map_err(|_| IndexError::BadRow(what))?;
        self.put(what, key, &bytes)
    }

    fn get_location(&self, what: &'static str, key: &[u8]) -> Result<Option<Location>, IndexError> {
        let Some(row) = self.get(what, key)? else {
            return Ok(None);
        };
        keys::location_from(&row).map(Some).ok_or_else(|| self.bad_row(what))
    }

    /// Writes the row of a chunk; for a rebuild, which has nothing to be atomic with.
    pub fn set_chunk(&self, digest: &[u8; 32], at: &[u8; 20]) -> Result<(), IndexError> {
        let digest = ChunkDigest::from_bytes(*digest);
        self.put("write a chunk", keys::chunk(&digest), at)
    }

    /// Up to where each pack is indexed.
    pub fn progress(&self) -> Result<Vec<(PackId, u64)>, IndexError> {
        self.collect("read the progress", &[keys::PROGRESS], usize::MAX, |pack, end| {
            let pack = pack.try_into().ok().map(u32::from_be_bytes)?;
            Some((PackId(pack), end.try_into().ok().map(u64::from_le_bytes)?))
        })
    }

    pub fn chunk(&self, d: &ChunkDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up a chunk", &keys::chunk(d))
    }

    /// Forgets a damaged chunk, unless it has been replaced meanwhile.
    pub fn forget_chunk(&self, d: &ChunkDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget a chunk", &keys::chunk(d), &keys::location(at))
    }

    /// Forgets where a manifest's fact is, if it is said to be there.
    pub fn forget_manifest(&self, d: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget a manifest", &keys::manifest(d), &keys::location(at))
    }

    /// The same for an image's DiffIDs.
    pub fn forget_diff_ids(&self, manifest: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget DiffIDs", &keys::diff_ids(manifest), &keys::location(at))
    }

    pub fn toc(&self, d: &TocDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up a TOC", &keys::toc(d))
    }

    /// Forgets a TOC that nothing needs, unless it has been written anew meanwhile.
    pub fn forget_toc_at(&self, d: &TocDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget a TOC", &keys::toc(d), &keys::location(at))
    }

    /// Forgets a damaged TOC, so that the next conversion writes it again.
    pub fn forget_toc(&self, d: &TocDigest) -> Result<(), IndexError> {
        self.set_row(&keys::toc(d), None)
    }

    pub fn layer(&self, d: &BlobDigest) -> Result<Option<LayerRecord>, IndexError> {
        Ok(self.layer_row(d)?.map(|(_, record)| record))
    }

    /// A layer's state, and where its record is.
    pub fn layer_row(&self, d: &BlobDigest) -> Result<Option<(Location, LayerRecord)>, IndexError> {
        let what = "look up a layer";
        let Some(row) = self.get(what, &keys::layer(d))? else {
            return Ok(None);
        };
        layer_row(&row).map(Some).ok_or_else(|| self.bad_row(what))
    }

    /// Every layer with its state.
    pub fn layers(&self) -> Result<Vec<(BlobDigest, LayerRecord)>, IndexError> {
        self.collect("list layers", &[keys::LAYER], usize::MAX, |key, row| {
            Some((keys::blob_from(key)?, layer_row(row)?.1))
        })
    }

    /// Every manifest that was ever served.
    pub fn manifests(&self) -> Result<Vec<BlobDigest>, IndexError> {
        self.collect("list manifests", &[keys::MANIFEST], usize::MAX, |key, _| {
            keys::blob_from(key)
        })
    }

    pub fn tags(&self) -> Result<Vec<(Source, String, TagRow)>, IndexError> {
        self.collect("list tags", &[keys::TAG], usize::MAX, |key, row| {
            let (source, tag) = keys::tag_from(key)?;
            Some((source, tag, serde_json::from_slice(row).ok()?))
        })
    }

    /// Targets of pins, whether they are pinned, and where the record is.
    pub fn pins(&self) -> Result<Vec<(Vec<u8>, bool, Location)>, IndexError> {
        self.collect("list pins", &[keys::PIN], usize::MAX, |key, row| {
            let (pinned, at) = row.split_first()?;
            Some((key.to_vec(), *pinned == 1, keys::location_from(at)?))
        })
    }

    pub fn pin(&self, target: &[u8]) -> Result<Option<(bool, Location)>, IndexError> {
        let what = "look up a pin";
        let Some(row) = self.get(what, &keys::pin(target))? else {
            return Ok(None);
        };
        let parsed = row
            .split_first()
            .and_then(|(pinned, at)| Some((*pinned == 1, keys::location_from(at)?)));
        parsed.map(Some).ok_or_else(|| self.bad_row(what))
    }

    pub fn set_pin(&self, target: &[u8], pinned: bool, at: &Location) -> Result<(), IndexError> {
        let mut row = vec![u8::from(pinned)];
        row.extend(keys::location(at));
        self.put("write a pin", keys::pin(target), &row)
    }

    /// When a layer was last used, as far as it was written down.
    pub fn used(&self, layer: &BlobDigest) -> Result<Option<u64>, IndexError> {
        let row = self.get("look up a last use", &keys::used(layer))?;
        Ok(row.and_then(|row| row[..].try_into().ok().map(u64::from_le_bytes)))
    }

    /// Packs whose files may be gone.
    pub fn doomed(&self) -> Result<Vec<PackId>, IndexError> {
        self.collect("list doomed packs", &[keys::DOOMED], usize::MAX, |key, _| {
            Some(PackId(u32::from_be_bytes(key.try_into().ok()?)))
        })
    }

    pub fn manifest(&self, d: &BlobDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up a manifest", &keys::manifest(d))
    }

    pub fn set_manifest(&self, d: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.put("write a manifest", keys::manifest(d), &keys::location(at))
    }

    pub fn diff_ids(&self, manifest: &BlobDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up DiffIDs", &keys::diff_ids(manifest))
    }

    pub fn set_diff_ids(&self, manifest: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.put("write DiffIDs", keys::diff_ids(manifest), &keys::location(at))
    }

    pub fn tag(&self, s: &Source, tag: &str) -> Result<Option<TagRow>, IndexError> {
        self.get_json("look up a tag", &keys::tag(s, tag))
    }

    pub fn set_tag(&self, s: &Source, tag: &str, row: &TagRow) -> Result<(), IndexError> {
        self.put_json("write a tag", keys::tag(s, tag), row)
    }

    pub fn forget_tag(&self, s: &Source, tag: &str) -> Result<(), IndexError> {
        self.set_row(&keys::tag(s, tag), None)
    }

    /// Names of the tags of one source, at most `max`.
    pub fn tags_of(&self, s: &Source, max: usize) -> Result<Vec<String>, IndexError> {
        self.collect("list tags", &keys::tag(s, ""), max, |tag, _| {
            String::from_utf8(tag.to_vec()).ok()
        })
    }

    /// From now on records of facts may have no rows.
    pub fn note_forgetting(&self) -> Result<(), IndexError> {
        self.put("write that facts are forgotten", keys::FORGETTING.to_vec(), &[])
    }

    /// Whether they may.
    pub fn is_forgetting(&self) -> Result<bool, IndexError> {
        Ok(self.row(keys::FORGETTING)?.is_some())
    }

    pub fn member(&self, s: &Source, d: &BlobDigest) -> Result<Option<Membership>, IndexError> {
        let what = "look up a member";
        let Some(row) = self.get(what, &keys::member(s, d))? else {
            return Ok(None);
        };
        let parsed = member_row(&row).map(|(membership, _)| membership);
        parsed.map(Some).ok_or_else(|| self.bad_row(what))
    }

    /// How it is known to be one, if it is, and that this was confirmed today: a row is written for that once a day.
    pub fn confirm_member(&self, s: &Source, d: &BlobDigest) -> Result<Option<Membership>, IndexError> {
        let (key, what) = (keys::member(s, d), "confirm a member");
        let Some(row) = self.get(what, &key)? else {
            return Ok(None);
        };
        let (membership, day) = member_row(&row).ok_or_else(|| self.bad_row(what))?;
        if day != today() {
            // Who has served or forgotten it meanwhile knows more.
            self.replace_if(what, &key, &row, &confirmed_today(membership))?;
        }
        Ok(Some(membership))
    }

    /// Membership is kept always, the way back (blob to source) for at most `sources_max` sources.
    pub fn add_member(
        &self,
        s: &Source,
        d: &BlobDigest,
        membership: Membership,
        sources_max: usize,
    ) -> Result<(), IndexError> {
        if self.confirm_member(s, d)?.is_none_or(|known| known < membership) {
            self.put("write a member", keys::member(s, d), &confirmed_today(membership))?;
        }
        if self.sources(d, sources_max)?.len() < sources_max {
            self.put("write a source", keys::source(d, s), &[])?;
        }
        Ok(())
    }

    pub fn sources(&self, d: &BlobDigest, max: usize) -> Result<Vec<Source>, IndexError> {
        self.collect("list sources", &keys::sources(d), max, |source, _| {
            keys::source_from(source)
        })
    }

    pub fn chain(&self, c: &ChainId) -> Result<Vec<ChainRow>, IndexError> {
        Ok(self.get_json("look up a chain", &keys::chain(c))?.unwrap_or_default())
    }

    pub fn set_chain(&self, c: &ChainId, rows: &[ChainRow]) -> Result<(), IndexError> {
        self.put_json("write a chain", keys::chain(c), &rows)
    }

    /// Rows of a room that keeps its truth elsewhere.
    pub fn notes(&self) -> Result<Vec<RawRow>, IndexError> {
        self.collect("list notes", &[keys::NOTE], usize::MAX, |key, row| {
            Some((key.to_vec(), row.to_vec()))
        })
    }

    pub fn set_note(&self, key: &[u8], row: Option<&[u8]>) -> Result<(), IndexError> {
        self.set_row(&keys::note(key), row)
    }
}

/// How it is known to be a member, and on which day that was confirmed last.
pub(in crate::store) fn member_row(row: &[u8]) -> Option<(Membership, u16)> {
    let [served, low, high] = row.try_into().ok()?;
    let membership = match served {
        0 => Membership::Named,
        1 => Membership::Served,
        _ => return None,
    };
    Some((membership, u16::from_le_bytes([low, high])))
}

/// The row of a member.
fn confirmed_today(membership: Membership) -> [u8; 3] {
    let [low, high] = today().to_le_bytes();
    [u8::from(membership == Membership::Served), low, high]
}

/// Days since 1970.
fn today() -> u16 {
    u16::try_from(now_ms() / MS_A_DAY).unwrap_or(u16::MAX)
}

/// Whether this is the row of a chain.
pub(in crate::store) fn is_chain(row: &[u8]) -> bool {
    serde_json::from_slice::<Vec<ChainRow>>(row).is_ok()
}

pub(in crate::store) fn layer_row(row: &[u8]) -> Option<(Location, LayerRecord)> {
    let at = keys::location_from(row.get(..20)?)?;
    Some((at, serde_json::from_slice(row.get(20..)?).ok()?))
}
