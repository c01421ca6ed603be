//! When a real container is ready, by HTTP and by port: as it says itself, and nobody else for it.

use std::time::{Duration, Instant};

use headstart_loadtest::playground::{
    container::{Container, Run},
    measure::Subject,
    netns::NetNs,
    node::{Node, Pulls},
    ready::{HttpProbe, Ready},
};

use crate::support::with_lab;

const PORT: u16 = 8080;
/// From the container's first line to its being ready.
const SLOW: Duration = Duration::from_millis(1500);

/// Answers 503 at first, and 404 to other paths.
const HTTP: &str = r#"
import http.server, time
begun = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        late = time.monotonic() - begun > 1.5
        self.send_response(404 if self.path != "/ready" else 200 if late else 503)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"#;

/// Listens late.
const TCP: &str = r#"
import socket, time
time.sleep(1.5)
listener = socket.socket()
listener.bind(("0.0.0.0", 8080))
listener.listen()
time.sleep(600)
"#;

const IDLE: &str = "import time; print('idle', flush=True); time.sleep(600)";

fn http(path: &str) -> Ready {
    Ready::Http(HttpProbe {
        port: PORT,
        path: path.to_owned(),
    })
}

/// The demo image's python, running this.
fn python(demo: &Subject, script: &str, ready: Ready, timeout: Duration) -> Subject {
    Subject {
        args: vec!["python3".into(), "-c".into(), script.into()],
        ready,
        timeout,
        ..demo.clone()
    }
}

async fn error(node: &Node, id: &str, subject: &Subject) -> String {
    subject.run(node, id).await.unwrap_err().to_string()
}

#[test]
fn containers_are_ready_when_they_answer_and_not_when_another_does() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let node = lab.node("node", Pulls::Ordinary, None).await.unwrap();
        node.pull().await.unwrap();
        let demo = Subject::demo(lab);
        let (patience, short) = (Duration::from_secs(120), Duration::from_secs(3));

        let by_http = python(&demo, HTTP, http("/ready"), patience);
        let ready = by_http.run(&node, "http").await.unwrap();
        assert!(ready >= SLOW, "{ready:?}: its first answers were no success");
        let by_port = python(&demo, TCP, Ready::Tcp(PORT), patience);
        let ready = by_port.run(&node, "tcp").await.unwrap();
        assert!(ready >= SLOW, "{ready:?}: it listened later");

        // It listens, and has no such page.
        let why = error(&node, "elsewhere", &python(&demo, HTTP, http("/nowhere"), short)).await;
        assert!(why.contains("GET /nowhere on port 8080 within 3s"), "{why}");

        // Another container has the port all the while.
        let network = NetNs::new().unwrap();
        let reference = demo.image.reference();
        let run = Run {
            reference: &reference,
            args: &["python3", "-c", TCP],
            env: &[],
            network: Some(network.path()),
        };
        let mut other = Container::run(&node, "other", &run).unwrap();
        let ready = Ready::Tcp(PORT).wait(&mut other, Some(&network), patience).await;
        assert!(ready.unwrap() >= SLOW);
        for (id, probe) in [("idle-tcp", Ready::Tcp(PORT)), ("idle-http", http("/"))] {
            let title = probe.title();
            let why = error(&node, id, &python(&demo, IDLE, probe, short)).await;
            assert!(
                why.contains(&format!("{title} within 3s")) && why.contains("idle"),
                "{why}"
            );
        }
        assert!(!other.has_ended());

        // One that ends is not waited for.
        let begun = Instant::now();
        let ends = python(&demo, "exit('no configuration')", Ready::Tcp(PORT), patience);
        let why = error(&node, "ends", &ends).await;
        assert!(begun.elapsed() < patience / 2, "{why}");
        assert!(
            why.contains("it has ended") && why.contains("no configuration"),
            "{why}"
        );
    });
}
