//! The Headstart servers: do they answer, which version, and is it the same time there?
//!
//! In: the configured URLs. Out: checks. Invariant: all are asked at once, each within its own deadline.
//! Not here: what they have.

use std::time::{Duration, SystemTime};

use super::Report;
use crate::config::Config;
use crate::fetch::servers::{FetchError, Servers};

/// Certificates and logs are wrong beyond this; dates in headers are whole seconds.
const SKEW_LOW: Duration = Duration::from_secs(10);
const SKEW_HIGH: Duration = Duration::from_secs(300);

pub(super) async fn check(report: &mut Report, config: &Config) {
    let servers = match Servers::new(&config.servers, &config.fetch) {
        Ok(servers) => servers,
        Err(error) => {
            report.fail(
                "servers.config",
                format!("failed to {error}"),
                "mend servers or [fetch] in shim.toml",
            );
            return;
        }
    };
    let looked = servers.look().await;
    let answering = looked
        .iter()
        .filter(|l| l.answer.as_ref().is_ok_and(|a| a.status == 200))
        .count();
    for one in &looked {
        let name = format!("server {}", one.url);
        match &one.answer {
            Ok(answer) if answer.status == 200 => {
                let version = answer.version.as_deref().unwrap_or("unknown");
                let text = format!("ready, version {version}");
                if version == env!("CARGO_PKG_VERSION") {
                    report.ok(&name, text);
                } else {
                    let advice = format!(
                        "this shim is {}: versions may differ during an upgrade, servers first",
                        env!("CARGO_PKG_VERSION")
                    );
                    report.warn(&name, text, advice);
                }
                if let Some(date) = answer.date {
                    clock(report, date);
                }
            }
            Ok(answer) => refused(report, &name, answer.status, answering),
            Err(error) => silent(report, &name, error, answering),
        }
    }
}

fn refused(report: &mut Report, name: &str, status: u16, answering: usize) {
    let advice = match status {
        401 | 403 => "give this node a certificate, token or password that the server knows: [fetch.identity]",
        404 => "something else answers there: check host and port in servers",
        _ => "look at the server's log",
    };
    let text = format!("answers {status}");
    if answering > 0 {
        report.warn(name, text, advice)
    } else {
        report.fail(name, text, advice)
    }
}

fn silent(report: &mut Report, name: &str, error: &FetchError, answering: usize) {
    let text = format!("failed to {error}");
    if answering > 0 {
        report.warn(
            name,
            text,
            "another server answers, so pulls are lazy; bring it back, or take it out of servers",
        );
    } else {
        let advice = "until one answers, pulls are ordinary, and what lazy containers have not read yet cannot be read: \
                      check the address, name resolution, firewalls, and certificates ([fetch.identity] ca_file)";
        report.fail(name, text, advice);
    }
}

fn clock(report: &mut Report, theirs: SystemTime) {
    let now = SystemTime::now();
    let skew = now
        .duration_since(theirs)
        .or_else(|_| theirs.duration_since(now))
        .unwrap_or_default();
    let text = format!("within {} s of the server's", skew.as_secs() + 1);
    let advice = "set the clock (chrony, systemd-timesyncd): certificates and tokens are judged by it";
    match skew {
        s if s > SKEW_HIGH => report.fail("clock", text, advice),
        s if s > SKEW_LOW => report.warn("clock", text, advice),
        _ => report.ok("clock", text),
    }
}
