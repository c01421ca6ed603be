//! What a node tells about itself: status, metrics, the doctor; and what it uses when nobody asks.
//!
//! In: a snapshotter on a socket, the program. Out: assertions on what an operator would see.
//! Not here: each metric's row (`src/metrics`), the snapshots (`snapshotter_*.rs`).

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use axum::response::IntoResponse as _;
use headstart_layer_format::api::LayerState;
use headstart_layer_format::routes;
use headstart_shim::app;
use headstart_shim::cli::ask;
use headstart_shim::config::Config;
use headstart_shim::doctor::{self, Check, Places, Report, State};
use headstart_shim::observe::status::Status;
use serde_json::Value;
use support::{Client, Harness, fake::FakeNode};
use tokio_util::sync::CancellationToken;

const SHIM: &str = env!("CARGO_BIN_EXE_headstart-shim");
const REF: &str = "containerd.io/snapshot.ref";

async fn asked(socket: &Path, path: &'static str) -> Result<String, String> {
    let socket = socket.to_owned();
    let answer = tokio::task::spawn_blocking(move || ask(&socket, path)).await.unwrap();
    answer
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .map_err(|e| e.to_string())
}

/// The value of the only series that begins like this.
fn series(text: &str, start: &str) -> f64 {
    let found: Vec<&str> = text.lines().filter(|l| l.starts_with(start)).collect();
    assert_eq!(found.len(), 1, "{start} in {text}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn status_says_how_far_a_pull_is_that_waits_for_a_conversion() {
    let h = Harness::start().await;
    let admin = h.config.admin_socket();
    let image = h.node.add_image("slow", &["a", "b"], LayerState::Ready);
    h.node.set_state(&image, 1, LayerState::Converting);
    {
        let mut script = h.node.script();
        // As a server that waits as long as it is asked to.
        script.image_delay = Duration::from_millis(1_500);
        let layers = &mut script.images.get_mut(&image.manifest).unwrap().layers;
        (layers[0].size, layers[1].size, layers[1].converted) = (Some(100), Some(1_000), Some(300));
    }
    let waiting = async || {
        let status: Status = serde_json::from_str(&asked(&admin, "/status").await.unwrap()).unwrap();
        status.waiting
    };
    assert_eq!(waiting().await, []);
    let (client, chain) = (h.client.clone(), image.chain_text(0));
    let manifest = image.manifest.to_string();
    let pull = tokio::spawn(async move {
        let labels = [
            (REF, chain.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
        ];
        client.prepare("extract", "", &labels).await
    });
    let begun = Instant::now();
    let seen = loop {
        if let [seen] = &waiting().await[..] {
            break seen.clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(15) && !pull.is_finished());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((seen.manifest, seen.layers, seen.layers_ready), (image.manifest, 2, 1));
    assert_eq!((seen.bytes, seen.bytes_converted), (1_100, 400));
    h.node.set_state(&image, 1, LayerState::Ready);
    let lazy = pull.await.unwrap().unwrap_err();
    assert_eq!(lazy.code(), tonic::Code::AlreadyExists);
    assert_eq!(waiting().await, [], "it is over");
}

#[tokio::test]
async fn status_says_what_is_here_and_why_a_pull_was_not_lazy() {
    let h = Harness::start().await;
    let admin = h.config.admin_socket();
    let mode = std::fs::metadata(&admin).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let lazy = h.node.add_image("lazy", &["a", "b"], LayerState::Ready);
    let slow = h.node.add_image("slow", &["c"], LayerState::Refused);
    let mut parent = String::new();
    for i in 0..2 {
        let (chain, manifest) = (lazy.chain_text(i), lazy.manifest.to_string());
        let labels = [
            (REF, chain.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
            ("containerd.io/snapshot/cri.image-ref", "r.test/lazy:1"),
        ];
        assert!(
            h.client
                .prepare(&format!("extract-{i}"), &parent, &labels)
                .await
                .is_err()
        );
        parent = chain;
    }
    h.client.prepare("container", &parent, &[]).await.unwrap();
    let chain = slow.chain_text(0);
    h.client.prepare("extract-slow", "", &[(REF, &chain)]).await.unwrap();

    let status: Status = serde_json::from_str(&asked(&admin, "/status").await.unwrap()).unwrap();
    assert_eq!((status.snapshots.lazy, status.snapshots.active), (2, 2));
    assert_eq!(status.calls, 4);
    let image = &status.images[0];
    assert_eq!((status.images.len(), image.image.as_str()), (1, "r.test/lazy:1"));
    assert_eq!((image.layers_lazy, image.containers), (2, 1));
    assert_eq!(status.pulls[0].reason.as_deref(), Some("refused"));
    assert_eq!(
        (status.pulls[1].image.as_str(), status.pulls[1].layers_lazy),
        ("r.test/lazy:1", 2)
    );
    // Without annotations the same image has the manifest's digest for a name.
    let info = h.client.stat(&lazy.chain_text(1)).await.unwrap();
    assert_eq!(
        info.labels["containerd.io/snapshot/headstart.manifest-digest"],
        lazy.manifest.to_string()
    );

    let text = asked(&admin, "/metrics").await.unwrap();
    assert_eq!(series(&text, "headstart_shim_layers_lazy_total"), 2.0);
    assert_eq!(
        series(&text, "headstart_shim_layers_declined_total{reason=\"refused\"}"),
        1.0
    );
    assert_eq!(
        series(&text, "headstart_shim_layers_declined_total{reason=\"no_server\"}"),
        0.0
    );
    assert_eq!(series(&text, "headstart_shim_snapshots{kind=\"lazy\"}"), 2.0);
    assert_eq!(
        series(&text, "headstart_shim_calls_seconds_count{call=\"prepare\"}"),
        4.0
    );
    // That a snapshot exists already is how a lazy layer is told.
    assert_eq!(
        series(&text, "headstart_shim_calls_failed_total{call=\"prepare\"}"),
        0.0
    );
    assert_eq!(series(&text, "headstart_shim_starts_total"), 1.0);
    assert!(asked(&admin, "/other").await.is_err());

    let h = h.restart().await;
    let text = asked(&h.config.admin_socket(), "/metrics").await.unwrap();
    assert_eq!(series(&text, "headstart_shim_starts_total"), 2.0);
    // It is there for the shim that runs, and goes with it.
    let admin = h.config.admin_socket();
    h.stop().await;
    assert!(
        asked(&admin, "/status")
            .await
            .unwrap_err()
            .contains("ask the running shim")
    );
}

#[tokio::test]
async fn numbers_are_also_on_an_address_and_names_are_not() {
    let dir = tempfile::tempdir().unwrap();
    // Below the ports that the kernel gives to whoever connects, and another one in each run that goes on: nobody takes it between
    // this look and the shim's.
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let port = (first..32_000)
        .find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok())
        .and_then(|listener| listener.local_addr().ok())
        .unwrap();
    let text = format!(
        "root_dir = '{0}/root'\nsocket = '{0}/s.sock'\n[metrics]\nlisten = '{port}'",
        dir.path().display()
    );
    let config: Config = text.parse().unwrap();
    let stop = CancellationToken::new();
    let node = FakeNode::new(&dir.path().join("layers"));
    let serving = tokio::spawn({
        let (config, stop) = (config.clone(), stop.clone());
        async move { app::serve(&config, node, stop).await }
    });
    let client = Client::connect(&config.socket, None).await;
    client.names(&[]).await;
    let get = |path: &'static str| {
        tokio::task::spawn_blocking(move || {
            // It listens a moment after the socket does.
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut stream = loop {
                match std::net::TcpStream::connect(port) {
                    Ok(stream) => break stream,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    };
    assert!(
        get("/metrics")
            .await
            .unwrap()
            .contains("headstart_shim_calls_seconds_count{call=\"list\"} 1")
    );
    assert!(get("/status").await.unwrap().starts_with("HTTP/1.1 404"));
    // What is already taken costs a warning only.
    let other = tempfile::tempdir().unwrap();
    let text = text.replace(&dir.path().display().to_string(), &other.path().display().to_string());
    let second: Config = text.parse().unwrap();
    let node = FakeNode::new(&other.path().join("layers"));
    let also = tokio::spawn({
        let (config, stop) = (second.clone(), stop.clone());
        async move { app::serve(&config, node, stop).await }
    });
    let second = Client::connect(&second.socket, None).await;
    assert_eq!(second.names(&[]).await, [""; 0]);
    stop.cancel();
    serving.await.unwrap().unwrap();
    also.await.unwrap().unwrap();
}

/// A server as far as the doctor looks, and the directories of a node.
async fn node(dir: &Path) -> String {
    let readyz = || async { ([(routes::VERSION_HEADER, env!("CARGO_PKG_VERSION"))], "ready").into_response() };
    let router = axum::Router::new().route(routes::READYZ, axum::routing::get(readyz));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = format!(
        "root_dir = '{0}/root'\nsocket = '{0}/shim.sock'\nservers = ['{url}']\n",
        dir.display()
    );
    std::fs::write(dir.join("shim.toml"), config).unwrap();
    let hosts = dir.join("certs.d/_default");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!("[host.'{url}']\ncapabilities = ['pull', 'resolve']\n");
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    url
}

fn containerd(dir: &Path, file: &str) -> String {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../config/containerd")
        .join(file);
    let text = std::fs::read_to_string(shipped).unwrap();
    text.replace("/run/headstart/shim.sock", &dir.join("shim.sock").display().to_string())
        .replace("/etc/containerd/certs.d", &dir.join("certs.d").display().to_string())
}

async fn examined(dir: &Path) -> (Output, Value) {
    let (config, containerd) = (dir.join("shim.toml"), dir.join("containerd.toml"));
    let output = tokio::process::Command::new(SHIM)
        .args(["doctor", "--json", "--config"])
        .arg(config)
        .arg("--containerd-config")
        .arg(containerd)
        .output()
        .await
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!(
            "{e}: {} {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (output, report)
}

/// The same without the program, and with a containerd that says this for its version.
async fn report_of(dir: &Path, version: &str) -> Report {
    let program = dir.join("containerd");
    std::fs::write(&program, format!("#!/bin/sh\necho {version}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config: Config = std::fs::read_to_string(dir.join("shim.toml")).unwrap().parse().unwrap();
    let places = Places {
        containerd_configs: vec![dir.join("containerd.toml")],
        containerds: vec![program],
    };
    // It has a runtime of its own.
    tokio::task::spawn_blocking(move || doctor::report(&config, &places).unwrap())
        .await
        .unwrap()
}

/// State and advice of a check; the first if there are several.
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let checks = report["checks"].as_array().unwrap();
    let found = checks
        .iter()
        .find(|c| c["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {report:#}"));
    (
        found["state"].as_str().unwrap(),
        found["advice"].as_str().unwrap_or_default(),
    )
}

#[tokio::test]
async fn the_doctor_passes_a_node_that_is_right_and_names_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let url = node(dir).await;
    // For this machine's containerd; the file for 2.x is looked at below.
    let right = containerd(dir, "config-v2.toml");
    std::fs::write(dir.join("containerd.toml"), &right).unwrap();

    // Nothing runs yet: the only thing that fails, whatever this kernel can.
    let (output, report) = examined(dir).await;
    assert!(!output.status.success());
    assert_eq!(check(&report, "shim.running").0, "fail");
    let ours = [
        "containerd.plugin",
        "containerd.snapshotter",
        "containerd.annotations",
        "hosts.mirror",
    ];
    for name in ours
        .into_iter()
        .chain(["clock", "kernel.fuse", &format!("server {url}")])
    {
        assert_eq!(check(&report, name), ("ok", ""), "{name}");
    }
    // What was tried is undone.
    assert!(
        !std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&dir.display().to_string())
    );

    let config: Config = std::fs::read_to_string(dir.join("shim.toml")).unwrap().parse().unwrap();
    let mut shim = tokio::process::Command::new(SHIM)
        .arg("--config")
        .arg(dir.join("shim.toml"))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::connect(&config.socket, None).await;
    let mut tries = 0;
    while asked(&config.admin_socket(), "/status").await.is_err() {
        tries += 1;
        assert!(tries < 1500, "the admin socket never answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.names(&[]).await;
    let (_, report) = examined(dir).await;
    assert_eq!(check(&report, "shim.running").0, "ok");
    assert_eq!(check(&report, "shim.used").0, "ok");
    assert_eq!(check(&report, "shim.lazy").0, "ok");

    // Each thing that people get wrong, alone.
    let wrong = [
        ("containerd.plugin", right.replace("shim.sock", "other.sock")),
        (
            "containerd.plugin",
            right.replace("address = \"", "address = \"unix://"),
        ),
        (
            "containerd.snapshotter",
            right.replace("snapshotter = \"headstart\"", ""),
        ),
        (
            "containerd.annotations",
            right.replace("disable_snapshot_annotations = false", ""),
        ),
        ("containerd.config", format!("{right}[proxy_plugins.headstart]\n")),
        ("containerd.format", right.replace("version = 2", "version = 3")),
        ("hosts.dir", right.replace("config_path", "other_path")),
        ("hosts.mirror", right.replace("certs.d", "nowhere.d")),
    ];
    for (name, text) in wrong {
        assert_ne!(text, right, "{name}");
        std::fs::write(dir.join("containerd.toml"), text).unwrap();
        let (output, report) = examined(dir).await;
        let (state, advice) = check(&report, name);
        assert!(state != "ok" && !advice.is_empty(), "{name}: {report:#}");
        assert_eq!(output.status.success(), state == "warn", "{name}");
    }
    // What 2.x alone has; a table of an import counts as if it was in the file.
    let right = containerd(dir, "config-v3.toml");
    let wrong = [
        (
            "containerd.transfer",
            right.replace("enable_remote_snapshot_annotations = \"true\"", ""),
        ),
        (
            "containerd.capabilities",
            right.replace("[\"remap-ids\"]", "[\"rebase\"]"),
        ),
        (
            "containerd.snapshotter",
            right.replace("  snapshotter = \"headstart\"\n  disable", "  disable"),
        ),
    ];
    for (name, text) in wrong {
        assert_ne!(text, right, "{name}");
        std::fs::write(dir.join("containerd.toml"), text).unwrap();
        // By a program that says it is a 2.x: this machine's is not.
        let report = report_of(dir, "containerd example.org/containerd v2.1.9 abc").await;
        let found = report.checks.iter().find(|c| c.name == name && c.state != State::Ok);
        assert!(found.is_some_and(|c| c.advice.is_some()), "{name}: {report:?}");
    }
    std::fs::create_dir(dir.join("conf.d")).unwrap();
    std::fs::write(dir.join("conf.d/headstart.toml"), right.replace("version = 3", "")).unwrap();
    std::fs::write(
        dir.join("containerd.toml"),
        "imports = ['conf.d/*.toml']\nversion = 3\n",
    )
    .unwrap();
    let report = report_of(dir, "containerd example.org/containerd v2.1.9 abc").await;
    let of = |check: &&Check| check.name.starts_with("containerd.") || check.name.starts_with("hosts.");
    let bad: Vec<_> = report
        .checks
        .iter()
        .filter(of)
        .filter(|c| c.state == State::Fail)
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert!(report.checks.iter().any(|c| c.name == "containerd.transfer"));

    // For people: the same in words, and status of the running one.
    let run = |args: &[&str]| {
        Command::new(SHIM)
            .args(args)
            .arg("--config")
            .arg(dir.join("shim.toml"))
            .output()
            .unwrap()
    };
    let text = String::from_utf8(run(&["doctor"]).stdout).unwrap();
    assert!(
        text.contains("shim.running") && text.contains("things must be changed"),
        "{text}"
    );
    let status = run(&["status"]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.status.success() && text.contains(&format!("headstart-shim {}", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    let pid = rustix::process::Pid::from_raw(shim.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    shim.wait().await.unwrap();
    let status = run(&["status"]);
    assert!(!status.status.success());
    assert!(
        String::from_utf8(status.stderr)
            .unwrap()
            .contains("ask the running shim")
    );
}

/// An idle shim sleeps. Wake-ups do not depend on how quick the machine is: a slow one has fewer.
#[tokio::test]
async fn an_idle_shim_sleeps() {
    /// In three seconds: the cache's flush every two, and what a busy machine's timers do.
    const WAKE_UPS_MAX: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "root_dir = '{0}/root'\nsocket = '{0}/shim.sock'\n",
        dir.path().display()
    );
    std::fs::write(dir.path().join("shim.toml"), config).unwrap();
    let mut shim = tokio::process::Command::new(SHIM)
        .arg("--config")
        .arg(dir.path().join("shim.toml"))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::connect(&dir.path().join("shim.sock"), None).await;
    assert_eq!(client.names(&[]).await, [""; 0]);
    let pid = shim.id().unwrap();
    let wake_ups = || -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        tasks
            .filter_map(|t| {
                let status = std::fs::read_to_string(t.path().join("status")).ok()?;
                let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
                line?.trim().parse::<u64>().ok()
            })
            .sum()
    };
    // Starting up is over when a second passes quietly; if none does, it is not idle.
    let mut calm = u64::MAX;
    for _ in 0..30 {
        let before = wake_ups();
        tokio::time::sleep(Duration::from_secs(1)).await;
        calm = calm.min(wake_ups().saturating_sub(before));
        if calm < WAKE_UPS_MAX / 3 {
            break;
        }
    }
    let before = wake_ups();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let woken = wake_ups().saturating_sub(before);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    eprintln!("idle for 3 s: {woken} wake-ups; {rss}");
    assert!(woken < WAKE_UPS_MAX, "{woken} wake-ups in 3 s");
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(shim.wait().await.unwrap().success());
}
