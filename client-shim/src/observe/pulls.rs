//! What became of the layers that containerd asked for: the latest by name, all of them in numbers.
//!
//! In: outcomes of lazy `Prepare`s. Out: a short list for people ("why was this pull not lazy?"), totals for metrics.
//! Invariant: bounded, however many pulls there are; texts are cut.
//! Not here: the decision ([`crate::snapshotter::decide`]).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::status::Moment;
use crate::snapshotter::decline::{Decline, DeclineReason};
use crate::snapshotter::labels::LayerIdentity;

/// Pulls remembered: a day of a quiet node, and a page of text.
const LATEST_MAX: usize = 64;
/// Bytes kept of a text that came from outside: references are at most 255, and a server's reason may be long.
const TEXT_MAX: usize = 300;

/// An image's pull, as far as this node has seen it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// When the latest layer was asked for.
    pub at: Moment,
    /// The reference, if containerd told it; else the manifest's digest; else the first layer's chain ID.
    pub image: String,
    pub layers_lazy: u32,
    pub layers_ordinary: u32,
    /// Why layers are ordinary: a value of the log field `lazy_declined`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    latest: VecDeque<Pull>,
    lazy: u64,
    declined: [u64; DeclineReason::ALL.len()],
}

/// Numbers since the start.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub lazy: u64,
    pub declined: [u64; DeclineReason::ALL.len()],
}

#[derive(Debug, Default)]
pub struct PullLog(Mutex<State>);

impl PullLog {
    /// A layer that containerd adopts.
    pub fn lazy(&self, identity: &LayerIdentity) {
        let mut state = self.lock();
        state.lazy += 1;
        state.pull(name(Some(identity), "")).layers_lazy += 1;
    }

    /// A layer that containerd fetches.
    pub fn declined(&self, chain: &str, identity: Option<&LayerIdentity>, decline: &Decline) {
        let mut state = self.lock();
        state.declined[decline.reason as usize] += 1;
        let pull = state.pull(name(identity, chain));
        pull.layers_ordinary += 1;
        // The first is the cause; the layers above are declined because of it.
        if pull.reason.is_none() {
            pull.reason = Some(decline.reason.as_str().into());
            pull.detail = Some(cut(&decline.detail));
        }
    }

    /// Newest first.
    pub fn latest(&self) -> Vec<Pull> {
        self.lock().latest.iter().cloned().collect()
    }

    pub fn totals(&self) -> Totals {
        let state = self.lock();
        Totals {
            lazy: state.lazy,
            declined: state.declined,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The pull that this layer belongs to. Without a name for the image each layer stands alone.
    fn pull(&mut self, image: String) -> &mut Pull {
        let known = self.latest.iter().position(|p| p.image == image);
        let mut pull = known.and_then(|i| self.latest.remove(i)).unwrap_or_default();
        // A pull's layers come within its conversion's waiting time and its own download; what comes later is a new one.
        if pull.at.age_secs() > NEW_PULL_SECS {
            pull = Pull::default();
        }
        pull.image = image;
        pull.at = Moment::now();
        self.latest.truncate(LATEST_MAX - 1);
        self.latest.push_front(pull);
        &mut self.latest[0]
    }
}

/// Ordinary pulls of large layers take minutes between two of them.
const NEW_PULL_SECS: u64 = 300;

fn name(identity: Option<&LayerIdentity>, chain: &str) -> String {
    let Some(identity) = identity else {
        return cut(chain);
    };
    match (&identity.image_ref, &identity.manifest) {
        (Some(reference), _) => cut(reference),
        (None, Some(manifest)) => manifest.to_string(),
        (None, None) => identity.chain_id.to_string(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_layer_format::ChainId;

    fn identity(image: Option<&str>, chain: &[u8]) -> LayerIdentity {
        LayerIdentity {
            chain_id: ChainId::of(chain),
            manifest: None,
            layer: None,
            image_ref: image.map(str::to_owned),
        }
    }

    #[test]
    fn layers_of_one_image_are_one_line_with_the_first_reason() {
        let log = PullLog::default();
        let image = |chain| identity(Some("r/a:1"), chain);
        log.lazy(&image(b"1"));
        let why = |reason| Decline::new(reason, "because");
        log.declined("c", Some(&image(b"2")), &why(DeclineReason::PresentFailed));
        log.declined("c", Some(&image(b"3")), &why(DeclineReason::NotReady));
        log.declined("not a chain", None, &why(DeclineReason::Malformed));
        let latest = log.latest();
        assert_eq!(latest.len(), 2);
        assert_eq!(latest[0].image, "not a chain");
        let pull = &latest[1];
        assert_eq!(
            (pull.image.as_str(), pull.layers_lazy, pull.layers_ordinary),
            ("r/a:1", 1, 2)
        );
        assert_eq!(pull.reason.as_deref(), Some("present_failed"));
        assert_eq!(log.totals().lazy, 1);
        assert_eq!(log.totals().declined.iter().sum::<u64>(), 3);
    }

    #[test]
    fn the_list_is_bounded_and_so_is_each_text() {
        let log = PullLog::default();
        for i in 0..LATEST_MAX + 10 {
            log.lazy(&identity(Some(&format!("{i}-{}", "é".repeat(1000))), b"c"));
        }
        let latest = log.latest();
        assert_eq!(latest.len(), LATEST_MAX);
        assert!(latest.iter().all(|p| p.image.chars().count() <= TEXT_MAX + 3));
        assert!(latest[0].image.starts_with(&format!("{}-", LATEST_MAX + 9)));
    }
}
