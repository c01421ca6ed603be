//! `headstart-server profile`, against the real binary.

use std::fs;

use headstart_layer_format::routes;

use crate::{
    fleet::{Fleet, chunks_of, files, image_of, origin_of, trace_of},
    support::{REPOSITORY, UPSTREAM, binary::Binary},
};

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_shown_taken_elsewhere_pinned_and_forgotten() {
    let all = files(5);
    let image = image_of(&all);
    let origin = origin_of(&[&image]);
    let elsewhere = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, elsewhere.path()).await;
    let tocs = fleet.pull(&image).await;
    let config = format!("[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n", origin.url());
    let (taught, other) = (Binary::start(&config, "", &[]), Binary::start(&config, "", &[]));
    let name = format!("{UPSTREAM}/{REPOSITORY}:v0");
    for server in [&taught, &other] {
        assert!(server.ask(&["warm", &name]).contains("done"));
        assert!(
            server
                .ask_in_vain(&["profile", "show", &name])
                .contains("find a profile")
        );
    }
    let needed = chunks_of(&tocs, &[&all[7], &all[2], &all[11]]);
    let url = taught.url(&routes::trace(&image.manifest_digest));
    let answer = fleet
        .server
        .http
        .post(url)
        .json(&trace_of(1, &needed))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 204);

    let rows: serde_json::Value = serde_json::from_str(&taught.ask(&["profile", "show", "--json"])).unwrap();
    assert_eq!((&rows["count"], &rows["items"][0]["starts"]), (&1.into(), &1.into()));
    assert_eq!(rows["items"][0]["config"], image.config_digest.to_string());
    assert!(
        taught
            .ask(&["profile", "show"])
            .contains(&format!("{UPSTREAM}/{REPOSITORY}"))
    );
    let shown = taught.ask(&["profile", "show", &name]);
    let lines: Vec<&str> = shown.lines().filter(|line| line.contains("usr/lib")).collect();
    assert!(
        lines[0].contains(&all[7].1) && lines.last().unwrap().contains(&all[11].1),
        "{shown}"
    );
    assert!(shown.contains("from 1 starts, learned"), "{shown}");

    // To another server, by file.
    let file = elsewhere.path().join("profile.json");
    let path = file.to_str().unwrap();
    taught.ask(&["profile", "export", &name, "--output", path]);
    let export: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(export["chunks"].as_array().unwrap().len(), needed.len());
    assert!(other.ask(&["profile", "import", &name, path]).contains("imported\n"));
    assert!(other.ask(&["profile", "import", &name, path]).contains("(already)"));
    let again: serde_json::Value = serde_json::from_str(&other.ask(&["profile", "export", &name])).unwrap();
    assert_eq!(again, export);
    fs::write(&file, "{\"version\":1,\"chunks\":[]}").unwrap();
    assert!(
        other
            .ask_in_vain(&["profile", "import", &name, path])
            .contains("nothing of it is in the image")
    );
    assert!(other.ask(&["profile", "forget", &name]).contains("1 kinds"));
    assert!(
        other
            .ask_in_vain(&["profile", "export", &name])
            .contains("find a profile")
    );

    // As ctr-remote records them.
    let record = format!(
        "{{\"path\":\"{}\",\"layerIndex\":2}}\n{{\"path\":\"/{}\"}}\n",
        all[12].1, all[1].1
    );
    fs::write(&file, record).unwrap();
    assert!(
        other
            .ask(&["profile", "pin", &name, "--record-in", path])
            .contains("2 files pinned, 2 in all")
    );
    assert!(
        other
            .ask(&["profile", "pin", &name, "usr/lib0/f003"])
            .contains("1 files pinned, 3 in all")
    );
    let listed = other.ask(&["profile", "pin", &name]);
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        [&all[12].1, &all[1].1, "usr/lib0/f003"]
    );
    let shown = other.ask(&["profile", "show", &name]);
    let first = shown.lines().find(|line| line.contains("usr/lib")).unwrap();
    assert!(first.contains(&all[12].1) && shown.contains("pinned"), "{shown}");
    assert!(
        other
            .ask_in_vain(&["profile", "pin", &name, "../x"])
            .contains("is no path")
    );
    fs::write(&file, "usr/bin/x\n").unwrap();
    assert!(
        other
            .ask_in_vain(&["profile", "pin", &name, "--record-in", path])
            .contains("line 1")
    );
    assert!(
        other
            .ask(&["profile", "unpin", &name, "usr/lib0/f003"])
            .contains("2 are left")
    );
    fleet.server.stop().await;
}
