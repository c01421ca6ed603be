//! Real clients that have to say who they are (`[access]` with passwords): containerd's `header` in hosts.toml, `ctr --user`, and
//! `podman login` at the mirror.
//!
//! In: a repository for who has the password, and one for everybody, so that `/v2/` challenges only because it is told to.
//! Out: the same images, cold and warm; and no image for who has no password, or another, be it in the cache or not.
//! Not here: who may read what (the server's own tests).

use std::path::PathBuf;

use headstart_loadtest::{
    corpus::SyntheticImage,
    playground::{
        containerd::{Containerd, Release, Snapshotter},
        debian_tree::DebianTree,
        proxy::Proxy,
    },
};

use crate::{
    podman::with_storage,
    skopeo::{assert_warm, registries_conf},
    support::{Bench, images, images::contents, stored, upstream::Upstream, with_bench},
};

const USER: &str = "node";
const PASSWORD: &str = "of the nodes";
/// `htpasswd -nbBC 4` of it.
const HTPASSWD: &str = "node:$2b$04$abcdefghijklmnopqrstuufOOlI5rU8d7AZBco0NDErvseX1zBHnq\n";
/// `Basic` of both.
const AUTHORIZATION: &str = "Basic bm9kZTpvZiB0aGUgbm9kZXM=";

const REGISTRY: &str = "registry.test";
const REPOSITORY: &str = "team/app";

struct Stage {
    bench: Bench,
    forky: DebianTree,
    upstream: Upstream,
    proxy: Proxy,
    /// registries.conf with the mirror.
    mirrors: PathBuf,
}

impl Stage {
    async fn new(bench: Bench) -> Stage {
        let forky = bench.forky().await;
        let upstream = Upstream::start(&bench, "upstream").await;
        let htpasswd = bench.work.write("htpasswd", HTPASSWD).unwrap();
        let access = format!(
            "[access]\nmethods = [\"password\"]\nhtpasswd_file = {htpasswd:?}\nchallenge_ping = \"always\"\n\
             [[access.rules]]\nwho = [\"{USER}\"]\nrepositories = [\"{REPOSITORY}\"]\n\
             [[access.rules]]\nwho = [\"anonymous\"]\nrepositories = [\"open/*\"]\n"
        );
        let proxy = bench.proxy("proxy", &[(REGISTRY, &upstream.url())], &access).await;
        let mirrors = registries_conf(REGISTRY, &proxy.address().to_string(), "unreachable.test");
        let mirrors = bench.work.write("registries.conf", &mirrors).unwrap();
        Stage {
            bench,
            forky,
            upstream,
            proxy,
            mirrors,
        }
    }

    /// A containerd 2.1 with these lines more for the mirror, and its hosts directory.
    async fn containerd(&self, name: &str, more: &str) -> (Containerd, PathBuf) {
        let dir = format!("{name}.hosts");
        let hosts = self.bench.dir(&dir);
        self.bench.dir(&format!("{dir}/{REGISTRY}"));
        let host = format!(
            "[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{more}",
            self.proxy.url()
        );
        let file = format!("{dir}/{REGISTRY}/hosts.toml");
        self.bench.work.write(file, &host).unwrap();
        let release = Release::Forky {
            forky: self.forky.clone(),
            part_bytes: 0,
        };
        let started = Containerd::start_release(&self.bench.work, name, release, &Snapshotter::Overlayfs, &hosts).await;
        (started.unwrap_or_else(|error| panic!("failed to {error}")), hosts)
    }

    /// By CRI, with `Authorization` in hosts.toml, or without.
    async fn cri(&self, name: &str, authorization: Option<&str>, tag: &str, image: &SyntheticImage) -> bool {
        let header = authorization.map_or(String::new(), |value| {
            format!(
                "  [host.\"{}\".header]\n    Authorization = \"{value}\"\n",
                self.proxy.url()
            )
        });
        let (containerd, _) = self.containerd(name, &header).await;
        let pulled = containerd.cri.pull(&reference(tag)).await;
        self.is_all_or_nothing(name, pulled.is_ok(), &containerd, image)
    }

    /// By `ctr --user`, or without.
    async fn ctr(&self, name: &str, user: Option<&str>, tag: &str, image: &SyntheticImage) -> bool {
        let (containerd, hosts) = self.containerd(name, "").await;
        let mut ctr = containerd.ctr();
        ctr.args(["images", "pull", "--hosts-dir"]).arg(hosts);
        if let Some(user) = user {
            ctr.args(["--user", user]);
        }
        ctr.arg(reference(tag));
        let pulled = self.bench.run(&format!("{name}-ctr"), ctr).await;
        self.is_all_or_nothing(name, pulled.is_ok(), &containerd, image)
    }

    fn is_all_or_nothing(&self, name: &str, pulled: bool, containerd: &Containerd, image: &SyntheticImage) -> bool {
        let (found, all) = (stored::containerd(&containerd.dir), contents(image));
        match pulled {
            true => assert!(all.is_subset(&found), "{name}: {found:#?}"),
            false => assert!(all.is_disjoint(&found), "{name} was refused, and has {found:#?}"),
        }
        pulled
    }

    /// By podman, after `podman login` at the mirror with this password, or without.
    async fn podman(&self, name: &str, password: Option<&str>, tag: &str, image: &SyntheticImage) -> bool {
        let podman = || with_storage(&self.bench, name, self.forky.command(&self.bench.work, "podman"));
        let auth = self.bench.work.write(format!("{name}.auth.json"), "{}").unwrap();
        if let Some(password) = password {
            let mut login = podman();
            login.args(["login", "--tls-verify=false", "--authfile"]).arg(&auth);
            login.args(["--username", USER, "--password", password]);
            login.arg(self.proxy.address().to_string());
            if self.bench.run(&format!("{name}-login"), login).await.is_err() {
                return false;
            }
        }
        let mut pull = podman();
        pull.env("CONTAINERS_REGISTRIES_CONF", &self.mirrors);
        pull.args(["pull", "--quiet", "--retry", "0", "--authfile"]).arg(&auth);
        pull.arg(format!("docker://{}", reference(tag)));
        let pulled = self.bench.run(&format!("{name}-pull"), pull).await.is_ok();
        if pulled {
            stored::assert_in_storage(&self.bench.dir(&format!("{name}.root")), image);
        }
        pulled
    }

    /// Nobody without the password gets the image. It is the mirror that says so, and it has asked the upstream for nothing.
    async fn refuses_strangers(&self, round: &str, tag: &str, image: &SyntheticImage) {
        let before = self.upstream.traffic();
        let mut refused = self.refused().await;
        let wrong = format!("{USER}:wrong");
        for (who, user) in [("nobody", None), ("mallory", Some(wrong.as_str()))] {
            let name = |client: &str| format!("{client}-{who}-{round}");
            let password = user.map(|_| "wrong");
            let header = user.map(|_| "Basic bm9kZTp3cm9uZw==");
            for client in ["cri", "ctr", "podman"] {
                let name = name(client);
                let pulled = match client {
                    "cri" => self.cri(&name, header, tag, image).await,
                    "ctr" => self.ctr(&name, user, tag, image).await,
                    _ => self.podman(&name, password, tag, image).await,
                };
                assert!(!pulled, "{name} has the image");
                let now = self.refused().await;
                assert!(now > refused, "{name}: the mirror refused nothing");
                refused = now;
            }
        }
        let sent = self.upstream.traffic().since(&before).down_bytes;
        assert_eq!(sent, 0, "{round}: the upstream was asked for who may not read");
    }

    async fn refused(&self) -> f64 {
        let counters = self.proxy.counters().await.unwrap();
        counters.sum("headstart_requests_total", &["status=\"4xx\""])
    }
}

fn reference(tag: &str) -> String {
    format!("{REGISTRY}/{REPOSITORY}:{tag}")
}

#[test]
fn clients_with_a_password_pull_and_others_do_not() {
    with_bench(|bench| async move {
        let stage = Stage::new(bench).await;
        let tags = ["one", "two", "three"];
        let mut all = Vec::new();
        for (n, tag) in tags.iter().enumerate() {
            let image = images::image(6000 + n as u64, &[600_000, 30_000]);
            stage.upstream.push(REPOSITORY, tag, &image).await;
            all.push(image);
        }
        stage.refuses_strangers("cold", tags[0], &all[0]).await;
        let user = format!("{USER}:{PASSWORD}");
        let mut warm = None;
        // Each client is the first with one image, and comes after another with the next.
        for (round, by) in [("cold", 0), ("warm", 1)] {
            let of = |client: usize| (tags[(client + by) % tags.len()], &all[(client + by) % tags.len()]);
            let name = |client: &str| format!("{client}-{round}");
            let (tag, image) = of(0);
            assert!(
                stage.cri(&name("cri"), Some(AUTHORIZATION), tag, image).await,
                "{round}"
            );
            let (tag, image) = of(1);
            assert!(stage.ctr(&name("ctr"), Some(&user), tag, image).await, "{round}");
            let (tag, image) = of(2);
            assert!(
                stage.podman(&name("podman"), Some(PASSWORD), tag, image).await,
                "{round}"
            );
            match &warm {
                None => warm = Some(stage.upstream.traffic()),
                Some(warm) => assert_warm(&stage.bench, &stage.upstream, warm),
            }
        }
        stage.refuses_strangers("warm", tags[0], &all[0]).await;
    });
}
