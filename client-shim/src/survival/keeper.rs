//! Who keeps the mount's descriptors: one of three, behind one face.
//!
//! In: the configuration, the service manager if there is one. Out: what a predecessor left; a promise for a successor.
//! Invariant: a keeper that cannot keep costs survival, not service; a holder that dies is replaced at once.
//! Not here: the keepers themselves.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::holder_client::HolderClient;
use super::{KeepWith, Kept, ServiceManager};

/// A holder is started again after this, so that one that cannot run does not take a CPU.
const AGAIN: Duration = Duration::from_secs(1);

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(
        "keep mounts with systemd, as survival.keep_with demands: it did not start this process (no NOTIFY_SOCKET)"
    )]
    NoServiceManager,
}

#[derive(Clone, Debug)]
pub struct Keeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    by: By,
    /// Who would keep under other circumstances, and may have what a predecessor left: another setting, another systemd.
    formerly: Vec<By>,
    /// For a holder that must be given it anew.
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
enum By {
    Nobody,
    ServiceManager(Arc<ServiceManager>),
    Holder(Mutex<HolderClient>),
}

impl By {
    fn take(&self) -> Option<Kept> {
        match self {
            Self::Nobody => None,
            Self::ServiceManager(manager) => manager.take(),
            Self::Holder(holder) => match lock(holder).take() {
                Ok(kept) => kept,
                Err(error) => {
                    tracing::warn!(%error, "holder-not-asked");
                    None
                }
            },
        }
    }

    /// Whether it has something for [`By::take`].
    fn has(&self) -> bool {
        match self {
            Self::Nobody => false,
            Self::ServiceManager(manager) => manager.has_given(),
            // Copies.
            Self::Holder(_) => self.take().is_some(),
        }
    }

    fn keep(&self, kept: &Kept) -> io::Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::ServiceManager(manager) => manager.keep(kept),
            Self::Holder(holder) => lock(holder).keep(kept),
        }
    }

    fn forget(&self) {
        let done = match self {
            Self::Nobody => Ok(()),
            Self::ServiceManager(manager) => manager.forget(),
            Self::Holder(holder) => lock(holder).quit(),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "keeper-not-told-to-forget");
        }
    }
}

impl Keeper {
    pub fn nobody() -> Self {
        Self::by(By::Nobody, Vec::new())
    }

    /// `root`: the node's directory. Without its lock nothing may be taken, or given up that another may serve.
    pub fn new(with: KeepWith, root: &Path, manager: Option<&Arc<ServiceManager>>) -> Result<Self, KeepError> {
        let holder = By::Holder(Mutex::new(HolderClient::new(root)));
        let manager = manager.map(|m| (m.keeps_while_stopped(), By::ServiceManager(Arc::clone(m))));
        let (by, formerly) = match (with, manager) {
            (KeepWith::Nobody, Some((_, manager))) => (By::Nobody, vec![holder, manager]),
            (KeepWith::Nobody, None) => (By::Nobody, vec![holder]),
            (KeepWith::Systemd, Some((_, manager))) | (KeepWith::Auto, Some((true, manager))) => {
                (manager, vec![holder])
            }
            (KeepWith::Systemd, None) => return Err(KeepError::NoServiceManager),
            (KeepWith::Holder | KeepWith::Auto, Some((_, manager))) => (holder, vec![manager]),
            (KeepWith::Holder | KeepWith::Auto, None) => (holder, Vec::new()),
        };
        Ok(Self::by(by, formerly))
    }

    fn by(by: By, formerly: Vec<By>) -> Self {
        Self(Arc::new(Inner {
            by,
            formerly,
            kept: Mutex::default(),
        }))
    }

    /// Whether mounts outlive this process.
    pub fn keeps(&self) -> bool {
        lock(&self.0.kept).is_some()
    }

    /// What a predecessor left.
    pub fn take(&self) -> Option<Kept> {
        if let Some(kept) = self.0.by.take() {
            return Some(kept);
        }
        let kept = self.0.formerly.iter().find_map(By::take)?;
        match self.0.by.keep(&kept) {
            // With nobody this process alone has it from now on, as is asked for; readers go on until its end.
            Ok(()) => {
                tracing::info!("mount-taken-from-another-keeper");
                self.0.formerly.iter().for_each(By::forget);
            }
            Err(error) => tracing::error!(%error, "mount-not-kept: containers will not survive a restart"),
        }
        Some(kept)
    }

    /// Whether a predecessor left something that nobody took yet: readers wait.
    pub fn has_left(&self) -> bool {
        self.0.by.has() || self.0.formerly.iter().any(By::has)
    }

    /// Gives up what a predecessor left: whoever waits for an answer gets an error.
    pub fn let_go(&self) {
        // What a service manager gave us would hold the mount as well as what it keeps.
        drop(self.0.by.take());
        self.0.formerly.iter().for_each(|keeper| drop(keeper.take()));
        self.forget();
    }

    /// A mount was taken over: the keeper has it already, if there is one.
    pub fn keep_on(&self, kept: Kept) {
        if matches!(self.0.by, By::Nobody) {
            return;
        }
        *lock(&self.0.kept) = Some(kept);
        self.watch();
    }

    /// Keeps a new mount, instead of anything before.
    pub fn keep(&self, kept: Kept) {
        match self.give(&kept) {
            Ok(()) => self.keep_on(kept),
            Err(error) => tracing::error!(%error, "mount-not-kept: containers will not survive a restart"),
        }
    }

    fn give(&self, kept: &Kept) -> io::Result<()> {
        self.0.by.keep(kept)
    }

    /// There is nothing to keep any more.
    pub fn forget(&self) {
        lock(&self.0.kept).take();
        self.0.by.forget();
        // A predecessor may have been killed between giving to the one and taking from the other.
        self.0.formerly.iter().for_each(By::forget);
    }

    /// Notices the end of a holder, and starts another.
    fn watch(&self) {
        let By::Holder(holder) = &self.0.by else {
            return;
        };
        let Some(Ok(connection)) = lock(holder).connection() else {
            return;
        };
        let inner = Arc::downgrade(&self.0);
        let watching = std::thread::Builder::new().name("holder-watch".into()).spawn(move || {
            // No timeout: the thread ends with the holder, or with the process.
            let _ = poll(&mut [PollFd::new(&connection, PollFlags::empty())], None);
            loop {
                std::thread::sleep(AGAIN);
                let Some(keeper) = inner.upgrade().map(Keeper) else {
                    return;
                };
                let Some(kept) = lock(&keeper.0.kept).take() else {
                    return;
                };
                match keeper.give(&kept) {
                    Ok(()) => {
                        tracing::warn!("holder-replaced");
                        return keeper.keep_on(kept);
                    }
                    Err(error) => tracing::error!(%error, "holder-not-replaced"),
                }
                *lock(&keeper.0.kept) = Some(kept);
            }
        });
        if let Err(error) = watching {
            tracing::warn!(%error, "holder-not-watched");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
