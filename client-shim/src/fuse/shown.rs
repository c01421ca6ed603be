//! A layer's tree as the FUSE mount shows it, made when somebody first asks and mended when its file is damaged.
//!
//! In: a layer. Out: its [`TreeFile`], and answers of it. Invariant: a file that was found damaged is not asked again: the
//! next answer comes from one that was made anew from the TOC, and if that is damaged too, from memory that no disk can
//! damage. What is in memory only for want of room on the disk goes there once there is some. Most layers are shown as images, and
//! nobody asks.
//! Not here: what is in the file (`tree_file`), answers in the terms of requests (`fuse/tree_fs.rs`).

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headstart_layer_format::Toc;

use super::tree_file::{Blocks, TreeError, TreeFile};
use super::tree_fs::FsError;
use crate::cache::Layer;
use crate::counters::Counters;

/// A tree that is damaged is made anew on this disk so often; then in memory.
const MAKES_MAX: u32 = 1;
/// Making a tree takes the time of many answers: where it cannot be done, it is not tried for each.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a tree without room on the disk is tried there again: the TOC is read for it.
const ROOM_AGAIN: Duration = Duration::from_secs(10);
/// The pause doubles with each try, up to this.
const ROOM_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// What trees of layers share on a node.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) blocks: Arc<Blocks>,
    pub(super) counters: Arc<Counters>,
}

#[derive(Debug)]
pub(super) struct Shown {
    pub(super) layer: Arc<Layer>,
    shared: Shared,
    state: Mutex<State>,
    /// Held while the file is written, so that one writes it. Nobody who has it waits for the state.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    tree: Option<Arc<TreeFile>>,
    /// Since when it is in memory for want of room on the disk, or was tried there; and when it is tried again.
    homeless: Option<(Instant, Duration)>,
    /// How often it was found damaged.
    damages: u32,
    /// When it could not be made.
    failed: Option<Instant>,
}

impl Shown {
    pub(super) fn new(layer: Arc<Layer>, shared: Shared) -> Self {
        Self {
            layer,
            shared,
            state: Mutex::default(),
            writing: Mutex::default(),
        }
    }

    /// Has an answer to `question`, which may be asked again after an error.
    pub(super) fn ask<T>(
        &self,
        mut question: impl FnMut(&TreeFile) -> Result<Result<T, FsError>, TreeError>,
    ) -> Result<T, FsError> {
        for _ in 0..MAKES_MAX + 2 {
            let tree = self.tree()?;
            match question(&tree) {
                Ok(answer) => return answer,
                Err(error) => self.damaged(&tree, &error),
            }
        }
        Err(FsError::Io)
    }

    /// Opens a file, or makes it, the first time.
    pub(super) fn tree(&self) -> Result<Arc<TreeFile>, FsError> {
        // Held meanwhile, so that it is made once.
        let mut state = self.lock();
        if let Some(tree) = &state.tree {
            return Ok(Arc::clone(tree));
        }
        if state.failed.is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(FsError::Io);
        }
        match self.get(&mut state) {
            Ok(tree) => {
                let tree = state.tree.insert(Arc::new(tree));
                Ok(Arc::clone(tree))
            }
            Err(error) => {
                tracing::error!(layer = %self.layer.digest(), %error, "layer-tree-unreadable");
                state.failed = Some(Instant::now());
                Err(FsError::Io)
            }
        }
    }

    fn get(&self, state: &mut State) -> Result<TreeFile, TreeError> {
        let (contents, blocks) = (self.layer.contents(), &self.shared.blocks);
        let (path, digest) = (self.layer.file().tree(), contents.toc_digest());
        if state.damages == 0 {
            match TreeFile::open(&path, digest, blocks) {
                Ok(tree) => return Ok(tree),
                Err(TreeError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => self.note(state, &error),
            }
        }
        let toc = contents.toc()?;
        if state.damages <= MAKES_MAX {
            match self.make(&toc) {
                Ok(tree) => return Ok(tree),
                // As on a full disk.
                Err(error) => {
                    tracing::warn!(layer = %self.layer.digest(), %error, "layer-tree-not-on-disk");
                    state.homeless = Some((Instant::now(), ROOM_AGAIN));
                }
            }
        }
        TreeFile::in_memory(&toc, digest, blocks)
    }

    fn make(&self, toc: &Toc) -> Result<TreeFile, TreeError> {
        let (path, digest) = (self.layer.file().tree(), self.layer.contents().toc_digest());
        let _writing = self.writing.lock().unwrap_or_else(|p| p.into_inner());
        TreeFile::make(&path, toc, digest)?;
        TreeFile::open(&path, digest, &self.shared.blocks)
    }

    /// A tree that is in memory because the disk had no room goes there, if there is some. Who asks meanwhile is answered from
    /// memory. Blocks.
    pub(super) fn settle(&self) {
        let homeless = {
            let state = self.lock();
            match (&state.tree, state.homeless) {
                (Some(tree), Some((at, pause))) if at.elapsed() >= pause => Arc::clone(tree),
                _ => return,
            }
        };
        if !homeless.len().is_ok_and(|len| self.layer.file().room().may_keep(len)) {
            self.put_off(|_| ROOM_AGAIN);
            return;
        }
        // Something else may be wrong with the disk, and a try is dear: it reads all of the TOC.
        self.put_off(|pause| (pause * 2).min(ROOM_AGAIN_MAX));
        let toc = self.layer.contents().toc().map_err(TreeError::from);
        match toc.and_then(|toc| self.make(&toc)) {
            Ok(tree) => {
                let mut state = self.lock();
                // Unless it was given up meanwhile.
                if state.tree.as_ref().is_some_and(|now| Arc::ptr_eq(now, &homeless)) {
                    state.tree = Some(Arc::new(tree));
                    state.homeless = None;
                    tracing::info!(layer = %self.layer.digest(), "layer-tree-on-disk-again");
                }
            }
            Err(error) => tracing::debug!(layer = %self.layer.digest(), %error, "layer-tree-still-not-on-disk"),
        }
    }

    fn put_off(&self, longer: impl Fn(Duration) -> Duration) {
        let mut state = self.lock();
        state.homeless = state.homeless.map(|(_, pause)| (Instant::now(), longer(pause)));
    }

    fn damaged(&self, tree: &Arc<TreeFile>, error: &TreeError) {
        let mut state = self.lock();
        // Somebody else may have seen it first.
        if state.tree.as_ref().is_some_and(|now| Arc::ptr_eq(now, tree)) {
            state.tree = None;
            state.homeless = None;
            self.note(&mut state, error);
        }
    }

    fn note(&self, state: &mut State, error: &TreeError) {
        tracing::warn!(layer = %self.layer.digest(), %error, "layer-tree-made-anew");
        self.shared.counters.damaged_trees.add(1);
        state.damages += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}
