//! The storm counts what it verified, and only that.

use headstart_loadtest::corpus::{OCI_INDEX, SyntheticImage, index_of};
use headstart_loadtest::origin::{Fault, Origin, Target};
use headstart_loadtest::storm::{self, StormConfig};

fn config(origin: &Origin) -> StormConfig {
    StormConfig {
        server: origin.url(),
        ns: "docker.io".to_owned(),
        repository: "a/b".to_owned(),
        reference: "v1".to_owned(),
        nodes: 4,
        rounds: 2,
        ..StormConfig::default()
    }
}

#[tokio::test]
async fn every_node_pulls_every_byte() {
    let image = SyntheticImage::seeded(11);
    let origin = Origin::with_image("a/b", "v1", &image);
    let index = index_of(&[("arm64", &image), ("amd64", &image)]);
    origin.add_manifest("a/b", Some("multi"), OCI_INDEX, index);
    for reference in ["v1", "multi"] {
        origin.clear_calls();
        let report = storm::run(StormConfig {
            reference: reference.to_owned(),
            ..config(&origin)
        })
        .await
        .unwrap();
        assert_eq!((report.errors, report.image.count()), (0, 8), "{report}");
        let per_pull = image.layers_size() + image.config.len() as u64;
        assert_eq!(report.bytes, 8 * per_pull);
        assert_eq!(report.blob.count(), 8 * (image.layers.len() as u64 + 1));
        assert!(
            origin
                .calls()
                .iter()
                .all(|c| c.query.as_deref() == Some("ns=docker.io"))
        );
        assert_eq!(report.json()["image"]["count"], 8);
        assert!(report.to_string().contains("whole image"));
    }
}

#[tokio::test]
async fn a_wrong_byte_or_a_cut_is_an_error_and_no_bytes() {
    let image = SyntheticImage::tiny(12);
    let origin = Origin::with_image("a/b", "v1", &image);
    let layer = image.layers[0].digest;
    origin.once(Target::Digest(layer), Fault::WrongByte { at: 10 });
    origin.once(Target::Digest(image.config_digest), Fault::Truncate { after: 10 });
    let report = storm::run(StormConfig {
        nodes: 1,
        rounds: 3,
        ..config(&origin)
    })
    .await
    .unwrap();
    assert_eq!((report.errors, report.image.count()), (2, 1), "{report}");
    let good = 2 * image.config.len() as u64 + image.layers_size();
    assert_eq!(report.bytes, good);
    assert!(report.first_errors.iter().any(|e| e.contains("digest")), "{report}");
}

#[tokio::test]
async fn a_storm_without_nodes_is_refused() {
    let origin = Origin::start(Default::default());
    assert!(
        storm::run(StormConfig {
            nodes: 0,
            ..config(&origin)
        })
        .await
        .is_err()
    );
}

/// The binary: settings from the file, flags over them, JSON beside the table, failures in the exit status.
#[tokio::test]
async fn the_program_reports_and_fails_as_documented() {
    let image = SyntheticImage::tiny(13);
    let origin = Origin::with_image("a/b", "v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let (file, json) = (dir.path().join("storm.toml"), dir.path().join("report.json"));
    let text = format!(
        "[storm]\nserver = {:?}\nrepository = \"a/b\"\nnodes = 99\n",
        origin.url()
    );
    std::fs::write(&file, text).unwrap();
    let run = async |image: &str, more: &[&str]| {
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_headstart-loadtest"));
        program.args(["storm", "--nodes", "2", "--image", image]).args(more);
        program
            .arg("--config")
            .arg(&file)
            .arg("--json")
            .arg(&json)
            .kill_on_drop(true);
        program.output().await.unwrap()
    };
    let good = run("a/b:v1", &["--rounds", "2"]).await;
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("whole image"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&report["image"]["count"], &report["errors"]), (&4.into(), &0.into()));
    let bad = run("a/b:gone", &[]).await;
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    std::fs::write(&file, "[storm]\nnodez = 1\n").unwrap();
    let typo = run("a/b:v1", &[]).await;
    assert!(
        !typo.status.success() && String::from_utf8_lossy(&typo.stderr).contains("nodez"),
        "{typo:?}"
    );
}
