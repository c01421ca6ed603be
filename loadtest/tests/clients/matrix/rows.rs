//! What upstreams do.
//!
//! In: nothing. Out: the rows of the matrix, each with what the clients may end with.
//! Invariant: every client ends with the right image in every row, at the latest when the same command is run again, but for
//! one row that may want it twice.
//! Not here: acting it out (the scripted origin does).

use std::time::Duration;

use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Fault, Origin, Target},
};

use super::{
    cell::Short::{self, BlobsElsewhere, NextHost, SecondTry, Through},
    columns::Column,
};

/// What is in the server's cache before the upstream misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warm {
    Cold,
    Manifest,
    Everything,
}

#[derive(Clone)]
pub struct Row {
    pub name: &'static str,
    pub warm: Warm,
    pub misbehave: fn(&Origin, &SyntheticImage),
    /// Signed URLs stop being good after the first was used.
    pub expires: bool,
    /// Nothing of a blob goes out before it is verified (`hold_until_verified`).
    pub held: bool,
    /// Of noise, in bytes: larger than a fetch unit, or smaller.
    pub layers: &'static [usize],
    containerd: &'static [Short],
    /// containerd that asks for a large layer in ranges, several at a time.
    containerd_parts: &'static [Short],
    podman: &'static [Short],
    /// podman, of an index: it has chosen its mirror before anybody knows which image it wants.
    podman_index: &'static [Short],
}

/// The blobs are one fetch unit each, at most.
const SMALL: &[usize] = &[300_000, 60_000];
const LARGE: &[usize] = &[2_500_000, 60_000];

impl Row {
    pub fn allowed(&self, column: Column) -> &'static [Short] {
        match column {
            Column::Podman => self.podman,
            Column::PodmanIndex => self.podman_index,
            Column::Containerd21Parts => self.containerd_parts,
            Column::Containerd16 | Column::Containerd21 => self.containerd,
        }
    }

    /// The upstream refuses everything: both go on at the manifest.
    const fn refuses(name: &'static str, misbehave: fn(&Origin, &SyntheticImage)) -> Row {
        Row {
            name,
            warm: Warm::Cold,
            misbehave,
            expires: false,
            held: false,
            layers: SMALL,
            containerd: &[NextHost],
            containerd_parts: &[NextHost],
            podman: &[NextHost],
            podman_index: &[NextHost],
        }
    }

    /// The server makes up for it.
    const fn mended(name: &'static str, misbehave: fn(&Origin, &SyntheticImage)) -> Row {
        Row {
            name,
            warm: Warm::Cold,
            misbehave,
            expires: false,
            held: false,
            layers: SMALL,
            containerd: &[Through],
            containerd_parts: &[Through],
            podman: &[Through],
            podman_index: &[Through],
        }
    }

    /// A blob of one unit is wrong: its image is refused. Of an index's image, only first bytes are asked for before
    /// the index is given.
    const fn is_wrong(name: &'static str, misbehave: fn(&Origin, &SyntheticImage)) -> Row {
        Row {
            podman_index: &[SecondTry],
            ..Row::refuses(name, misbehave)
        }
    }

    /// The manifest comes and a large blob does not: containerd changes hosts in the middle; podman cannot. But from
    /// then on the manifest is refused, so that its second pull succeeds.
    const fn lacks(name: &'static str, misbehave: fn(&Origin, &SyntheticImage)) -> Row {
        Row {
            name,
            warm: Warm::Cold,
            misbehave,
            expires: false,
            held: false,
            layers: LARGE,
            containerd: &[BlobsElsewhere],
            containerd_parts: &[BlobsElsewhere],
            podman: &[SecondTry],
            podman_index: &[SecondTry],
        }
    }
}

fn status(origin: &Origin, target: Target, code: u16) {
    let retry_after_secs = matches!(code, 429 | 503).then_some(1);
    origin.always(target, Fault::Status { code, retry_after_secs });
}

fn layer(image: &SyntheticImage) -> Target {
    Target::Digest(image.layers[0].digest)
}

fn config(image: &SyntheticImage) -> Target {
    Target::Digest(image.config_digest)
}

fn gets(of: Target) -> Target {
    Target::Gets(Box::new(of))
}

/// Takes the request, and never answers.
fn silent(origin: &Origin, target: Target) {
    origin.always(target, Fault::DelayHeaders(Duration::from_secs(60)));
}

pub fn all() -> Vec<Row> {
    vec![
        Row::refuses("401", |o, _| o.set_auth(Auth::basic("user", "secret"))),
        Row::refuses("403", |o, _| status(o, Target::Everything, 403)),
        Row::refuses("404", |o, _| status(o, Target::Everything, 404)),
        Row::refuses("429", |o, _| status(o, Target::Everything, 429)),
        Row::refuses("500", |o, _| status(o, Target::Everything, 500)),
        Row::refuses("503", |o, _| status(o, Target::Everything, 503)),
        Row::refuses("reset at open", |o, _| o.always(Target::Everything, Fault::ResetAtOnce)),
        Row::refuses("down, cold cache", |o, _| o.stop()),
        Row::refuses("no answer at all", |o, _| silent(o, Target::Everything)),
        Row::refuses("wrong digest header on manifests", |o, _| {
            o.always(Target::Manifests, Fault::WrongDigestHeader);
        }),
        Row::refuses("wrong bytes in the manifest", |o, _| {
            o.always(Target::Manifests, Fault::WrongByte { at: 40 })
        }),
        Row {
            warm: Warm::Everything,
            ..Row::mended("down, warm cache", |o, _| o.stop())
        },
        Row {
            warm: Warm::Manifest,
            ..Row::refuses("down, manifest cached, blobs not", |o, _| o.stop())
        },
        Row::mended("405 on HEAD", |o, _| status(o, Target::ManifestHeads, 405)),
        Row::mended("no digest, no length", |o, _| {
            o.always(Target::Everything, Fault::NoDigestHeader);
            o.always(Target::Everything, Fault::NoLength);
        }),
        Row::mended("blobs cut, every 100 kB", |o, _| {
            o.always(Target::Blobs, Fault::Truncate { after: 100_000 })
        }),
        Row::mended("blobs reset, every 100 kB", |o, _| {
            o.always(Target::Blobs, Fault::Reset { after: 100_000 })
        }),
        Row::mended("a layer cut once, Range ignored", |o, image| {
            o.once(layer(image), Fault::Truncate { after: 100_000 });
            o.always(layer(image), Fault::IgnoreRange);
        }),
        Row::mended("blobs stall, every 150 kB", |o, _| {
            let pause = Duration::from_secs(600);
            o.always(Target::Blobs, Fault::Stall { after: 150_000, pause });
        }),
        Row::mended("blobs at 200 kB/s", |o, _| {
            o.always(Target::Blobs, Fault::Throttle { bytes_per_sec: 200_000 })
        }),
        Row {
            expires: true,
            ..Row::mended("blobs at a CDN, cut, URLs expire", |o, _| {
                o.redirect_blobs(true);
                o.always(Target::Cdn, Fault::Truncate { after: 100_000 });
            })
        },
        // That no blob is to be had is found out before the manifest is served.
        Row::refuses("404 on blobs", |o, _| status(o, Target::Blobs, 404)),
        Row::refuses("416 on blobs", |o, _| status(o, Target::Blobs, 416)),
        Row::refuses("500 on blobs", |o, _| status(o, Target::Blobs, 500)),
        Row::refuses("blobs reset at open", |o, _| {
            o.always(Target::Blobs, Fault::ResetAtOnce)
        }),
        Row::refuses("401 on blobs", |o, _| status(o, Target::Blobs, 401)),
        Row::refuses("403 on blobs", |o, _| status(o, Target::Blobs, 403)),
        Row::refuses("429 on blobs", |o, _| status(o, Target::Blobs, 429)),
        Row::refuses("503 on blobs", |o, _| status(o, Target::Blobs, 503)),
        Row::refuses("no answer on blobs", |o, _| silent(o, Target::Blobs)),
        Row::refuses("401 on GET of blobs", |o, _| status(o, gets(Target::Blobs), 401)),
        Row::refuses("403 on GET of blobs", |o, _| status(o, gets(Target::Blobs), 403)),
        Row::refuses("429 on GET of blobs", |o, _| status(o, gets(Target::Blobs), 429)),
        Row::refuses("503 on GET of blobs", |o, _| status(o, gets(Target::Blobs), 503)),
        Row::refuses("no answer on GET of blobs", |o, _| silent(o, gets(Target::Blobs))),
        Row::refuses("401 on one layer", |o, i| status(o, layer(i), 401)),
        Row::refuses("403 on one layer", |o, i| status(o, layer(i), 403)),
        Row::refuses("404 on one layer", |o, i| status(o, layer(i), 404)),
        Row::refuses("429 on one layer", |o, i| status(o, layer(i), 429)),
        Row::refuses("503 on one layer", |o, i| status(o, layer(i), 503)),
        Row::refuses("no answer on one layer", |o, i| silent(o, layer(i))),
        Row::refuses("403 on GET of one layer", |o, i| status(o, gets(layer(i)), 403)),
        Row::refuses("no answer on GET of one layer", |o, i| silent(o, gets(layer(i)))),
        Row::refuses("403 on the config", |o, i| status(o, config(i), 403)),
        Row::refuses("503 on GET of the config", |o, i| status(o, gets(config(i)), 503)),
        Row::refuses("no answer on GET of the config", |o, i| silent(o, gets(config(i)))),
        Row::refuses("no byte on GET of blobs", |o, _| {
            o.always(gets(Target::Blobs), Fault::Reset { after: 0 })
        }),
        Row::refuses("no byte on GET of one layer", |o, i| {
            o.always(gets(layer(i)), Fault::Truncate { after: 0 })
        }),
        Row::is_wrong("wrong byte in the config", |o, i| {
            o.always(config(i), Fault::WrongByte { at: 10 })
        }),
        // containerd goes on with the next host's manifest, and asks here for the layer: nothing of it goes out again.
        Row::is_wrong("wrong byte in a small layer", |o, i| {
            o.always(layer(i), Fault::WrongByte { at: 1000 })
        }),
        Row {
            // With one part it gives up the others, and may take that for the end of the pull.
            containerd_parts: &[BlobsElsewhere, SecondTry],
            ..Row::lacks("a layer stops half-way for good", |o, image| {
                o.always(layer(image), Fault::Wall { at: 1_500_000 })
            })
        },
        Row {
            // What containerd was given is wrong, and only the whole tells: no mirror that streams can mend that. Where
            // the conversion's fetch, which runs meanwhile, has come to the end before containerd asks, nothing was
            // given.
            containerd: &[SecondTry, BlobsElsewhere],
            containerd_parts: &[SecondTry, BlobsElsewhere],
            ..Row::lacks("wrong byte early in a layer", |o, image| {
                o.always(layer(image), Fault::WrongByte { at: 1000 })
            })
        },
        Row {
            // The tail is withheld until the digest is right, so that what was given is right and the next host has the
            // rest. Of parts that are asked for at once, the last is withheld only if the others are under way by then:
            // containerd has all of a wrong layer, or goes on to the next host with the last.
            containerd_parts: &[BlobsElsewhere, SecondTry],
            ..Row::lacks("wrong byte late in a layer", |o, image| {
                let last = image.layers[0].blob.len() as u64 - 1;
                o.always(layer(image), Fault::WrongByte { at: last });
            })
        },
        Row {
            held: true,
            layers: LARGE,
            ..Row::mended("nothing wrong, held until verified", |_, _| {})
        },
        // Where the upstream is not believed, nothing wrong is ever given: a status leads containerd to its next host. podman
        // has chosen before.
        Row {
            held: true,
            ..Row::lacks("wrong byte early in a layer, held until verified", |o, image| {
                o.always(layer(image), Fault::WrongByte { at: 1000 })
            })
        },
        Row {
            held: true,
            ..Row::lacks("wrong byte late in a layer, held until verified", |o, image| {
                let last = image.layers[0].blob.len() as u64 - 1;
                o.always(layer(image), Fault::WrongByte { at: last });
            })
        },
        Row {
            // Its head goes out before the verdict, and no byte: containerd asks again, and is told.
            held: true,
            ..Row::lacks(
                "wrong byte in a layer that takes longer than a head may wait, held until verified",
                |o, image| {
                    o.always(layer(image), Fault::WrongByte { at: 1000 });
                    o.always(layer(image), Fault::Throttle { bytes_per_sec: 50_000 });
                },
            )
        },
    ]
}
