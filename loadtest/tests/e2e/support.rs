//! What every end-to-end test begins with: a lab of its own, one at a time.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use headstart_loadtest::playground::{
    lab::{Lab, RelayedProxy},
    node::Node,
    progress::Progress,
    runtime,
    site::Site,
};
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
    runtime::block_on(async {
        let turn = ONE_AT_A_TIME.lock().await;
        let site = Site::of_this_executable().unwrap();
        let lab = match Lab::open(&site, &Progress::silent()).await {
            Ok(lab) => lab,
            Err(error) => panic!("failed to {error}"),
        };
        test(Turn { lab, _turn: turn }).await;
    });
}

/// A proxy that has converted the whole image.
pub async fn warm_proxy(lab: &Lab) -> RelayedProxy {
    let proxy = lab.proxy("proxy").await.unwrap();
    lab.announce(&proxy).await.unwrap();
    wait_until_ready(lab, &proxy).await;
    proxy
}

/// Waits for every layer; debug builds on a busy machine take a while.
pub async fn wait_until_ready(lab: &Lab, proxy: &RelayedProxy) {
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let status = proxy.proxy.image(&lab.image.manifest, 5_000).await.unwrap();
        if status.as_ref().is_some_and(|s| s.is_ready()) {
            return;
        }
        assert!(Instant::now() < deadline, "never ready: {status:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The shim's log lines about layers it would not mount lazily.
pub fn declines(node: &Node) -> Vec<String> {
    let log = node.shim.as_ref().map(|s| s.log_text()).unwrap_or_default();
    log.lines()
        .filter(|l| l.contains("lazy_declined"))
        .map(str::to_owned)
        .collect()
}
