//! Damage at rest, and nobody looked before the server started: what it serves is right all the same.
//!
//! In: a healthy directory, damaged in one way at a time. Out: an image that is served as ever, and a count of what was found.
//! Not here: the damages ([`super::damage`]), and looking for them ([`super::at_rest`]).

use std::time::Duration;

use headstart_loadtest::origin::Origin;

use crate::damage::{change, damages, original};
use crate::support::{REPOSITORY, Server, until};
use crate::{Patient, assert_served, config, image, template};

/// Damages that nobody meets who serves the image: the index has what they are of, and only a rebuild would read them.
const UNREAD: [&str; 2] = ["state flipped", "state erased"];

/// Damages found so far: bytes that were not right, and indexes that were made anew.
fn found(server: &Server) -> u64 {
    let metrics = server.app.metrics.render();
    let of = |name: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    (of("headstart_corruption_total") + of("headstart_index_rebuilds_total")) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_at_rest_is_served_right_and_counted() {
    let image = image(5);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    let patient = Patient::new();
    let mut wrong = Vec::new();
    for (name, what, damage) in damages(&image) {
        patient.heal(&healthy);
        damage(&patient.data);
        let server = Server::with(config(&origin, &patient.data)).await;
        assert_served(&server, &image).await;
        let count = found(&server);
        let is_met = !what.is_empty() && !UNREAD.contains(&name);
        if (count > 0) != is_met {
            wrong.push(format!("{name}: {count}"));
        }
        // Whatever was damaged is so no more.
        assert_served(&server, &image).await;
        server.stop().await;
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Also to those who ask for a part, or only how large it is; and a server that runs does not go on with a file that was cut.
#[tokio::test(flavor = "multi_thread")]
async fn parts_and_sizes_of_a_damaged_original_are_right() {
    let image = image(6);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    let patient = Patient::new();
    let layer = &image.layers[0];
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for truncated in [false, true] {
        patient.heal(&healthy);
        let damage = move |bytes: &mut Vec<u8>| match truncated {
            true => bytes.truncate(bytes.len() / 2),
            false => bytes[1000] ^= 1,
        };
        change(&original(&patient.data, &layer.digest), damage);
        let server = Server::with(config(&origin, &patient.data)).await;
        let url = server.blob_url(&layer.digest);
        let head = client.head(&url).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], layer.blob.len().to_string().as_str());
        let part = client.get(&url).header("range", "bytes=900-1099").send().await.unwrap();
        assert_eq!(part.status(), 206);
        assert!(part.bytes().await.unwrap() == layer.blob[900..1100]);
        let (status, whole) = server.fetch(&url).await;
        assert!(status == 200 && whole.unwrap() == layer.blob);
        // It is open, and at hand; of a fetch, once it has its name.
        let path = original(&patient.data, &layer.digest);
        while !path.exists() || server.fetch(&url).await.1.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        change(&path, |bytes| bytes.truncate(bytes.len() - 1));
        let (status, whole) = server.fetch(&url).await;
        let whole = whole.unwrap();
        assert_eq!((status, whole.len()), (200, layer.blob.len()));
        assert!(whole == layer.blob);
        server.stop().await;
    }
}

/// After a restart, a HEAD waited until the file was read. What a manifest says of a layer, and the file, are enough for its size;
/// the file is read all the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_an_original_is_told_before_it_is_compared() {
    let image = image(7);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let patient = Patient::new();
    patient.heal(&template(&origin, &image).await);
    let layer = &image.layers[0];
    let path = original(&patient.data, &layer.digest);
    change(&path, |bytes| bytes[1000] ^= 1);
    let server = Server::with(config(&origin, &patient.data)).await;
    let (status, _) = server.fetch(&server.manifest_url("v1")).await;
    assert_eq!(status, 200);
    let asked = || {
        origin
            .calls()
            .iter()
            .filter(|call| call.path.contains(&layer.digest.hex()))
            .count()
    };
    let before = asked();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = server.blob_url(&layer.digest);
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], layer.blob.len().to_string().as_str());
    // It is a miss, and was none when the answer was made: then the upstream would have been asked.
    assert_eq!(asked(), before);
    until("it is compared beside that", || !path.exists()).await;
    assert_eq!(found(&server), 1);
    let (status, whole) = server.fetch(&url).await;
    assert!(status == 200 && whole.unwrap() == layer.blob);
    server.stop().await;
}
