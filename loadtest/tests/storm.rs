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
