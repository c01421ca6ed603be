//! The runtime that tests with real programs run on.
//!
//! In: a future. Out: what it gives. Invariant: threads enough for `Drop` of a process to wait on one.
//! Not here: turns, where only one test at a time may run.

use std::future::Future;

pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .expect("start a runtime");
    runtime.block_on(test)
}
