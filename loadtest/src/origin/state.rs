//! Everything the origin's two listeners share.
//!
//! In: the test's changes. Out: answers to the handlers. Invariant: locks are held for look-ups only, never across an
//! await. Not here: HTTP.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

use super::auth::{Auth, Tokens};
use super::calls::CallLog;
use super::content::Content;
use super::fault::Rule;

#[derive(Debug)]
pub(super) struct State {
    pub(super) calls: CallLog,
    content: RwLock<Content>,
    rules: Mutex<Vec<Rule>>,
    auth: RwLock<Auth>,
    tokens: Mutex<Tokens>,
    redirects: AtomicBool,
    referrers: AtomicBool,
    /// `Accept` is taken by the letter.
    strict: AtomicBool,
    /// Entries of a list in one answer.
    page_max: AtomicUsize,
    /// Part of every signed URL; raised to let the ones given out expire.
    signature: AtomicU64,
    url: String,
    cdn_host: String,
}

/// Digest, media type, bytes.
pub(super) type Piece = (BlobDigest, String, Bytes);

impl State {
    pub(super) fn new(auth: Auth, url: String, cdn_host: String) -> Self {
        Self {
            calls: CallLog::default(),
            content: RwLock::default(),
            rules: Mutex::default(),
            auth: RwLock::new(auth),
            tokens: Mutex::default(),
            redirects: AtomicBool::new(false),
            referrers: AtomicBool::new(false),
            strict: AtomicBool::new(false),
            page_max: AtomicUsize::new(usize::MAX),
            signature: AtomicU64::new(1),
            url,
            cdn_host,
        }
    }

    pub(super) fn with_content<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.content.write().expect("no holder panics"))
    }

    pub(super) fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().expect("no holder panics")
    }

    pub(super) fn auth(&self) -> Auth {
        self.auth.read().expect("no holder panics").clone()
    }

    pub(super) fn set_auth(&self, auth: Auth) {
        *self.auth.write().expect("no holder panics") = auth;
    }

    pub(super) fn allows(&self, header: Option<&str>, repository: Option<&str>) -> bool {
        let tokens = self.tokens.lock().expect("no holder panics");
        tokens.allows(&self.auth(), header, repository)
    }

    pub(super) fn challenge(&self, repository: Option<&str>) -> Option<String> {
        self.auth().challenge(&self.url, repository)
    }

    pub(super) fn give_token(&self, scope: &str) -> String {
        self.tokens.lock().expect("no holder panics").give(scope)
    }

    pub(super) fn expire_tokens(&self) {
        self.tokens.lock().expect("no holder panics").expire();
    }

    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<Piece> {
        let content = self.content.read().expect("no holder panics");
        let (digest, manifest) = content.manifest(repository, reference)?;
        Some((digest, manifest.media_type, manifest.bytes))
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Piece> {
        let digest = digest.parse().ok()?;
        let content = self.content.read().expect("no holder panics");
        Some((digest, OCTETS.to_owned(), content.blob(repository, &digest)?))
    }

    pub(super) fn cdn_blob(&self, digest: &str) -> Option<Piece> {
        let digest = digest.parse().ok()?;
        let content = self.content.read().expect("no holder panics");
        Some((digest, OCTETS.to_owned(), content.any_blob(&digest)?))
    }

    pub(super) fn tags(&self, repository: &str, last: &str) -> Option<Vec<String>> {
        let content = self.content.read().expect("no holder panics");
        content.tags(repository, last)
    }

    pub(super) fn referrers(&self, repository: &str, digest: &str) -> Vec<serde_json::Value> {
        let content = self.content.read().expect("no holder panics");
        content.referrers(repository, digest)
    }

    pub(super) fn has_referrers(&self) -> bool {
        self.referrers.load(Ordering::SeqCst)
    }

    pub(super) fn set_referrers(&self, on: bool) {
        self.referrers.store(on, Ordering::SeqCst);
    }

    pub(super) fn is_strict(&self) -> bool {
        self.strict.load(Ordering::SeqCst)
    }

    pub(super) fn set_strict(&self, on: bool) {
        self.strict.store(on, Ordering::SeqCst);
    }

    pub(super) fn page_max(&self) -> usize {
        self.page_max.load(Ordering::SeqCst)
    }

    pub(super) fn set_page_max(&self, entries: usize) {
        self.page_max.store(entries, Ordering::SeqCst);
    }

    pub(super) fn redirects(&self) -> bool {
        self.redirects.load(Ordering::SeqCst)
    }

    pub(super) fn set_redirects(&self, on: bool) {
        self.redirects.store(on, Ordering::SeqCst);
    }

    /// The query of a signed URL that is good now.
    pub(super) fn signature(&self) -> String {
        format!("signature=secret-{}", self.signature.load(Ordering::SeqCst))
    }

    pub(super) fn expire_signatures(&self) {
        self.signature.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn cdn_url(&self, digest: &BlobDigest) -> String {
        format!("http://{}/cdn/{digest}?{}", self.cdn_host, self.signature())
    }
}

/// Registries say this of every blob.
const OCTETS: &str = "application/octet-stream";
