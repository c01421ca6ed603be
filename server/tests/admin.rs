//! The subcommands against the real binary: a server process, and the command line that talks to it over its socket.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage, index_of, noise};
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};

const BINARY: &str = env!("CARGO_BIN_EXE_headstart-server");
const REPOSITORY: &str = "team/app";

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(origin: &Origin) -> Self {
        Self::start_with(&[("up.test", origin)], "")
    }

    /// With a part of the configuration that follows the last upstream.
    fn start_with(upstreams: &[(&str, &Origin)], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_config(dir.path(), upstreams, more);
        Self::start_in(dir)
    }

    fn start_in(dir: tempfile::TempDir) -> Self {
        let mut child = Command::new(BINARY)
            .arg("--config")
            .arg(dir.path().join("server.toml"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("\"ready\"") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended");
        }
        // Or its log fills the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let server = Self { child, dir };
        for _ in 0..500 {
            if server.dir.path().join("data/admin.sock").exists() {
                return server;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("there is no socket");
    }

    /// A subcommand; `--config` comes after it, as people write it.
    fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.dir.path().join("server.toml"));
        command.output().unwrap()
    }

    /// What a terminal shows of a subcommand.
    fn on_a_terminal(&self, arguments: &str) -> String {
        let config = self.dir.path().join("server.toml");
        // A terminal of no width would show nothing.
        let line = format!(
            "stty cols 120 rows 30; exec {BINARY} {arguments} --config {}",
            config.display()
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(dir: &Path, upstreams: &[(&str, &Origin)], more: &str) {
    let data_dir = dir.join("data");
    let mut text = format!("listen = \"127.0.0.1:0\"\ndata_dir = \"{}\"\n", data_dir.display());
    for (name, origin) in upstreams {
        text += &format!("[[upstreams]]\nname = \"{name}\"\nurl = \"{}\"\n", origin.url());
    }
    // The test waits for a line of it.
    text += &format!("{more}[log]\nformat = \"json\"\n");
    std::fs::write(dir.join("server.toml"), text).unwrap();
}

fn original(server: &Server, digest: &BlobDigest) -> std::path::PathBuf {
    let hex = digest.hex();
    server
        .dir
        .path()
        .join("data/originals/sha256")
        .join(&hex[..2])
        .join(hex)
}

#[test]
fn an_image_is_warmed_listed_pinned_and_removed() {
    let image = SyntheticImage::seeded(51);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let server = Server::start(&origin);
    let name = format!("up.test/{REPOSITORY}:v1");
    assert_eq!(server.json(&["ls", "--json"])["count"], 0);

    let said = server.ok(&["warm", &name]);
    assert!(
        said.contains(&format!("{name}: {} blobs", 1 + image.layers.len())),
        "{said}"
    );
    assert!(said.contains(&format!("{name}: done")), "{said}");
    for layer in &image.layers {
        assert_eq!(origin.bytes_sent(&layer.digest), layer.blob.len() as u64);
        assert!(original(&server, &layer.digest).exists());
    }
    // Again: everything is here.
    server.ok(&["warm", &name]);
    for layer in &image.layers {
        assert_eq!(origin.bytes_sent(&layer.digest), layer.blob.len() as u64);
    }

    let images = server.json(&["ls", "--json"]);
    let listed = &images["items"][0];
    assert_eq!(
        (images["count"].as_u64(), listed["name"].as_str()),
        (Some(1), Some(name.as_str()))
    );
    assert_eq!(listed["digest"], image.manifest_digest.to_string());
    assert_eq!(listed["layers_ready"], image.layers.len());
    assert_eq!(listed["pinned"], false);
    let blobs = server.json(&["ls", "blobs", "--json"]);
    assert_eq!(blobs["count"], image.layers.len() + 2);
    let layers = server.json(&["ls", "layers", "--json", "--limit", "1"]);
    assert_eq!(
        (layers["items"].as_array().unwrap().len(), layers["count"].as_u64()),
        (1, Some(image.layers.len() as u64))
    );
    assert!(server.ok(&["ls"]).contains(&name));

    assert!(server.ok(&["pin", &name]).contains("pinned"));
    assert!(server.ok(&["pin", &name]).contains("already"));
    assert_eq!(server.json(&["ls", "--json"])["items"][0]["pinned"], true);
    let pins = server.json(&["ls", "pins", "--json"]);
    assert_eq!(pins["items"][0]["target"], name);
    assert_eq!(pins["items"][0]["digest"], image.manifest_digest.to_string());
    assert_eq!(pins["bytes"], listed["bytes"]);
    let refused = server.fails(&["rm", &name]);
    assert!(refused.contains("it is pinned"), "{refused}");
    let digest = image.layers[0].digest.to_string();
    assert!(server.fails(&["rm", &digest]).contains("it is pinned"));
    server.ok(&["unpin", &name]);
    assert_eq!(server.json(&["ls", "pins", "--json"])["count"], 0);

    // Nothing is over a budget.
    let dry = server.json(&["gc", "--dry-run", "--json"]);
    assert_eq!(
        (dry["dry_run"].as_bool(), dry["originals_count"].as_u64()),
        (Some(true), Some(0))
    );
    let gone = server.json(&["rm", "--json", &name]);
    assert_eq!(gone["originals_count"], image.layers.len() + 2);
    assert_eq!(gone["layers_count"], image.layers.len());
    assert!(gone["packs_bytes"].as_u64().unwrap() > 0, "{gone}");
    assert!(!original(&server, &image.manifest_digest).exists());
    assert_eq!(server.json(&["ls", "--json"])["count"], 0);
    assert!(server.fails(&["rm", &name]).contains("it is not here"));
    assert!(server.fails(&["rm", "sha256:12"]).contains("parse the image reference"));
    server.ok(&["gc"]);
    // Facts stayed; the bytes come again.
    server.ok(&["warm", &name]);
    assert_eq!(
        origin.bytes_sent(&image.layers[0].digest),
        2 * image.layers[0].blob.len() as u64
    );
}

#[test]
fn who_warms_at_a_terminal_sees_how_far_it_is() {
    let mut layer = LayerBuilder::new(Dialect::Pax);
    layer.file("noise", Meta::default(), noise(4 << 20, 54));
    let image = SyntheticImage::new(Flavor::Oci, vec![layer.finish(Compression::Gzip)]);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let slow = Fault::Throttle { bytes_per_sec: 2 << 20 };
    origin.always(Target::Blobs, slow);
    let server = Server::start(&origin);
    let name = format!("up.test/{REPOSITORY}:v1");
    let shown = server.on_a_terminal(&format!("warm {name}"));
    assert!(shown.contains(&format!("{name}: done")), "{shown}");
    // A part of the bar, and how many bytes of how many.
    assert!(shown.contains('\u{2588}') && shown.contains('\u{2591}'), "{shown}");
    assert!(shown.contains(" MiB/4.") && shown.contains("MiB/s"), "{shown}");
    // Nowhere else.
    let told = server.ask(&["warm", &name]);
    assert!(told.stderr.is_empty(), "{told:?}");
}

#[test]
fn platforms_are_chosen_and_layers_that_images_share_stay() {
    let (one, two) = (SyntheticImage::seeded(52), SyntheticImage::seeded(53));
    let origin = Origin::start(Auth::Anonymous);
    let index = index_of(&[("amd64", &one), ("arm64", &two)]);
    for (tag, image) in [("one", &one), ("two", &two)] {
        image.push(&origin, REPOSITORY, tag);
    }
    origin.add_manifest(
        REPOSITORY,
        Some("multi"),
        "application/vnd.oci.image.index.v1+json",
        index,
    );
    let server = Server::start(&origin);
    let name = format!("up.test/{REPOSITORY}:multi");
    server.ok(&["warm", "--platform", "linux/arm64", &name]);
    assert!(original(&server, &two.layers[0].digest).exists());
    assert!(!original(&server, &one.layers[0].digest).exists());
    let none = server.fails(&["warm", "--platform", "plan9/mips", &name]);
    assert!(none.contains("none of those") && none.contains("warm 1 of 1"), "{none}");
    server.ok(&["warm", "--all-platforms", &name]);
    assert!(original(&server, &one.layers[0].digest).exists());
    // Another tag of one of its images: what the index needs stays.
    let other = format!("up.test/{REPOSITORY}:two");
    server.ok(&["warm", &other]);
    let refused = server.fails(&["rm", &other]);
    assert!(refused.contains("another image that is here needs it"), "{refused}");
    assert!(original(&server, &two.manifest_digest).exists());
    let gone = server.json(&["rm", "--force", "--json", &other]);
    assert_eq!(gone["originals_count"], 1);
    assert!(!original(&server, &two.manifest_digest).exists());
    assert!(original(&server, &two.layers[0].digest).exists());
    // A layer by its digest goes whoever needs it, and nothing else does.
    let gone = server.json(&["rm", "--json", &two.layers[1].digest.to_string()]);
    assert_eq!(gone["originals_count"], 1);
    assert!(!original(&server, &two.layers[1].digest).exists());
    server.ok(&["rm", &name]);
    assert!(!original(&server, &two.layers[0].digest).exists());
}

#[test]
fn indexes_in_indexes_several_upstreams_and_foreign_layers_are_warmed() {
    let (one, two) = (SyntheticImage::tiny(56), SyntheticImage::tiny(57));
    let (here, there) = (Origin::start(Auth::Anonymous), Origin::start(Auth::bearer()));
    one.push(&here, REPOSITORY, "plain");
    let inner = index_of(&[("amd64", &one)]);
    let index_type = "application/vnd.oci.image.index.v1+json";
    let size = inner.len();
    let inner = here.add_manifest(REPOSITORY, None, index_type, inner);
    let outer = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": index_type,
        "manifests": [{ "mediaType": index_type, "digest": inner, "size": size }],
    });
    here.add_manifest(REPOSITORY, Some("nested"), index_type, outer.to_string());
    // A layer that is to be had elsewhere only.
    two.push(&there, REPOSITORY, "two");
    let mut foreign: serde_json::Value = serde_json::from_slice(&two.manifest).unwrap();
    foreign["layers"].as_array_mut().unwrap().push(serde_json::json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": BlobDigest::of(b"elsewhere"),
        "size": 9,
        "urls": ["https://registry.invalid/layer"],
    }));
    there.add_manifest(
        REPOSITORY,
        Some("foreign"),
        two.manifest_media_type,
        foreign.to_string(),
    );
    let upstreams = [("up.test", &here), ("other.test:5000", &there)];
    let server = Server::start_with(&upstreams, "[upstreams.tags]\npolicy = \"pinned\"\n");
    let nested = format!("up.test/{REPOSITORY}:nested");
    let foreign = format!("other.test:5000/{REPOSITORY}:foreign");
    let said = server.ok(&["warm", "--json", "--platform", "linux/x86_64", &nested, &foreign]);
    let events: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let done = |image: &str| events.iter().any(|e| e["event"] == "done" && e["image"] == image);
    assert!(done(&nested) && done(&foreign), "{said}");
    for layer in one.layers.iter().chain(&two.layers) {
        assert!(original(&server, &layer.digest).exists());
    }
    assert!(
        here.gets(&BlobDigest::of(b"elsewhere")).is_empty() && there.gets(&BlobDigest::of(b"elsewhere")).is_empty()
    );
    let images = server.json(&["ls", "--json"]);
    let ready = |name: &str| {
        let items = images["items"].as_array().unwrap().iter();
        items
            .filter(|i| i["name"] == name)
            .map(|i| i["layers_ready"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(ready(&nested), one.layers.len() as u64);
    assert_eq!(ready(&foreign), two.layers.len() as u64);
}

#[test]
fn an_image_that_is_not_kept_is_not_warm() {
    let image = SyntheticImage::seeded(58);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let server = Server::start_with(&[("up.test", &origin)], "[cache]\noriginals_bytes_max = 1000000\n");
    let name = format!("up.test/{REPOSITORY}:v1");
    let errors = server.fails(&["warm", &name]);
    assert!(errors.contains("the budget of originals is too small"), "{errors}");
    assert!(errors.contains("warm 1 of 1 images"), "{errors}");
}

#[test]
fn failures_have_words_and_an_exit_status() {
    let image = SyntheticImage::tiny(54);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let server = Server::start(&origin);
    let name = format!("up.test/{REPOSITORY}:v1");
    let missing = format!("up.test/{REPOSITORY}:none");
    let partly = server.ask(&["warm", &name, &missing]);
    assert!(!partly.status.success());
    let (said, errors) = (
        String::from_utf8(partly.stdout).unwrap(),
        String::from_utf8(partly.stderr).unwrap(),
    );
    assert!(said.contains(&format!("{name}: done")), "{said}");
    assert!(
        errors.contains(&format!("{missing}: failed to read manifest none")),
        "{errors}"
    );
    assert!(errors.contains("warm 1 of 2 images"), "{errors}");
    assert!(
        server
            .fails(&["warm", "quay.io/a/b"])
            .contains("parse the image reference")
    );
    assert!(
        server
            .fails(&["warm", "--platform", "linux", &name])
            .contains("platform")
    );
    assert!(server.fails(&["pin", &missing]).contains("it is not here"));
}

#[test]
fn a_warming_ends_with_the_one_who_asked_and_a_stale_socket_is_replaced() {
    let image = SyntheticImage::seeded(55);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let gate = origin.hold(Target::Digest(image.layers[0].digest), 10);
    let mut server = Server::start(&origin);
    let name = format!("up.test/{REPOSITORY}:v1");
    let mut asking = Command::new(BINARY)
        .args(["warm", &name, "--config"])
        .arg(server.dir.path().join("server.toml"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(asking.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("blobs"), "{line}");
    asking.kill().unwrap();
    asking.wait().unwrap();
    drop(gate);
    // The server goes on, also after a kill that leaves its socket behind.
    server.ok(&["ls"]);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let dir = std::mem::replace(&mut server.dir, tempfile::tempdir().unwrap());
    let socket = dir.path().join("data/admin.sock");
    assert!(socket.exists());
    let ask = |dir: &Path| {
        let socket = dir.join("data/admin.sock");
        Command::new(BINARY)
            .args(["ls", "--socket"])
            .arg(socket)
            .output()
            .unwrap()
    };
    let nobody = ask(dir.path());
    let error = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        !nobody.status.success() && error.contains("failed to reach a running server at"),
        "{error}"
    );
    std::fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let again = Server::start_in(dir);
    for _ in 0..500 {
        if ask(again.dir.path()).status.success() {
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&socket).unwrap());
            assert_eq!(mode & 0o777, 0o600);
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the stale socket stays");
}
