//! Who may read what, over HTTP.
//!
//! In: servers with each method, rules and mode, and the scripted origin behind them. Out: statuses, challenges, and what
//! the origin was asked. Not here: leaks across rights (`tests/attacks`), and single functions (unit tests).

#[path = "../support/mod.rs"]
mod support;

mod methods;
mod tls;
mod upstream;

use std::time::Duration;

use headstart_server::config::AccessRule;

fn rule(who: &[&str], repositories: &[&str]) -> AccessRule {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    AccessRule {
        who: owned(who),
        upstreams: vec![],
        repositories: owned(repositories),
    }
}

/// Asks until `want` comes: files are looked at once a second, on a machine that may be slow.
async fn until<T: PartialEq + std::fmt::Debug, F: Future<Output = T>>(want: T, ask: impl Fn() -> F) {
    let mut last = None;
    for _ in 0..300 {
        let got = ask().await;
        if got == want {
            return;
        }
        last = Some(got);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("wanted {want:?}, last was {last:?}");
}
