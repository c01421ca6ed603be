//! Tells the service manager that all is well, as long as it is.
//!
//! In: the manager, and a mount to look at. Out: a notice in each half of its watchdog's time. Invariant: a notice means that
//! the runtime ran and that the mount's thread answered; without them the manager kills and starts us again, which containers
//! survive. Not here: restarting.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ServiceManager;

/// Until `stop`. `mount`: answered by this process; `None` if there is none.
pub async fn feed_watchdog(manager: Arc<ServiceManager>, mount: Option<PathBuf>, stop: CancellationToken) {
    let Some(longest) = manager.watchdog() else {
        return;
    };
    let interval = (longest / 2).max(Duration::from_millis(10));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let mount = mount.clone();
        // If it hangs, so do we, at the cost of one thread; and the manager hears nothing more.
        let look = tokio::task::spawn_blocking(move || mount.is_none_or(|at| rustix::fs::statvfs(&at).is_ok()));
        match look.await {
            Ok(true) => manager.well(),
            _ => tracing::error!("mount-not-answered"),
        }
    }
}
