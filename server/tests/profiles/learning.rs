//! What starts teach, and what the next build of the image profits from it.

use headstart_layer_format::profile::{Origin as From, Trace, TraceRead};

use crate::fleet::{File, Fleet, chunks_of, files, image_of, indices_of, named, origin_of, start_id, trace_of};

#[tokio::test(flavor = "multi_thread")]
async fn the_second_node_is_told_what_the_first_needed() {
    let files = files(8);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    assert_eq!(fleet.status(&image, "").await.profile, None);

    let needed = chunks_of(&tocs, &[&files[9], &files[17], &files[2], &files[10]]);
    let trace = trace_of(1, &needed);
    assert_eq!(fleet.teach(1, &image, &trace).await, 204);
    // The same start again, as after a lost answer.
    assert_eq!(fleet.teach(1, &image, &trace).await, 204);
    let status = fleet.status(&image, "").await;
    assert_eq!(named(&status, &tocs), needed);
    let profile = status.profile.clone().unwrap();
    assert_eq!((profile.origin, profile.starts), (From::Learned, 1));
    assert_eq!(profile.chunk_count as usize, needed.len());
    let frames: u64 = profile.runs.iter().map(|run| run.bytes).sum();
    assert_eq!(frames, profile.bytes);

    // A node that has it is not sent it again.
    let again = fleet
        .status(&image, &format!("?profile={}", profile.digest))
        .await
        .profile
        .unwrap();
    assert!(again.runs.is_empty());
    assert_eq!((again.digest, again.chunk_count), (profile.digest, profile.chunk_count));
    let other = fleet
        .status(&image, &format!("?profile=sha256:{}", "0".repeat(64)))
        .await;
    assert_eq!(other.profile.unwrap().runs, profile.runs);

    // The fleet's order is the middle of all.
    let slow = chunks_of(&tocs, &[&files[9], &files[2], &files[17], &files[10]]);
    for node in 2..5 {
        assert_eq!(fleet.teach(node, &image, &trace_of(u64::from(node), &slow)).await, 204);
    }
    let status = fleet.status(&image, "").await;
    assert_eq!(named(&status, &tocs), slow);
    assert_ne!(status.profile.unwrap().digest, profile.digest);
    fleet.server.stop().await;
}

/// As of a program that is there under two names, each with its own bytes.
#[tokio::test(flavor = "multi_thread")]
async fn of_files_that_are_the_same_the_one_that_was_read_is_meant() {
    let mut all = files(4);
    all[3].2 = all[1].2;
    let image = image_of(&all);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    let trace = |file: &File| {
        let mut trace = trace_of(1, &chunks_of(&tocs, &[&all[3]]));
        trace.reads.iter_mut().for_each(|read| read.file = Some(file.1.clone()));
        trace
    };
    assert_eq!(
        fleet.teach(1, &image, &trace(&all[0])).await,
        422,
        "it has none of these"
    );
    assert_eq!(fleet.teach(1, &image, &trace(&all[3])).await, 204);
    let profile = fleet.status(&image, "").await.profile.unwrap();
    let (first, second) = (indices_of(&tocs, &all[1]), indices_of(&tocs, &all[3]));
    assert_ne!(first, second);
    assert_eq!(profile.positions().collect::<Vec<_>>(), second);
    fleet.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_starts_are_kept_apart() {
    let files = files(6);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    let serve = chunks_of(&tocs, &[&files[1], &files[7]]);
    let migrate = chunks_of(&tocs, &[&files[12], &files[1]]);
    for node in 1..4 {
        let trace = Trace {
            class: "5e".parse().unwrap(),
            ..trace_of(u64::from(node), &serve)
        };
        assert_eq!(fleet.teach(node, &image, &trace).await, 204);
    }
    let trace = Trace {
        class: "31".parse().unwrap(),
        ..trace_of(9, &migrate)
    };
    assert_eq!(fleet.teach(1, &image, &trace).await, 204);
    let of = |query: &'static str| {
        let (fleet, image, tocs) = (&fleet, &image, &tocs);
        async move { named(&fleet.status(image, query).await, tocs) }
    };
    assert_eq!(of("?class=31").await, migrate);
    assert_eq!(of("?class=5e").await, serve);
    // Of none, or one that nobody knows: what most nodes start.
    assert_eq!(of("").await, serve);
    assert_eq!(of("?class=ffff").await, serve);
    assert_eq!(fleet.status(&image, "").await.profile.unwrap().class.as_str(), "5e");
    fleet.server.stop().await;
}

/// A library is changed, and a file comes in before it; another layer is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_build_profits_from_the_one_before() {
    let before = files(8);
    let mut after = before.clone();
    after[9].2 = 77_001;
    after[17].2 = 77_002;
    after.insert(8, File(1, "usr/lib1/a-new-one".into(), 77_003));
    let (v1, v2) = (image_of(&before), image_of(&after));
    assert_eq!(v1.layers[0].digest, v2.layers[0].digest);
    let origin = origin_of(&[&v1, &v2]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let old = fleet.pull(&v1).await;
    let wanted = [9, 2, 17, 20];
    let needed = wanted.map(|n| &before[n]);
    // Of a chunk alone, and of a file's sake, and of a file without a chunk.
    let chunks = chunks_of(&old, &needed);
    let mut trace = trace_of(1, &chunks);
    for read in trace.reads.iter_mut().filter(|read| read.layer == 1) {
        read.file = Some(before[9].1.clone());
    }
    trace.reads.push(TraceRead {
        layer: 0,
        chunk: None,
        file: Some(before[5].1.clone()),
        ms: 1000,
    });
    assert_eq!(fleet.teach(1, &v1, &trace).await, 204);
    let tocs = fleet.pull(&v2).await;
    let status = fleet.status(&v2, "").await;
    assert_eq!(status.profile.as_ref().unwrap().origin, From::Derived);
    let path = |number: usize| after.iter().find(|file| file.1 == before[number].1).unwrap();
    let expected = chunks_of(&tocs, &[path(9), path(2), path(17), path(20), path(5)]);
    let found = named(&status, &tocs);
    for chunk in &expected {
        assert!(found.contains(chunk), "{chunk:?} is not in {found:?}");
    }
    let new_only = chunks_of(&tocs, &[&after[8]]);
    assert!(
        found
            .iter()
            .all(|chunk| expected.contains(chunk) || new_only.contains(chunk)),
        "{found:?}"
    );
    let first = chunks_of(&tocs, &[path(9)]);
    assert!(first.contains(&found[0]), "the order stays");

    // Its own starts count for more.
    let own = chunks_of(&tocs, &[&after[8]]);
    assert_eq!(fleet.teach(1, &v2, &trace_of(2, &own)).await, 204);
    let status = fleet.status(&v2, "").await;
    assert_eq!(named(&status, &tocs), own);
    assert_eq!(status.profile.unwrap().origin, From::Learned);
    // And those of the one before are as they were.
    assert_eq!(fleet.status(&v1, "").await.profile.unwrap().origin, From::Learned);
    fleet.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_files_come_first_and_stand_for_every_build() {
    let all = files(6);
    let image = image_of(&all);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    let source = headstart_server::store::facts::Source {
        upstream: crate::support::UPSTREAM.into(),
        repository: crate::support::REPOSITORY.into(),
    };
    let profiles = fleet.server.app.profiles.clone();
    let paths = [format!("/{}", all[14].1), "no/such/file".into(), all[3].1.clone()];
    assert_eq!(profiles.pin(&source, &paths, true).unwrap(), 3);
    let status = fleet.status(&image, "").await;
    let pinned = chunks_of(&tocs, &[&all[14], &all[3]]);
    assert_eq!(named(&status, &tocs), pinned);
    assert_eq!(status.profile.unwrap().origin, From::Pinned);
    let needed = chunks_of(&tocs, &[&all[8], &all[3]]);
    let trace = Trace {
        start: start_id(1),
        ..trace_of(1, &needed)
    };
    assert_eq!(fleet.teach(1, &image, &trace).await, 204);
    let found = named(&fleet.status(&image, "").await, &tocs);
    assert_eq!(found, chunks_of(&tocs, &[&all[14], &all[3], &all[8]]));
    assert_eq!(profiles.pin(&source, &profiles.pinned(&source), false).unwrap(), 3);
    assert_eq!(named(&fleet.status(&image, "").await, &tocs), needed);
    fleet.server.stop().await;
}
