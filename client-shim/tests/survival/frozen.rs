//! A server that accepts and never answers: what does not need it does not notice.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::node::{Kind, LONG, Node};

/// Listens where a server was, and says nothing.
fn black_hole(node: &mut Node) -> TcpListener {
    let address = node.server.url().strip_prefix("http://").unwrap().to_owned();
    node.server.down();
    let begun = Instant::now();
    loop {
        match TcpListener::bind(&address) {
            // The kernel accepts for it.
            Ok(listener) => return listener,
            Err(error) => assert!(begun.elapsed() < LONG, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn calls_and_starts_that_need_no_server_do_not_wait_for_one() {
    for kind in [Kind::EROFS, Kind::FUSE] {
        let mut node = Node::new(kind);
        node.demand_timeout_ms = 4000;
        node.start();
        let chain = node.pull();
        node.prepare_container(&chain);
        // One file is here, the others are not.
        let files = node.files();
        let (here, missing) = (&files[0], &files[9]);
        assert!(std::fs::read(&here.0).unwrap() == *here.1);
        let _hole = black_hole(&mut node);

        // A reader of missing bytes is held up, for a bounded time, and holds up nobody.
        let path = missing.0.clone();
        let reading = std::thread::spawn(move || {
            let begun = Instant::now();
            let read = File::open(path).unwrap().read_exact_at(&mut [0; 4096], 0);
            (read, begun.elapsed())
        });
        std::thread::sleep(Duration::from_millis(200));
        let client = node.client();
        let calls = async {
            client.stat(&chain).await.unwrap();
            client.list(&[]).await.unwrap();
            // Another container of the image, and one of an ordinary image.
            assert!(!client.prepare("second", &chain, &[]).await.unwrap().is_empty());
            assert!(!client.view("view", &chain, &[]).await.unwrap().is_empty());
            client.remove("view").await.unwrap();
            client.remove("second").await.unwrap();
            client.prepare("extract-ordinary", "", &[]).await.unwrap();
            client.commit("ordinary", "extract-ordinary", &[]).await.unwrap();
            client.prepare("third", "ordinary", &[]).await.unwrap();
            client.remove("third").await.unwrap();
            client.remove("ordinary").await.unwrap();
            client.cleanup().await.unwrap();
        };
        let before = Instant::now();
        node.runtime
            .block_on(async { tokio::time::timeout(LONG, calls).await })
            .expect("no call waits");
        let called = before.elapsed();
        assert!(
            !reading.is_finished() || called > Duration::from_secs(4),
            "the reader waited for the server"
        );
        // Files that are here, and everything but the bytes of those that are not.
        assert!(std::fs::read(&here.0).unwrap() == *here.1);
        assert_eq!(std::fs::metadata(&missing.0).unwrap().len(), missing.1.len() as u64);
        let (read, took) = reading.join().unwrap();
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(took < LONG, "{took:?}");

        // A start with such a server: at once, and complete images run.
        node.kill();
        node.start();
        assert!(std::fs::read(&here.0).unwrap() == *here.1);
        node.end_container();
    }
}
