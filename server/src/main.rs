//! `headstart-server`: command line, signals, the order of start and end.
//!
//! In: `--config FILE`. Out: a running server; exit status 0 after a clean stop. Or a subcommand ([`headstart_server::cli`]).
//! Invariant: SIGTERM and SIGINT stop cleanly; a second one stops at once.
//! Not here: anything a test could want to run in-process (that is `app.rs`).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use headstart_server::{
    app::{self, App},
    cli::{self, Command},
    config::Config,
    log,
    metrics::Metrics,
    telemetry::{self, Traces},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Whatever ends the server.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Blocking tasks that still run when the runtime ends get this long; they hold nothing that is not synced.
const RUNTIME_END: Duration = Duration::from_secs(2);

const HELP: &str = "\
A pull-through mirror for container registries. Point containerd, CRI-O, podman or Docker at it: image references,
digests and signatures stay what they are. Every layer that passes is also made seekable, so that nodes with
headstart-shim start containers before their image has arrived.

Without --config it mirrors docker.io, ghcr.io, quay.io and registry.k8s.io on 127.0.0.1:5080 and keeps its data in
/var/lib/headstart-server. A configuration looks like this; unknown keys are errors:

    listen = \"0.0.0.0:5080\"
    data_dir = \"/var/lib/headstart-server\"
    default_upstream = \"docker.io\"          # for requests that name no upstream; optional

    [[upstreams]]
    name = \"docker.io\"                      # what clients call it: ?ns=docker.io, or /v2/docker.io/...
    url = \"https://registry-1.docker.io\"

    [[upstreams]]
    name = \"registry.example.org\"
    url = \"https://registry.example.org\"
    token_hosts = [\"login.example.org\"]     # further hosts that may see the credentials
    [upstreams.auth]
    username = \"mirror\"
    password_file = \"/etc/headstart/password\"

containerd finds it by /etc/containerd/certs.d/_default/hosts.toml:

    [host.\"http://127.0.0.1:5080\"]
      capabilities = [\"pull\", \"resolve\"]

Subcommands talk to a running server over <data_dir>/admin.sock, which only its own user and root can enter; convert, and
dedup of files, work without one, and so does fsck when none runs (as the server's own user, whose files it writes). Their
exit status is 0 when everything was done that was asked for, 1 when something was not, or when fsck found damage that is
not repaired, 2 when the command line is wrong.

Endpoints: /v2/ (OCI distribution), /headstart/v1/ (for headstart-shim), /healthz, /readyz, /metrics.
Logs go to standard error; RUST_LOG overrides log.filter. SIGTERM stops cleanly.";

/// A caching pull-through registry mirror that lets containers start before their image has arrived.
#[derive(Debug, Parser)]
#[command(version, about, long_about = HELP)]
struct Arguments {
    /// Configuration file (TOML). Without it, public registries are mirrored on 127.0.0.1:5080.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Talks to a running server, or works on files; without one of these, this is the server.
    #[command(subcommand)]
    command: Option<Command>,
}

fn main() -> ExitCode {
    headstart_server::allocator::set_up();
    let arguments = Arguments::parse();
    if let Some(command) = arguments.command {
        return ask(command, arguments.config.as_deref());
    }
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    // On the runtime's own threads: what this one does, such as accepting connections, would wake another each time.
    let result = runtime.block_on(runtime.spawn(run(config)));
    runtime.shutdown_timeout(RUNTIME_END);
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(error.as_ref()),
        Err(error) => fail(&error),
    }
}

/// A subcommand: mostly a question to a running server.
fn ask(command: Command, config: Option<&Path>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(cli::run(command, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(config: Config) -> Result<(), Failure> {
    let traces = Traces::start(&config.telemetry)?;
    let limit = log::to_stderr(&config.log, traces.as_ref());
    tokio::spawn(limit.clone().keep_reporting());
    let telemetry = config.telemetry.clone();
    let mut metrics = None;
    let served = serve(config, &mut metrics).await;
    telemetry::shutdown(traces, metrics, &telemetry).await;
    limit.report();
    served
}

/// `metrics` is where they are left for whoever sends the last of them.
async fn serve(config: Config, metrics: &mut Option<Metrics>) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    // Before anything that takes long, so that a stop during a rebuild of the index is one too.
    stop_on_signal(stop.clone())?;
    let listen = config.listen;
    let app = tokio::select! {
        app = App::open(config) => app?,
        () = stop.cancelled() => return Ok(()),
    };
    *metrics = Some(app.metrics.clone());
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|e| format!("listen on {listen}: {e}"))?;
    tracing::info!(listen = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "ready");
    app::serve(app, listener, stop).await?;
    tracing::info!("stopped");
    Ok(())
}

fn stop_on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                std::process::exit(1);
            }
            tracing::info!("stopping; once more to stop at once");
            stop.cancel();
        }
    });
    Ok(())
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("headstart-server: failed to {error}");
    ExitCode::FAILURE
}
