//! What was learnt outlives the process, its index, and kills in the middle of learning.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use headstart_layer_format::{api::ImageStatus, routes};
use headstart_loadtest::origin::Origin;

use crate::{
    fleet::{Fleet, chunks_of, files, image_of, named, origin_of, trace_of},
    support::{REPOSITORY, UPSTREAM},
};

/// Kills; a campaign sets more.
fn rounds() -> u64 {
    let asked = std::env::var("HEADSTART_KILL_ROUNDS");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_nothing_with_the_index_or_without() {
    let files = files(5);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    let needed = chunks_of(&tocs, &[&files[3], &files[11], &files[0]]);
    for node in 1..4 {
        assert_eq!(
            fleet.teach(node, &image, &trace_of(u64::from(node), &needed)).await,
            204
        );
    }
    let learned = fleet.status(&image, "").await.profile.unwrap();
    assert_eq!(learned.starts, 3);
    fleet.server.stop().await;
    for lost in ["", "index"] {
        if !lost.is_empty() {
            fs::remove_dir_all(dir.path().join(lost)).unwrap();
        }
        let fleet = Fleet::start(&origin, dir.path()).await;
        let status = fleet.status(&image, "").await;
        assert_eq!(status.profile.as_ref(), Some(&learned), "{lost}");
        // A trace that was counted before counts no more.
        assert_eq!(fleet.teach(1, &image, &trace_of(1, &needed)).await, 204);
        assert_eq!(fleet.status(&image, "").await.profile.unwrap().starts, 3);
        // And a scrub finds nothing wrong with its rows.
        fleet.server.stop().await;
    }
    let object = fs::read_dir(dir.path().join("profiles"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    fs::write(&object, bytes).unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    assert_eq!(fleet.status(&image, "").await.profile, None, "damaged: a miss");
    assert!(!object.exists());
    assert_eq!(fleet.teach(1, &image, &trace_of(9, &needed)).await, 204);
    assert_eq!(named(&fleet.status(&image, "").await, &tocs), needed);
    fleet.server.stop().await;
}

/// The real binary, over a directory that outlives it.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    async fn start(dir: &Path, origin: &Origin) -> Self {
        let file = dir.join("server.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\n[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[log]\nformat = \"json\"\n",
            dir.join("data"),
            origin.url()
        );
        fs::write(&file, text).unwrap();
        let log = dir.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_headstart-server"))
            .arg("--config")
            .arg(&file)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut process = Self {
            child,
            url: String::new(),
        };
        for _ in 0..1200 {
            let text = fs::read_to_string(&log).unwrap();
            let address = text.lines().find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                line["fields"]["listen"].as_str().map(str::to_owned)
            });
            if let Some(address) = address {
                process.url = format!("http://{address}");
                return process;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not come: {}", fs::read_to_string(&log).unwrap());
    }
}

/// SIGKILL.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_learns_it_knows_what_it_said_it_learnt() {
    let files = files(4);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    // The chunks do not depend on the server: another one says which they are.
    let tocs = {
        let elsewhere = tempfile::tempdir().unwrap();
        let fleet = Fleet::start(&origin, elsewhere.path()).await;
        let tocs = fleet.pull(&image).await;
        fleet.server.stop().await;
        tocs
    };
    let needed = chunks_of(&tocs, &[&files[3], &files[10]]);
    let mut counted = 0u64;
    for round in 0..rounds() {
        let process = Process::start(dir.path(), &origin).await;
        let manifest = format!(
            "{}/v2/{REPOSITORY}/manifests/{}?ns={UPSTREAM}",
            process.url, image.manifest_digest
        );
        assert_eq!(http.get(manifest).send().await.unwrap().status(), 200);
        let status = format!("{}{}?wait_ms=20000", process.url, routes::image(&image.manifest_digest));
        let mut known: ImageStatus = http.get(&status).send().await.unwrap().json().await.unwrap();
        while !known.is_ready() {
            known = http.get(&status).send().await.unwrap().json().await.unwrap();
        }
        if counted > 0 {
            let profile = known.profile.as_ref().expect("what was learnt before the kill");
            assert_eq!(named(&known, &tocs), needed);
            // One node: its share. All that was said to be counted is; the last may be without having been said.
            assert!(
                u64::from(profile.starts) >= counted.min(4),
                "round {round}: {profile:?}"
            );
        }
        let objects: Vec<_> = fs::read_dir(dir.path().join("data/profiles")).unwrap().collect();
        assert!(objects.len() <= 1, "nothing is left over: {objects:?}");
        let url = format!("{}{}", process.url, routes::trace(&image.manifest_digest));
        // Taught until it dies.
        let teaching = tokio::spawn({
            let (http, needed) = (http.clone(), needed.clone());
            async move {
                let mut said = 0u64;
                for start in 0.. {
                    let trace = trace_of(1 + (round << 32) + start, &needed);
                    match http.post(&url).json(&trace).send().await {
                        Ok(answer) if answer.status() == 204 => said += 1,
                        Ok(answer) => panic!("{}", answer.status()),
                        Err(_) => break,
                    }
                }
                said
            }
        });
        tokio::time::sleep(Duration::from_millis(150 + 70 * (round % 5))).await;
        drop(process);
        counted += teaching.await.unwrap();
    }
    assert!(counted > 0, "nothing was taught in any round");
}
