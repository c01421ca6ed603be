//! A layer as the rest of the node uses it: what it contains, and how to read it.
//!
//! In: a stored layer and the servers. Out: [`Layer`], the one thing a presentation is given.
//! Invariant: TOC, file and reader belong together. Not here: the tree as the kernel sees it (`fuse`).

use std::sync::Arc;

use headstart_layer_format::BlobDigest;
use tokio::runtime::Handle;

use super::config::LazyConfig;
use super::dir::StoredLayer;
use super::layer_file::LayerFile;
use super::reader::LayerReader;
use crate::contents::Contents;
use crate::counters::Counters;
use crate::fetch::{Flights, Servers};
use crate::profile::Recorder;

#[derive(Debug)]
pub struct Layer {
    stored: StoredLayer,
    reader: LayerReader,
    recorder: Recorder,
}

impl Layer {
    pub fn new(
        stored: StoredLayer,
        servers: &Servers,
        config: &LazyConfig,
        counters: &Arc<Counters>,
        runtime: &Handle,
    ) -> Self {
        let sink: Arc<LayerFile> = Arc::clone(&stored.file);
        let flights = Flights::new(
            servers.clone(),
            Arc::clone(&stored.contents),
            sink,
            Arc::clone(&stored.sources),
            Arc::clone(counters),
            runtime.clone(),
        );
        let reader = LayerReader::new(Arc::clone(&stored.file), flights, config, Arc::clone(counters));
        let recorder = Recorder::new(stored.contents.chunks().len(), false);
        Self {
            stored,
            reader,
            recorder,
        }
    }

    /// As one that another process may have shown before.
    pub fn shown_before(mut self) -> Self {
        self.recorder = Recorder::new(self.stored.contents.chunks().len(), true);
        self
    }

    pub fn digest(&self) -> &BlobDigest {
        &self.stored.digest
    }

    /// Its short, never reused number on this node.
    pub fn slot(&self) -> u32 {
        self.stored.slot
    }

    pub fn contents(&self) -> &Contents {
        &self.stored.contents
    }

    pub fn file(&self) -> &LayerFile {
        &self.stored.file
    }

    pub fn reader(&self) -> &LayerReader {
        &self.reader
    }

    /// Who sees its reads.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(crate) fn stored(&self) -> &StoredLayer {
        &self.stored
    }
}
