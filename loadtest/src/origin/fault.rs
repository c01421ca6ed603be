//! What goes wrong, where, and how often.
//!
//! In: rules from a test. Out: for each request, the faults that apply.
//! Invariant: a rule with a count is used up by exactly that many matching requests; several rules may hit one request.
//! Not here: acting them out ([`super::answer`] and [`super::body`]).

use std::sync::Arc;
use std::time::Duration;

use headstart_layer_format::BlobDigest;
use tokio::sync::watch;

/// Which requests a rule hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Everything,
    /// Any blob, on the registry or the CDN.
    Blobs,
    Manifests,
    /// HEAD of a manifest.
    ManifestHeads,
    Token,
    /// A blob or manifest asked by digest, and a tag that resolves to it.
    Digest(BlobDigest),
    /// Requests whose path contains this.
    Path(String),
    /// Only on the CDN.
    Cdn,
    /// Of these, what is HEAD.
    Heads(Box<Target>),
    /// Of these, what is not HEAD.
    Gets(Box<Target>),
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error answer instead of the content.
    Status { code: u16, retry_after_secs: Option<u64> },
    /// The head comes late.
    DelayHeaders(Duration),
    /// The head waits until the test opens the gate.
    HoldHead { gate: Gate },
    /// The body comes slowly.
    Throttle { bytes_per_sec: u64 },
    /// The connection is closed after so many body bytes, with the full length announced.
    Truncate { after: u64 },
    /// As `Truncate`, but with a TCP reset.
    Reset { after: u64 },
    /// A reset before any answer.
    ResetAtOnce,
    /// Nothing more for this long after so many body bytes, then the rest.
    Stall { after: u64, pause: Duration },
    /// The byte at this offset of the content (not of the body) is another one.
    WrongByte { at: u64 },
    /// 200 and everything, whatever was asked.
    IgnoreRange,
    /// 206 without the size of the whole: `bytes 0-9/*`.
    NoTotal,
    /// 206 with no more than so many of the bytes that were asked for.
    ShortRange { bytes: u64 },
    /// `Docker-Content-Digest` of something else.
    WrongDigestHeader,
    /// No `Docker-Content-Digest`.
    NoDigestHeader,
    /// No `Content-Length`: chunked, and nothing on HEAD.
    NoLength,
    /// Another `Content-Type`.
    ContentType(&'static str),
    /// One more header, on content and on the error of a `Status` alike.
    Header { name: &'static str, value: String },
    /// A redirect to anywhere.
    Redirect { location: String },
    /// Body bytes from this offset on wait until the test opens the gate.
    Hold { at: u64, gate: Gate },
    /// Nothing of the content (not of the body) from this offset on, ever; the connection stays open.
    Wall { at: u64 },
}

impl Fault {
    pub(super) fn short_range(&self) -> Option<u64> {
        match self {
            Self::ShortRange { bytes } => Some(*bytes),
            _ => None,
        }
    }
}

/// A barrier that a test opens: determinism without sleeping.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everything through, now and later.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn passed(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) target: Target,
    pub(super) fault: Fault,
    /// `None`: always.
    pub(super) left: Option<u32>,
}

/// What a rule can look at.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) path: &'a str,
    pub(super) digest: Option<&'a BlobDigest>,
    pub(super) cdn: bool,
    /// The method is HEAD.
    pub(super) head: bool,
}

impl Target {
    fn hits(&self, s: &Subject<'_>) -> bool {
        match self {
            Self::Everything => true,
            Self::Blobs => s.cdn || s.path.contains("/blobs/"),
            Self::Manifests => s.path.contains("/manifests/"),
            Self::ManifestHeads => s.head && s.path.contains("/manifests/"),
            Self::Token => s.path == "/token",
            Self::Digest(d) => s.digest == Some(d),
            Self::Path(part) => s.path.contains(part),
            Self::Cdn => s.cdn,
            Self::Heads(of) => s.head && of.hits(s),
            Self::Gets(of) => !s.head && of.hits(s),
        }
    }
}

/// Takes the faults of one request out of the rules.
pub(super) fn take(rules: &mut Vec<Rule>, subject: &Subject<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for rule in rules.iter_mut().filter(|r| r.target.hits(subject)) {
        faults.push(rule.fault.clone());
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
    }
    rules.retain(|r| r.left != Some(0));
    faults
}
