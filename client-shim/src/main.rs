//! The `headstart-shim` program: command line, logging, signals.
//!
//! In: arguments, a config file, SIGTERM or SIGINT. Out: a running shim, an exit code. Invariant: a signal stops
//! everything in order (containerd's calls, then the mounts) and exits with 0.
//! Not here: anything a test would want to run in-process; that is `headstart_shim::app`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use headstart_shim::app;
use headstart_shim::cli;
use headstart_shim::config::{Config, ConfigError, LogConfig, LogFormat};
use headstart_shim::fetch::servers::{FetchError, Servers};
use headstart_shim::last_good;
use headstart_shim::memory;
use headstart_shim::survival::{self, Keeper, ServiceManager};
use headstart_shim::telemetry::{self, Traces};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// containerd snapshotter that starts containers before their image has arrived.
///
/// Serves containerd's snapshots API on a unix socket, as a proxy plugin named "headstart". Layers that a Headstart
/// server has converted are mounted at once and their bytes fetched when read; every other layer is pulled the ordinary
/// way into an overlay snapshot. Must run as root: it mounts filesystems and keeps files of any owner.
///
/// The configuration file (shim.toml) knows:
///   root_dir     state and cache             (default /var/lib/headstart-shim)
///   socket       where containerd connects   (default /run/headstart/shim.sock)
///   servers      Headstart servers, in order (default ["http://127.0.0.1:5080"])
///   [snapshotter] waiting and durability,  [lazy] layers and their cache,
///   [fetch] how servers are asked,  [survival] who keeps mounts while no shim runs,
///   [metrics] where Prometheus asks,  [telemetry] where traces are sent,
///   [log] level and format ("text" or "json")
/// An unknown key is an error.
///
/// containerd needs, in its config.toml:
///   [proxy_plugins.headstart]
///     type = "snapshot"
///     address = "/run/headstart/shim.sock"
///
/// Is a node set up right? "headstart-shim doctor". What has it got, and why was a pull not lazy? "headstart-shim status".
/// Both read the same configuration, and know --json.
///
/// SIGTERM or SIGINT stops it cleanly. When a layer cannot start lazily, one log line with the key "lazy_declined" says
/// why and containerd pulls it.
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, max_term_width = 100)]
struct Args {
    /// Configuration file (TOML); without it the defaults above apply
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<cli::Command>,
    /// Read the configuration, report the first error in it, and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    // SAFETY: the first thing this process does.
    let manager = unsafe { ServiceManager::from_environment() }.map(Arc::new);
    // Started by the shim, not by people, and of any age: no other argument will ever mean anything to it.
    if std::env::args_os().nth(1).is_some_and(|first| first == survival::HOLD) {
        return survival::hold();
    }
    let args = Args::parse();
    if let Some(command) = &args.command {
        return cli::run(command, args.config.as_deref());
    }
    match start(&args, manager) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("headstart-shim: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("use the configured servers: {0}")]
    Servers(#[from] FetchError),
    #[error("accept log.level: {0}")]
    LogLevel(#[from] tracing_subscriber::filter::ParseError),
    #[error("start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error("listen for signals: {0}")]
    Signals(std::io::Error),
    #[error(transparent)]
    App(#[from] app::AppError),
}

/// The file, if a shim can run with it.
fn load(path: Option<&Path>) -> Result<Config, MainError> {
    let config = Config::load(path)?;
    check(&config)?;
    Ok(config)
}

/// What is in other files, or only libraries can say.
fn check(config: &Config) -> Result<(), MainError> {
    Servers::new(&config.servers, &config.fetch)?;
    EnvFilter::try_new(&config.log.level)?;
    Ok(())
}

/// The same, if this process can.
fn load_to_run(path: Option<&Path>, manager: Option<&Arc<ServiceManager>>) -> Result<Config, MainError> {
    let config = load(path)?;
    check_keeper(&config, manager)?;
    Ok(config)
}

fn check_keeper(config: &Config, manager: Option<&Arc<ServiceManager>>) -> Result<(), MainError> {
    Keeper::new(config.survival.keep_with, &config.root_dir, manager).map_err(app::AppError::from)?;
    Ok(())
}

fn start(args: &Args, manager: Option<Arc<ServiceManager>>) -> Result<(), MainError> {
    let (path, told) = (args.config.as_deref(), manager.as_ref());
    let begun = Instant::now();
    if args.check {
        return load(path).map(drop);
    }
    let config = match load_to_run(path, told) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("headstart-shim: failed to {error}");
            let is_usable = |config: &Config| check(config).and_then(|()| check_keeper(config, told)).is_ok();
            let again = || load_to_run(path, told).ok();
            match last_good::instead(path, &error.to_string(), told, is_usable, again, begun) {
                Some(config) => config,
                None => return Err(error),
            }
        }
    };
    memory::settle();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(MainError::Runtime)?;
    runtime.block_on(async {
        // Without spans all goes on: readers of a predecessor's mount wait for this process.
        let (traces, untraced) = match Traces::start(&config.telemetry) {
            Ok(traces) => (traces, None),
            Err(error) => (None, Some(error)),
        };
        start_logging(&config.log, traces.as_ref())?;
        if let Some(why) = &config.refused {
            tracing::error!(
                why,
                "configuration-refused: readers wait, so this is the last one that was good"
            );
        }
        if let Some(error) = untraced {
            tracing::error!(%error, "no-traces");
        }
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone()).map_err(MainError::Signals)?;
        let told = stop.clone();
        let teller = manager.clone();
        tokio::spawn(async move {
            told.cancelled().await;
            if let Some(manager) = teller {
                manager.stopping();
            }
        });
        let ran = app::run(config, manager, stop, begun).await;
        if let Some(traces) = traces {
            traces.finish().await;
        }
        Ok(ran?)
    })
}

fn start_logging(config: &LogConfig, traces: Option<&Traces>) -> Result<(), MainError> {
    let filter = EnvFilter::try_new(&config.level)?;
    let ours = filter_fn(telemetry::is_for_log);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry();
    match traces {
        // For everybody and not for a layer of its own: what nobody wants is then not even looked at.
        None => registry.with(lines).with(filter).with(ours).init(),
        Some(traces) => {
            // It refuses by name and never by level; without a word of that, every callsite of any level would be looked at.
            let lines = lines.with_filter(filter.and(ours.with_max_level_hint(LevelFilter::TRACE)));
            registry.with(lines).with(traces.layer()).init();
        }
    }
    Ok(())
}

/// Cancels `stop` at the first SIGTERM or SIGINT.
fn stop_on_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(())
}
