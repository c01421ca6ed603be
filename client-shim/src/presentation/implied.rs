//! Directories that a layer has without an entry for them, over ones that a lower layer does describe.
//!
//! In: the TOCs of a stack. Out: the first directory that the stack, shown layer by layer, would give other owner, mode or
//! extended attributes than unpacking does. Invariant: no false "none": a stack without an answer looks as unpacked, but
//! for modification times of such directories.
//! Not here: what to do about it (the snapshotter declines).
//!
//! A runtime that unpacks `home/app/x` without an entry for `home/app` copies that directory's attributes from the layers
//! below (containerd: `mkparent` with the parents of the snapshot): from the topmost in which there is something at that
//! path, symlinks followed within that layer alone (`fs.RootPath`), if it is a directory. overlayfs takes a merged
//! directory's attributes from its topmost layer, and a layer's tree is shown alike in every stack, so it cannot know
//! them: 0755 root, and the group that `mkdir` gave it in its own layer.

use headstart_layer_format::Toc;
use headstart_layer_format::limits::PATH_LEN_MAX;
use headstart_layer_format::toc::{EntryId, Inode, Kind, Tree};

/// Links that containerd follows in one path; with more, unpacking fails.
const LINKS_MAX: u32 = 255;
/// Names looked up for one stack: a thousand times what images need. Beyond, the answer is the careful one.
const LOOKUPS_MAX: u32 = 16_000_000;

/// Path of such a directory. `stack`: bottom layer first. `over_unpacked`: below the stack are layers without a TOC, in
/// which any directory may be.
pub fn conflict(stack: &[&Toc], over_unpacked: bool) -> Option<Vec<u8>> {
    let mut lookups = LOOKUPS_MAX;
    stack.iter().enumerate().find_map(|(at, upper)| {
        let tree = upper.tree();
        tree.entries().iter().enumerate().find_map(|(entry, e)| {
            let inode = tree.inode(e.inode)?;
            if !matches!(inode.kind, Kind::Directory { implied: true, .. }) {
                return None;
            }
            let path = tree.path(EntryId(u32::try_from(entry).ok()?));
            // The root's attributes are the snapshotter's own matter: it copies them from below.
            if path.is_empty() {
                return None;
            }
            let differs = match copied_from(&stack[..at], &path, &mut lookups) {
                Copied::From(below) => !is_shown_as(inode, below),
                Copied::Nothing => false,
                Copied::Unpacked => over_unpacked,
                Copied::Unclear => true,
            };
            differs.then_some(path)
        })
    })
}

/// Where unpacking takes a directory's attributes from.
enum Copied<'a> {
    From(&'a Inode),
    /// What is there is no directory.
    Nothing,
    /// No layer has it; there may be more of them below.
    Unpacked,
    /// Unpacking may well fail.
    Unclear,
}

/// Whiteouts of what holds the directory are not looked at: one that was hidden meanwhile only makes the answer too
/// careful.
fn copied_from<'a>(stack: &[&'a Toc], path: &[u8], lookups: &mut u32) -> Copied<'a> {
    let mut path = path.to_vec();
    for toc in stack.iter().rev() {
        let tree = toc.tree();
        let entry = match resolve(tree, &path, lookups) {
            Ok(Some(entry)) => entry,
            Ok(None) => continue,
            Err(TooFar) => return Copied::Unclear,
        };
        let inode = tree.entry(entry).and_then(|entry| tree.inode(entry.inode));
        match inode.map(|inode| (inode, &inode.kind)) {
            Some((inode, Kind::Directory { implied: false, .. })) => return Copied::From(inode),
            // It was given what is below it by the same rule, at its own path.
            Some((_, Kind::Directory { .. })) => path = tree.path(entry),
            _ => return Copied::Nothing,
        }
        if path.is_empty() {
            // A link to the root, whose attributes are those of the snapshot.
            return Copied::Unclear;
        }
    }
    Copied::Unpacked
}

struct TooFar;

/// What is at the path, symlinks followed as if the layer were all there is. A link's target is cleaned before it is
/// walked, so `missing/../there` is `there`.
fn resolve(tree: &Tree, path: &[u8], lookups: &mut u32) -> Result<Option<EntryId>, TooFar> {
    let mut todo = cleaned(Vec::new(), path);
    let mut links = 0;
    'again: loop {
        let mut at = EntryId::ROOT;
        for (done, name) in todo.iter().enumerate() {
            *lookups = lookups.checked_sub(1).ok_or(TooFar)?;
            let Some(next) = tree.lookup(at, name) else {
                return Ok(None);
            };
            let kind = tree
                .entry(next)
                .and_then(|e| tree.inode(e.inode))
                .map(|inode| &inode.kind);
            if let Some(Kind::Symlink { target }) = kind {
                links += 1;
                let from = if target.starts_with(b"/") { 0 } else { done };
                let mut parts = cleaned(todo[..from].to_vec(), target);
                parts.extend_from_slice(&todo[done + 1..]);
                if links > LINKS_MAX || parts.iter().map(|part| part.len() + 1).sum::<usize>() > PATH_LEN_MAX {
                    return Err(TooFar);
                }
                todo = parts;
                continue 'again;
            }
            at = next;
        }
        return Ok(Some(at));
    }
}

/// The parts of `path`, walked by their names alone, from `base`.
fn cleaned(mut base: Vec<Vec<u8>>, path: &[u8]) -> Vec<Vec<u8>> {
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(base.pop()),
            name => base.push(name.to_vec()),
        }
    }
    base
}

/// Whether an implied directory is shown with the attributes of another.
fn is_shown_as(implied: &Inode, other: &Inode) -> bool {
    (other.mode & 0o7777, other.uid, other.gid) == (0o755, 0, implied.gid) && other.xattrs.is_empty()
}
