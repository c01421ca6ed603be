//! A scripted origin registry on loopback.
//!
//! In: content, faults and an authentication mode, changed at any time by the test. Out: a registry over HTTP, and a
//! record of every call. Invariant: behaves as a registry of the distribution project until told otherwise; runs on its
//! own thread, so it answers while a test blocks; every port is chosen by the kernel; nothing outlives the [`Origin`].
//! Not here: TLS, pushing, and upstream fetching.

mod accept;
mod answer;
mod auth;
mod body;
mod calls;
mod content;
mod fault;
mod listen;
mod state;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

pub use auth::{Auth, User, basic_header};
pub use calls::{Call, Listener};
pub use fault::{Fault, Gate, Target};

use content::Manifest;
use fault::Rule;
use listen::{Command, Control, Ports};
use state::State;

/// A running origin. Dropping it ends it.
#[derive(Debug)]
pub struct Origin {
    state: Arc<State>,
    control: Control,
    address: SocketAddr,
    cdn_address: SocketAddr,
}

impl Origin {
    /// Starts on a free port. Works in and outside of an async runtime.
    ///
    /// # Panics
    /// When the machine has no ports or threads left.
    pub fn start(auth: Auth) -> Self {
        Self::try_start(auth).expect("loopback has a free port")
    }

    /// An anonymous origin with one image.
    pub fn with_image(repository: &str, tag: &str, image: &crate::corpus::SyntheticImage) -> Self {
        let origin = Self::start(Auth::Anonymous);
        image.push(&origin, repository, tag);
        origin
    }

    fn try_start(auth: Auth) -> io::Result<Self> {
        // TcpSocket registers with a runtime only when it listens, which the thread does.
        let ports = Ports::reserve()?;
        let (address, cdn_address) = (ports.registry(), ports.cdn());
        let state = Arc::new(State::new(auth, format!("http://{address}"), cdn_address.to_string()));
        let (control, commands) = tokio::sync::mpsc::unbounded_channel();
        let (up, is_up) = std_mpsc::channel();
        let shared = state.clone();
        std::thread::Builder::new()
            .name("origin".to_owned())
            .spawn(move || listen::run(shared, ports, commands, &up))?;
        is_up.recv().map_err(io::Error::other)??;
        Ok(Self {
            state,
            control,
            address,
            cdn_address,
        })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where redirected blobs are.
    pub fn cdn_address(&self) -> SocketAddr {
        self.cdn_address
    }

    // ---- content

    /// Adds a blob under its SHA-256 digest.
    pub fn add_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> BlobDigest {
        let bytes = bytes.into();
        let digest = BlobDigest::of(&bytes);
        self.add_blob_as(repository, digest, bytes);
        digest
    }

    /// Adds a blob under any digest: another algorithm, or a lie.
    pub fn add_blob_as(&self, repository: &str, digest: BlobDigest, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.state
            .with_content(|c| c.repository(repository).blobs.insert(digest, bytes));
    }

    /// Adds a manifest of any media type, and points a tag at it.
    pub fn add_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> BlobDigest {
        let bytes = bytes.into();
        let digest = BlobDigest::of(&bytes);
        self.add_manifest_as(repository, tag, media_type, digest, bytes);
        digest
    }

    /// Adds a manifest under any digest.
    pub fn add_manifest_as(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        digest: BlobDigest,
        bytes: impl Into<Bytes>,
    ) {
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            bytes: bytes.into(),
        };
        self.state.with_content(|c| {
            let repository = c.repository(repository);
            repository.manifests.insert(digest, manifest);
            if let Some(tag) = tag {
                repository.tags.insert(tag.to_owned(), digest);
            }
        });
    }

    /// Points a tag at a manifest, present or not.
    pub fn tag(&self, repository: &str, tag: &str, digest: BlobDigest) {
        self.state
            .with_content(|c| c.repository(repository).tags.insert(tag.to_owned(), digest));
    }

    /// Lists these tags, in this order, whatever there is: registries list by age, or one twice. Each page begins after
    /// the first mention of the tag before it.
    pub fn list_tags(&self, repository: &str, tags: &[&str]) {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.state
            .with_content(|c| c.repository(repository).listed = Some(tags));
    }

    /// Removes a blob, or a manifest and the tags that point at it.
    pub fn remove(&self, repository: &str, digest: &BlobDigest) {
        self.state.with_content(|c| {
            let repository = c.repository(repository);
            repository.blobs.remove(digest);
            repository.manifests.remove(digest);
            repository.tags.retain(|_, d| d != digest);
        });
    }

    // ---- behaviour

    /// Does `fault` to every matching request from now on.
    pub fn always(&self, target: Target, fault: Fault) {
        self.rule(target, fault, None);
    }

    /// Does `fault` to the next `times` matching requests.
    pub fn times(&self, times: u32, target: Target, fault: Fault) {
        if times > 0 {
            self.rule(target, fault, Some(times));
        }
    }

    /// Does `fault` to the next matching request.
    pub fn once(&self, target: Target, fault: Fault) {
        self.times(1, target, fault);
    }

    /// Holds bodies back from offset `at` on, until the gate is opened.
    pub fn hold(&self, target: Target, at: u64) -> Gate {
        let gate = Gate::new();
        self.always(target, Fault::Hold { at, gate: gate.clone() });
        gate
    }

    /// Holds answers back altogether, until the gate is opened.
    pub fn hold_heads(&self, target: Target) -> Gate {
        let gate = Gate::new();
        self.always(target, Fault::HoldHead { gate: gate.clone() });
        gate
    }

    /// Behaves again.
    pub fn clear_faults(&self) {
        self.state.rules().clear();
    }

    pub fn set_auth(&self, auth: Auth) {
        self.state.set_auth(auth);
    }

    /// Tokens given out so far are no longer good.
    pub fn expire_tokens(&self) {
        self.state.expire_tokens();
    }

    /// Sends blob requests to the other host, with a signed URL (307).
    pub fn redirect_blobs(&self, on: bool) {
        self.state.set_redirects(on);
    }

    /// Whether there is a referrers API. Off at first, as in the distribution project's registry.
    pub fn referrers_api(&self, on: bool) {
        self.state.set_referrers(on);
    }

    /// Whether media types that `Accept` does not name are refused or replaced, as distribution does. Off at first: other
    /// registries give what they have.
    pub fn strict_accept(&self, on: bool) {
        self.state.set_strict(on);
    }

    /// Lists come in pages of so many entries.
    pub fn page_max(&self, entries: usize) {
        self.state.set_page_max(entries);
    }

    /// Signed URLs given out so far answer 403.
    pub fn expire_signatures(&self) {
        self.state.expire_signatures();
    }

    /// Cuts every connection and refuses new ones, as an upstream that is down. Returns when it is so.
    pub fn stop(&self) {
        self.command(Command::Stop);
    }

    /// Comes back on the same port.
    pub fn restart(&self) {
        self.command(Command::Restart);
    }

    // ---- what happened

    /// Every call since the start or [`Origin::clear_calls`].
    pub fn calls(&self) -> Vec<Call> {
        self.state.calls.snapshot()
    }

    pub fn clear_calls(&self) {
        self.state.calls.clear();
    }

    /// GETs of a blob or manifest that came with content (200, 206).
    pub fn gets(&self, digest: &BlobDigest) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|c| c.method == "GET" && c.digest == Some(*digest) && matches!(c.status, 200 | 206));
        calls
    }

    /// Body bytes sent of a blob or manifest, over all calls.
    pub fn bytes_sent(&self, digest: &BlobDigest) -> u64 {
        self.gets(digest).iter().map(|c| c.body_sent).sum()
    }

    /// Waits until the calls satisfy `enough`; fails after 30 s, far above what any step of a test takes.
    pub async fn wait_for(&self, what: &str, mut enough: impl FnMut(&[Call]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !enough(&self.calls()) {
            assert!(
                Instant::now() < deadline,
                "the origin waited in vain for {what}: {:#?}",
                self.calls()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn rule(&self, target: Target, fault: Fault, left: Option<u32>) {
        self.state.rules().push(Rule { target, fault, left });
    }

    fn command(&self, make: impl FnOnce(std_mpsc::Sender<io::Result<()>>) -> Command) {
        let (done, is_done) = std_mpsc::channel();
        self.control
            .send(make(done))
            .expect("the origin's thread lives as long as the origin");
        is_done
            .recv()
            .expect("the origin's thread lives as long as the origin")
            .expect("the origin's own ports can be bound again");
    }
}
