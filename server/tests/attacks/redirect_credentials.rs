//! A redirect that takes the credentials along (CVE-2020-15157 for containerd, CVE-2018-1000007 for curl: `Authorization`
//! sent on to wherever the answer pointed).
//!
//! In: redirects to another port, another host, back again, and from https down. Out: what the target was shown.
//! Invariant: `Authorization` goes to the upstream's own scheme, host and port, by whichever way it is reached.
//! Not here: token realms (`bearer_realm`), URLs in manifests (`foreign_layers`).

use headstart_loadtest::origin::{Auth, Fault, Origin, Target, basic_header};
use headstart_server::{
    config::AuthConfig,
    upstream::{Caller, ClientCredentials},
};

use crate::support::{REPOSITORY, Server, UPSTREAM, config, noise};

#[tokio::test(flavor = "multi_thread")]
async fn no_target_of_a_redirect_sees_credentials() {
    for auth in [Auth::basic("mirror", "s3cret"), Auth::bearer_for("mirror", "s3cret")] {
        let (origin, thief) = (Origin::start(auth), Origin::start(Auth::Anonymous));
        let content = noise(1000, 2);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        thief.add_blob(REPOSITORY, content.clone());
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&origin, dir.path());
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "s3cret\n").unwrap();
        config.upstreams[0].auth = Some(AuthConfig {
            username: "mirror".into(),
            password_file: Some(password_file),
            ..AuthConfig::default()
        });
        let server = Server::with(config).await;
        let path = format!("v2/{REPOSITORY}/blobs/{digest}");
        let upstream = server.app.upstreams.get(UPSTREAM).unwrap();
        let own = ClientCredentials::new(basic_header("mirror", "s3cret").parse().unwrap());
        for host in [
            thief.address().to_string(),
            // Credentials in the address are not taken for ours either.
            format!("mirror:s3cret@{}", thief.address()),
            format!("localhost:{}", thief.address().port()),
        ] {
            origin.clear_faults();
            let location = format!("http://{host}/{path}");
            origin.always(Target::Blobs, Fault::Redirect { location });
            for caller in [Caller::Server, Caller::Client(own.clone())] {
                let head = upstream.blob_head(REPOSITORY, &caller, &digest).await;
                assert_eq!(head, Ok(Some(1000)), "{host}");
            }
        }
        let calls = thief.calls();
        assert_eq!(calls.len(), 6);
        assert!(calls.iter().all(|c| c.authorization.is_none()), "{calls:#?}");
        // To the thief and back: the registry gets its own, the thief still nothing.
        origin.clear_faults();
        origin.once(
            Target::Blobs,
            Fault::Redirect {
                location: format!("{}/{path}", thief.url()),
            },
        );
        thief.once(
            Target::Blobs,
            Fault::Redirect {
                location: format!("{}/{path}", origin.url()),
            },
        );
        assert_eq!(server.fetch(&server.blob_url(&digest)).await.1.unwrap(), content);
        assert!(origin.calls().last().unwrap().authorization.is_some());
        assert!(thief.calls().iter().all(|c| c.authorization.is_none()));
        server.stop().await;
    }
}
