//! Numbers for Prometheus.
//!
//! In: what the node has counted, and how it stands at the moment of the question. Out: the text format. Invariant: every
//! metric is a row of [`names`]; labels have closed sets of values, so the number of series does not depend on images,
//! layers, or what anybody sends.
//! Not here: serving the text ([`crate::observe`]).

mod docs;
pub mod names;
pub mod process;
mod text;

use std::sync::Arc;

use crate::layers::NodeStatus;
use crate::observe::calls::Calls;
use crate::observe::pulls::Totals;
use crate::snapshotter::record::Record;

/// What a row looks at.
#[derive(Debug)]
pub struct Seen {
    /// `None`: no layer can be lazy on this node.
    pub lazy: Option<NodeStatus>,
    pub snapshots: Vec<Arc<Record>>,
    pub pulls: Totals,
    pub calls: Calls,
    pub process: process::Process,
    pub starts: u64,
}

/// All rows, in the text format.
pub fn text(seen: &Seen) -> String {
    let mut out = text::Text::default();
    for row in names::ROWS {
        out.row(row, seen);
    }
    out.finish()
}
