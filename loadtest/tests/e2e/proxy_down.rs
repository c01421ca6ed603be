//! The proxy is down: before the pull, and while a container runs.

use std::time::{Duration, Instant};

use headstart_loadtest::playground::{
    container::Container,
    measure,
    node::{Node, Pulls},
};

use crate::support::{declines, warm_proxy, with_lab};

#[test]
fn proxy_stopped_before_the_pull_the_container_starts_from_the_next_host() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let mut proxy = lab.proxy("proxy").await.unwrap();
        assert!(proxy.proxy.stop(), "the server did not end cleanly on SIGTERM");
        let node = lab.node("node-d", Pulls::Lazy, Some(&proxy)).await.unwrap();
        node.pull().await.unwrap();
        let mut container = Container::start(&node, "demo", &["python3", "/app/app.py"]).unwrap();
        container.until_printed("READY").await.unwrap();
        container.output().await.unwrap();

        assert!(lab.direct_link.traffic().down_bytes > lab.image.compressed_bytes());
        let lines = declines(&node);
        assert!(!lines.is_empty(), "no line says why the pull was not lazy");
        assert!(lines.len() <= lab.image.layers.len(), "{lines:#?}");
        assert!(lines.iter().all(|l| l.contains("no_server")), "{lines:#?}");
        assert_eq!(
            node.target_digest().await.unwrap().unwrap(),
            lab.image.manifest.to_string()
        );
    });
}

/// Large, not read by a shell, and in different layers.
const UNREAD: [&str; 2] = ["/usr/bin/python3.11", "/usr/bin/perl"];
/// Read before the proxy goes away.
const READ: &str = "/usr/bin/bash";
/// An unread byte must fail within this; the shim's own deadline is far shorter.
const EIO_WITHIN: Duration = Duration::from_secs(90);

async fn sha256(container: &Container<'_>, exec: &str, file: &str) -> Result<String, String> {
    let output = container
        .exec(exec, &["sha256sum", file])
        .await
        .map_err(|e| e.to_string())?;
    Ok(output.split_whitespace().next().unwrap_or_default().to_owned())
}

/// What the files must hash to, from the registry's own bytes.
async fn expected(node: &Node) -> Vec<String> {
    let args: Vec<&str> = ["sha256sum", READ].into_iter().chain(UNREAD).collect();
    let output = Container::start(node, "expected", &args)
        .unwrap()
        .output()
        .await
        .unwrap();
    output
        .lines()
        .map(|l| l.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn proxy_stopped_after_the_start_read_files_stay_and_unread_ones_fail_and_come_back() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let ordinary = lab.node("node-o", Pulls::Ordinary, None).await.unwrap();
        ordinary.pull().await.unwrap();
        let expected = expected(&ordinary).await;
        drop(ordinary);

        let mut proxy = warm_proxy(lab).await;
        let node = lab.node("node-s", Pulls::Lazy, Some(&proxy)).await.unwrap();
        node.pull().await.unwrap();
        assert_eq!(declines(&node), Vec::<String>::new());
        let mut container =
            Container::start(&node, "long", &["sh", "-c", "echo READY; while :; do sleep 1; done"]).unwrap();
        container.until_printed("READY").await.unwrap();
        assert_eq!(sha256(&container, "e1", READ).await.unwrap(), expected[0]);

        proxy.proxy.stop();
        measure::drop_page_cache();
        assert_eq!(
            sha256(&container, "e2", READ).await.unwrap(),
            expected[0],
            "a file that was read before"
        );
        for (i, file) in UNREAD.iter().enumerate() {
            let begun = Instant::now();
            let error = sha256(&container, &format!("e3{i}"), file).await.unwrap_err();
            assert!(error.contains("Input/output error"), "{file}: {error}");
            assert!(
                begun.elapsed() < EIO_WITHIN,
                "{file} took {:?} to fail",
                begun.elapsed()
            );
        }

        proxy.proxy.restart().await.unwrap();
        let deadline = Instant::now() + EIO_WITHIN;
        for (i, file) in UNREAD.iter().enumerate() {
            // The shim may still hold a server that did not answer for down, for a short while.
            let mut attempt = 0;
            let sum = loop {
                attempt += 1;
                match sha256(&container, &format!("e4{i}-{attempt}"), file).await {
                    Ok(sum) => break sum,
                    Err(error) => assert!(Instant::now() < deadline, "{file} never came back: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            assert_eq!(sum, expected[1 + i], "{file}");
        }
    });
}
