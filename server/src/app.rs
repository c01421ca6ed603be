//! Wiring (owner MIRROR).
use crate::{
    metrics::Metrics,
    read::{blobs::Blobs, layers::Layers},
    store::Store,
};
#[derive(Clone, Debug)]
pub struct App {
    pub store: Store,
    pub blobs: Blobs,
    pub layers: Layers,
    pub metrics: Metrics,
}
