//! The comparison that the demo prints, and a crowd of simulated nodes: once each, on the demo image.

use headstart_loadtest::{
    coldstart::{
        self, Plan, Rig, Way,
        crowd::{self, Wanted},
        page, table, timeline,
    },
    playground::progress::Progress,
    relay::LinkShape,
};

use crate::support::with_lab;

#[test]
fn starts_are_compared_over_a_link_and_a_crowd_costs_the_upstream_one_pull() {
    with_lab(|turn| async move {
        let mut lab = turn.lab;
        lab.links.node = LinkShape::LAN;
        let compressed = lab.image.compressed_bytes();
        let rig = Rig::of_demo(lab);
        let plan = Plan {
            rounds: 1,
            ways: vec![Way::MirrorWarm, Way::Local, Way::LazySecond, Way::Nydus],
            full_read: false,
            timelines: true,
            peers: std::path::PathBuf::new(),
        };
        let report = coldstart::run(&rig, &plan, &Progress::silent()).await.unwrap();
        assert!(report.errors.is_empty(), "{:#?}", report.errors);
        // There is no second node without a first.
        let measured = [Way::MirrorWarm, Way::Local, Way::LazyFirst, Way::LazySecond];
        assert_eq!(report.ways(), measured);
        assert_eq!(report.absent.len(), 1, "{:?}", report.absent);

        let name = &report.images[0].name;
        let of = |way| report.of(name, way).next().unwrap();
        let (ordinary, local, lazy) = (of(Way::MirrorWarm), of(Way::Local), of(Way::LazySecond));
        assert!(
            ordinary.node_bytes >= compressed,
            "{} of {compressed}",
            ordinary.node_bytes
        );
        assert_eq!((local.node_bytes, local.pull_ms), (0, 0.0));
        assert_eq!(lazy.declined, 0);
        assert!(
            (1..ordinary.node_bytes).contains(&lazy.node_bytes),
            "{}",
            lazy.node_bytes
        );
        assert!(lazy.upstream_bytes < 10_000, "a question about the tag: {lazy:?}");
        assert!(lazy.second_ms.is_some_and(|ms| ms > 0.0));
        // What was read had come, and little that was not: what describes the layers, and the config, are this small.
        let read = lazy.read_bytes.unwrap();
        let moved_at_most = read + read * 3 / 10 + (512 << 10);
        assert!(
            read > 0 && (read..=moved_at_most).contains(&lazy.node_bytes),
            "{lazy:?}"
        );
        assert_eq!(ordinary.read_bytes, None);
        // By the shim's own count: most of it by the profile's stream, and no more than came over the link.
        let sources = lazy.sources.unwrap();
        let sent = sources.prefetched + sources.on_demand + sources.explored;
        assert!(
            sources.prefetched > 0 && (read..=lazy.node_bytes).contains(&sent),
            "{lazy:?}"
        );
        assert_eq!((sources.filled, sources.original), (0, 0), "{lazy:?}");
        let first = of(Way::LazyFirst).sources.unwrap();
        assert!(first.prefetched == 0 && first.on_demand > 0, "{first:?}");
        assert!(ordinary.sources.is_none() && local.sources.is_none());

        let seen = lazy.timeline.as_ref().unwrap();
        let moments: Vec<&str> = seen.moments.iter().map(|m| m.name).collect();
        for moment in ["pulled", "snapshot", "first read", "ready"] {
            assert!(moments.contains(&moment), "{moments:?}");
        }
        assert!(seen.moments.is_sorted_by(|a, b| a.ms <= b.ms), "{seen:?}");
        let chunks = seen.series.iter().find(|s| s.source == timeline::CHUNKS).unwrap();
        assert!(chunks.points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));

        let text = table::text(&report);
        assert!(text.contains("the second node took"), "{text}");
        assert!(page::html(&report).contains(timeline::CHUNKS));

        let wanted = Wanted::Share { fraction: 0.2, seed: 1 };
        let crowd = crowd::run(&rig, 6, &wanted, &Progress::silent()).await.unwrap();
        for phase in &crowd.phases {
            assert!(phase.p50_ms > 1.0 && phase.p50_ms <= phase.p99_ms, "{phase:?}");
            assert!(
                phase.bytes_each > 0 && phase.wire_bytes >= 6 * phase.bytes_each,
                "{crowd:#?}"
            );
        }
        let [cold, warm] = &crowd.phases[..] else {
            panic!("{crowd:#?}")
        };
        assert!(
            (compressed..compressed * 11 / 10).contains(&cold.upstream_bytes),
            "{cold:?}"
        );
        assert!(warm.upstream_bytes < compressed / 100, "{warm:?}");
    });
}

#[test]
fn a_crowd_gets_what_one_start_needed_and_the_upstream_pays_for_one_pull_in_all() {
    with_lab(|turn| async move {
        const NODES: usize = 6;
        let rig = Rig::of_demo(turn.lab);
        let compressed = rig.lab.image.compressed_bytes();
        let upstream = || rig.lab.proxy_link.traffic().down_bytes;
        let before = upstream();
        // The proxy has nothing; a real node starts the image first. Every node's bytes are compared by it.
        let crowd = crowd::run(&rig, NODES, &Wanted::Profile, &Progress::silent())
            .await
            .unwrap();
        let [warm] = &crowd.phases[..] else {
            panic!("{crowd:#?}")
        };
        assert_eq!((crowd.nodes, warm.name), (NODES, "warm"));
        assert!(warm.chunks > 20, "{warm:?}");
        // What a start needs is a part of the image.
        assert!((1..compressed / 2).contains(&warm.bytes_each), "{warm:?}");
        assert!(warm.wire_bytes >= NODES as u64 * warm.bytes_each, "{warm:?}");
        assert!(warm.upstream_bytes < compressed / 100, "{warm:?}");
        let all = upstream() - before;
        assert!(
            (compressed..compressed * 11 / 10).contains(&all),
            "{all} of {compressed}"
        );
        assert!(crowd.table().contains("6 nodes start"), "{}", crowd.table());
    });
}
