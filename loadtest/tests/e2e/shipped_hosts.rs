//! The shipped hosts.toml, with only the address changed, makes a real containerd pull through the proxy.

use headstart_loadtest::playground::{
    containerd::{Containerd, Snapshotter},
    node::image_reference,
};

use crate::support::with_lab;

#[test]
fn containerd_pulls_through_the_proxy_with_the_shipped_hosts_file() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let shipped = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../config/containerd/certs.d/_default/hosts.toml"
        );
        let text = std::fs::read_to_string(shipped).unwrap();
        let placeholder = "http://headstart.internal:5080";
        assert!(text.contains(placeholder), "{shipped} names another server");
        let proxy = lab.proxy("proxy").await.unwrap();
        lab.work.dir("certs.d/_default").unwrap();
        lab.work
            .write(
                "certs.d/_default/hosts.toml",
                &text.replace(placeholder, &proxy.mirror_link.url()),
            )
            .unwrap();
        let hosts = lab.work.path().join("certs.d");
        let containerd = Containerd::start(&lab.work, "node-h", &Snapshotter::Overlayfs, &hosts)
            .await
            .unwrap();

        let id = containerd.cri.pull(&image_reference()).await.unwrap();
        assert_eq!(id, lab.image.config.to_string());
        assert!(proxy.mirror_link.traffic().down_bytes > lab.image.compressed_bytes());
        assert_eq!(lab.direct_link.traffic().down_bytes, 0);
    });
}
