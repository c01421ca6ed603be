//! What every end-to-end test begins with: a lab of its own, one at a time.

use std::future::Future;

use headstart_loadtest::playground::{lab::Lab, progress::Progress, site::Site};
use tokio::sync::{Mutex, MutexGuard};

/// One lab at a time in this process. Another process (a demo that runs) does not disturb: ports and directories differ.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A lab, and the turn. Fields are dropped in order: the lab ends before the turn does.
pub struct Turn {
    pub lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

/// Opens a lab and runs the test in it.
pub fn with_lab<F: Future<Output = ()>>(test: impl FnOnce(Turn) -> F) {
    // Several threads: `Drop` of a process waits on one while relays go on on another.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let turn = ONE_AT_A_TIME.lock().await;
        let site = Site::of_this_executable().unwrap();
        let lab = match Lab::open(&site, &Progress::silent()).await {
            Ok(lab) => lab,
            Err(error) => panic!("failed to {error}"),
        };
        test(Turn { lab, _turn: turn }).await;
    });
}
