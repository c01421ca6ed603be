//! Real clients over TLS, and with client certificates: containerd's `ca` and `client`, certificate directories of podman and
//! skopeo, crane's `SSL_CERT_FILE`.
//!
//! In: certificates made here. Out: the same images, cold and warm, and no image for who does not trust, or is not trusted.
//! Not here: TLS as such (the server's own tests).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use headstart_loadtest::{
    corpus::SyntheticImage,
    playground::{
        containerd::{Containerd, Release, Snapshotter},
        proxy::{Proxy, TlsFiles},
        tools,
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::{
    podman::with_storage,
    skopeo::assert_warm,
    support::{Bench, images, images::contents, stored, upstream::Upstream, with_bench},
};

/// Certificates of one authority: the server's and the clients'.
struct Certificates {
    ca: PathBuf,
    server: (PathBuf, PathBuf),
    client: (PathBuf, PathBuf),
    /// As podman and skopeo want them: `ca.crt`, `client.cert`, `client.key`; and without the client's.
    whole_dir: PathBuf,
    ca_dir: PathBuf,
}

impl Certificates {
    fn new(bench: &Bench) -> Certificates {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "the test's authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let sign = |name: &str, sans: &[&str], usage: ExtendedKeyUsagePurpose| {
            let sans: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
            let mut params = CertificateParams::new(sans).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages.push(usage);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
        };
        let write = |name: &str, text: &str| bench.work.write(name, text).unwrap();
        for dir in ["certs", "certs/whole", "certs/ca"] {
            bench.dir(dir);
        }
        let server = sign("server", &["127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        let client = sign("node-1", &[], ExtendedKeyUsagePurpose::ClientAuth);
        write("certs/ca/ca.crt", &authority.pem());
        Certificates {
            ca: write("certs/whole/ca.crt", &authority.pem()),
            server: (
                write("certs/server.pem", &server.0),
                write("certs/server.key", &server.1),
            ),
            client: (
                write("certs/whole/client.cert", &client.0),
                write("certs/whole/client.key", &client.1),
            ),
            whole_dir: bench.dir("certs/whole"),
            ca_dir: bench.dir("certs/ca"),
        }
    }
}

/// A mirror that is not insecure.
fn registries_conf(proxy: &Proxy) -> String {
    let mirror = proxy.address();
    format!(
        "unqualified-search-registries = []\n[[registry]]\nprefix = \"registry.test\"\nlocation = \"unreachable.test\"\n\
         [[registry.mirror]]\nlocation = \"{mirror}/registry.test\"\ninsecure = false\n"
    )
}

async fn pulls(bench: Bench, with_client: bool) {
    let forky = bench.forky().await;
    let certificates = Certificates::new(&bench);
    let upstream = Upstream::start(&bench, "upstream").await;
    let tls = TlsFiles {
        certificate: certificates.server.0.clone(),
        key: certificates.server.1.clone(),
        client_ca: with_client.then(|| certificates.ca.clone()),
    };
    let rest = format!(
        "default_upstream = \"registry.test\"\n[[upstreams]]\nname = \"registry.test\"\nurl = \"{}\"\n",
        upstream.url()
    );
    let proxy = Proxy::start_tls(&bench.work, "proxy", &bench.binaries.server, &rest, &tls).await;
    let proxy = proxy.unwrap_or_else(|error| panic!("failed to {error}"));
    let certs = match with_client {
        true => &certificates.whole_dir,
        false => &certificates.ca_dir,
    };
    let conf = bench.work.write("registries.conf", &registries_conf(&proxy)).unwrap();
    let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
    let policy = bench.work.write("policy.json", policy).unwrap();

    let skopeo = async |name: &str, tag: &str, certs: &Path| {
        let dir = bench.work.path().join(format!("skopeo-{name}"));
        let mut copy = Command::new(tools::find("skopeo").unwrap());
        copy.arg("--registries-conf").arg(&conf).arg("--policy").arg(&policy);
        copy.args(["copy", "--quiet", "--src-cert-dir"]).arg(certs);
        copy.arg(format!("docker://registry.test/team/app:{tag}"));
        copy.arg(format!("dir:{}", dir.display()));
        let run = bench.run(&format!("skopeo-{name}"), copy).await;
        run.map(|_| stored::skopeo_dir(&dir))
    };
    let podman = async |name: &str, tag: &str, image: &SyntheticImage| {
        let name = format!("podman-{name}");
        let mut pull = with_storage(&bench, &name, forky.command(&bench.work, "podman"));
        pull.env("CONTAINERS_REGISTRIES_CONF", &conf);
        pull.args(["pull", "--quiet", "--retry", "0", "--cert-dir"]).arg(certs);
        pull.arg(format!("docker://registry.test/team/app:{tag}"));
        bench.run(&name, pull).await.unwrap();
        stored::assert_in_storage(&bench.dir(&format!("{name}.root")), image);
    };
    let containerd = async |name: &str, release: Release, tag: &str, image: &SyntheticImage| {
        let dir = format!("hosts-{name}");
        bench.dir(&format!("{dir}/registry.test"));
        let mut host = format!(
            "[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"{}\"\n",
            proxy.url(),
            certificates.ca.display()
        );
        if with_client {
            let (certificate, key) = &certificates.client;
            let pair = format!("  client = [[\"{}\", \"{}\"]]\n", certificate.display(), key.display());
            host.push_str(&pair);
        }
        bench
            .work
            .write(format!("{dir}/registry.test/hosts.toml"), &host)
            .unwrap();
        let hosts = bench.dir(&dir);
        let started = Containerd::start_release(&bench.work, name, release, &Snapshotter::Overlayfs, &hosts).await;
        let containerd = started.unwrap_or_else(|error| panic!("failed to {error}"));
        containerd
            .cri
            .pull(&format!("registry.test/team/app:{tag}"))
            .await
            .unwrap();
        let found = stored::containerd(&containerd.dir);
        assert!(contents(image).is_subset(&found), "{name}: {found:#?}");
    };
    // No client of ours.
    let crane = async |name: &str, tag: &str| {
        let dir = bench.work.path().join(format!("crane-{name}"));
        let mut pull = forky.command(&bench.work, "crane");
        pull.env("SSL_CERT_FILE", &certificates.ca);
        pull.args(["pull", "--format=oci"]);
        pull.arg(format!("{}/registry.test/team/app:{tag}", proxy.address()))
            .arg(&dir);
        bench.run(&format!("crane-{name}"), pull).await.unwrap();
        stored::layout(&dir)
    };

    // Each client is the first with one image, and comes after another with the next.
    let tags = ["one", "two", "three", "four", "five"];
    let mut all = Vec::new();
    for (n, tag) in tags.iter().enumerate() {
        let image = images::image(5000 + n as u64, &[600_000, 30_000]);
        upstream.push("team/app", tag, &image).await;
        all.push(image);
    }
    let releases = || {
        let forky = forky.clone();
        [Release::Machine, Release::Forky { forky, part_bytes: 0 }]
    };
    let mut warm = None;
    for (round, by) in [("cold", 0), ("warm", 1)] {
        let of = |client: usize| (tags[(client + by) % tags.len()], &all[(client + by) % tags.len()]);
        let (tag, image) = of(0);
        assert_eq!(skopeo(round, tag, certs).await.unwrap(), contents(image));
        let (tag, image) = of(1);
        podman(round, tag, image).await;
        for (n, release) in releases().into_iter().enumerate() {
            let (tag, image) = of(2 + n);
            containerd(&format!("node{n}-{round}"), release, tag, image).await;
        }
        let (tag, image) = of(4);
        match with_client {
            // crane has no client certificates; skopeo stands in, so that the image is here.
            true => assert_eq!(
                skopeo(&format!("{round}-last"), tag, certs).await.unwrap(),
                contents(image)
            ),
            false => assert_eq!(crane(round, tag).await, contents(image)),
        }
        match &warm {
            None => warm = Some(upstream.traffic()),
            Some(warm) => assert_warm(&bench, &upstream, warm),
        }
    }
    // The certificates are what made it work.
    let nothing = bench.dir("certs/nothing");
    assert!(skopeo("stranger", tags[0], &nothing).await.is_err());
    if with_client {
        assert!(skopeo("nobody", tags[0], &certificates.ca_dir).await.is_err());
    }
}

#[test]
fn clients_pull_over_tls() {
    with_bench(|bench| pulls(bench, false));
}

#[test]
fn clients_pull_with_client_certificates() {
    with_bench(|bench| pulls(bench, true));
}
