//! `headstart-loadtest storm`.
//!
//! In: flags over `[storm]`. Out: the report on standard output, and as JSON if asked; exit code 1 if anything failed.
//! Invariant: Ctrl-C ends it at once. Not here: the storm itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::storm::{self, StormConfig};

/// N simulated nodes pull one image at once, every byte verified.
///
/// Each node resolves the tag, fetches manifest, config and layers as containerd does (with --lazy: the image's state,
/// TOCs and a share of the chunks), checks every digest, and forgets the bytes. Printed: latency of first bytes, whole
/// blobs and whole images, and the throughput over all nodes.
///
/// Example: headstart-loadtest storm --server http://127.0.0.1:5080 --ns docker.io --image library/python:3.12
/// --nodes 50 --rounds 4
#[derive(Debug, Args)]
pub struct StormArgs {
    /// Base URL of the server, or of any registry to compare with.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Upstream name, as containerd adds it in `?ns=`.
    #[arg(long, value_name = "HOST")]
    ns: Option<String>,
    /// Repository and tag, or repository@digest.
    #[arg(long, value_name = "REPOSITORY[:TAG]")]
    image: Option<String>,
    /// Simulated nodes, all at once.
    #[arg(long)]
    nodes: Option<usize>,
    /// How often each node pulls.
    #[arg(long)]
    rounds: Option<usize>,
    /// Blobs or chunks that one node fetches at once.
    #[arg(long)]
    blobs_at_once: Option<usize>,
    /// Fetch TOCs and some chunks instead of whole layers.
    #[arg(long)]
    lazy: bool,
    /// Share of each layer's chunks that a lazy node reads, 0 to 1.
    #[arg(long)]
    lazy_fraction: Option<f64>,
    /// Also write the report as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl StormArgs {
    fn over(self, mut config: StormConfig) -> StormConfig {
        fn set<T>(to: &mut T, from: Option<T>) {
            if let Some(value) = from {
                *to = value;
            }
        }
        if let Some((repository, reference)) = self.image.as_deref().map(split) {
            config.repository = repository.to_owned();
            config.reference = reference.to_owned();
        }
        set(&mut config.server, self.server);
        set(&mut config.ns, self.ns);
        set(&mut config.nodes, self.nodes);
        set(&mut config.rounds, self.rounds);
        set(&mut config.blobs_at_once, self.blobs_at_once);
        set(&mut config.lazy_fraction, self.lazy_fraction);
        config.lazy |= self.lazy;
        config.json = self.json.or(config.json);
        config
    }
}

/// Repository and reference. The name of a host does not belong here, so the first colon is the tag's.
fn split(image: &str) -> (&str, &str) {
    image
        .split_once('@')
        .or_else(|| image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')))
        .unwrap_or((image, "latest"))
}

pub async fn run(args: StormArgs, file: StormConfig) -> Result<ExitCode, String> {
    let config = args.over(file);
    let json = config.json.clone();
    let report = tokio::select! {
        report = storm::run(config) => report?,
        _ = tokio::signal::ctrl_c() => return Err("interrupted".to_owned()),
    };
    print!("{report}");
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(&path, text).map_err(|e| format!("writing {}: {e}", path.display()))?;
    }
    Ok(if report.errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_split_into_repository_and_reference() {
        assert_eq!(split("a/b:v1"), ("a/b", "v1"));
        assert_eq!(split("a/b"), ("a/b", "latest"));
        assert_eq!(split("a/b@sha256:00"), ("a/b", "sha256:00"));
    }
}
