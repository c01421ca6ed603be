//! What a server is told of a start.
//!
//! In: notes of a start, the image's layers, its profile as this node knows it. Out: a [`Trace`], or nothing worth telling.
//! Invariant: a trace names only chunks and files of the image; it stays within the limits of the format; times never
//! decrease; names that are not UTF-8 are left out.
//! Not here: when it is made and posted (`profile/starts.rs`).

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;

use headstart_layer_format::limits::{TRACE_READS_MAX, TRACE_SIZE_MAX};
use headstart_layer_format::profile::{Class, StartId, Trace, TraceRead};
use headstart_layer_format::toc::{EntryId, Kind};

use super::recording::Note;
use crate::cache::Layer;

/// What JSON adds to a read's digest and file.
const READ_SIZE: usize = 140;

/// `presumed`: chunks (position, index) of the profile that other starts of this node had read before, whose reads by this
/// one the page cache may have answered. They count as needed at once: a trace without them would say that they are not.
/// Blocks: names of files are looked for. `None`: nothing was read.
pub fn make(layers: &[Arc<Layer>], presumed: &[(u32, u32)], notes: &[Note]) -> Option<Trace> {
    if notes.is_empty() {
        return None;
    }
    let names: Vec<HashMap<u64, String>> = (0u32..)
        .zip(layers)
        .map(|(position, layer)| names(layer, position, notes))
        .collect();
    let presumed = presumed.iter().map(|&(position, chunk)| Note {
        position,
        chunk,
        body: None,
        ms: 0,
    });
    let mut size = 256usize;
    let mut reads = Vec::new();
    for note in presumed.chain(notes.iter().copied()).take(TRACE_READS_MAX) {
        let layer = layers.get(note.position as usize);
        let chunk = layer.and_then(|l| l.contents().chunks().chunk(note.chunk));
        let Some(chunk) = chunk else { continue };
        let of = names.get(note.position as usize);
        let file = note.body.and_then(|body| of?.get(&body).cloned());
        size = size.saturating_add(READ_SIZE + file.as_deref().map_or(0, written));
        if size > TRACE_SIZE_MAX {
            break;
        }
        reads.push(TraceRead {
            layer: note.position,
            chunk: Some(chunk.digest),
            file,
            ms: note.ms,
        });
    }
    Some(Trace {
        start: StartId(random()?),
        // A snapshotter is not told what will be started.
        class: Class::default(),
        reads,
    })
}

/// A name of each file that was read, by where its body begins.
fn names(layer: &Layer, position: u32, notes: &[Note]) -> HashMap<u64, String> {
    let wanted = notes.iter().filter(|n| n.position == position).filter_map(|n| n.body);
    let mut found: HashMap<u64, Option<String>> = wanted.map(|body| (body, None)).collect();
    // Without names a trace still tells of chunks.
    let toc = match found.is_empty() {
        true => return HashMap::new(),
        false => layer.contents().toc(),
    };
    let Ok(toc) = toc else {
        return HashMap::new();
    };
    let tree = toc.tree();
    for (number, entry) in (0u32..).zip(tree.entries()) {
        let Some(Kind::Regular(content)) = tree.inode(entry.inode).map(|i| &i.kind) else {
            continue;
        };
        for extent in content.extents() {
            if let Some(name @ None) = found.get_mut(&extent.range.start.0) {
                *name = String::from_utf8(tree.path(EntryId(number))).ok();
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(body, name)| Some((body, name?)))
        .collect()
}

/// Bytes of a name in JSON.
fn written(name: &str) -> usize {
    let written = name.chars().map(|c| match c {
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    });
    written.sum()
}

fn random() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").ok()?;
    source.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
