//! The yardstick works: an ordinary pull from the upstream, without anything of ours in between.

use headstart_loadtest::playground::{measure, node::Pulls};

use crate::support::with_lab;

#[test]
fn an_ordinary_pull_from_the_upstream_starts_the_container() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let node = lab.node("node0", Pulls::Ordinary, None).await.unwrap();
        let start = measure::start(lab, &node, None).await.unwrap();
        assert!(start.layer_bytes >= lab.image.compressed_bytes(), "{start:?}");
        let identity = node.identity().await.unwrap().unwrap();
        assert_eq!(identity.id, lab.image.config.to_string());
        assert_eq!(
            node.target_digest().await.unwrap().unwrap(),
            lab.image.manifest.to_string()
        );
        eprintln!("{start:?}");
    });
}
