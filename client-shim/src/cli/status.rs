//! `headstart-shim status`: the running shim, for people.
//!
//! In: its [`Status`]. Out: text. Invariant: an answer of a newer shim with more fields is shown as far as it is known.
//! Not here: asking ([`super::ask`]).

use std::fmt::Write as _;
use std::process::ExitCode;

use super::{AskError, ask};
use crate::config::Config;
use crate::observe::pulls::Pull;
use crate::observe::status::{Image, Status};
use crate::profile::ImagePrefetch;
use crate::profile::state::{Progress, Telling};
use crate::snapshotter::waits::Waiting;

/// Pulls shown; all are in the JSON.
const PULLS_SHOWN: usize = 12;

pub fn run(config: &Config, json: bool) -> Result<ExitCode, AskError> {
    let body = ask(&config.admin_socket(), "/status")?;
    let status: Status = serde_json::from_slice(&body).map_err(|e| AskError::Answer(e.to_string()))?;
    if json {
        println!("{}", String::from_utf8_lossy(&body));
    } else {
        print!("{}", text(&status));
    }
    Ok(ExitCode::SUCCESS)
}

/// As printed.
pub fn text(s: &Status) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "headstart-shim {}, process {}, up {}",
        s.version,
        s.pid,
        duration(s.up_secs)
    );
    if let Some(why) = &s.config_refused {
        let _ = writeln!(
            out,
            "the configuration file is NOT USED, but the last one that was good: failed to {}",
            why.trim_end()
        );
    }
    let shown = match (&s.obstacle, &s.presentation) {
        (Some(why), _) => format!("nothing can be lazy now ({why})"),
        (None, Some(how)) => format!("layers are shown by {how}"),
        (None, None) => "no layers are shown".into(),
    };
    let _ = writeln!(out, "{shown}; servers {}", s.servers.join(", "));
    if s.calls == 0 {
        let _ = writeln!(
            out,
            "containerd has not asked anything since it started; see headstart-shim doctor"
        );
    }
    let n = &s.snapshots;
    let _ = writeln!(
        out,
        "{} lazy and {} unpacked layers, {} containers, {} views",
        n.lazy, n.unpacked, n.active, n.views
    );
    if !s.images.is_empty() {
        let _ = writeln!(out, "\nimages");
    }
    for image in &s.images {
        let _ = writeln!(out, "  {}", image_line(image));
    }
    if !s.waiting.is_empty() {
        let _ = writeln!(out, "\nwaiting for a server to convert");
    }
    for waiting in &s.waiting {
        let _ = writeln!(out, "  {}", waiting_line(waiting));
    }
    if !s.pulls.is_empty() {
        let _ = writeln!(out, "\nlatest pulls");
    }
    for pull in s.pulls.iter().take(PULLS_SHOWN) {
        let _ = writeln!(out, "  {}", pull_line(pull));
    }
    if !s.prefetches.is_empty() {
        let _ = writeln!(out, "\nfetched ahead");
    }
    for prefetch in s.prefetches.iter().take(PULLS_SHOWN) {
        let _ = writeln!(out, "  {}", prefetch_line(prefetch));
    }
    out
}

fn waiting_line(w: &Waiting) -> String {
    format!(
        "{}: {} of {} layers ready, {} of {} converted, for {} so far",
        w.manifest,
        w.layers_ready,
        w.layers,
        size(w.bytes_converted),
        size(w.bytes),
        duration(w.waited_secs)
    )
}

fn prefetch_line(p: &ImagePrefetch) -> String {
    let starts = format!("a profile of {} starts", p.starts);
    let amount = format!("{} of {} asked for", size(p.received_bytes), size(p.asked_bytes));
    let what = match p.progress {
        Progress::Waiting => "waits".into(),
        Progress::Streaming => format!("coming, {amount}, by {starts}"),
        Progress::Done => format!("done, {amount}, {} chunks copied, by {starts}", p.near_chunks),
        Progress::Stopped => format!("stopped, {amount}"),
        Progress::NoRoom => format!("stopped for want of disk, {amount}"),
        Progress::Failed => format!("failed, {amount}"),
        Progress::NoProfile => "nothing is known of its starts".into(),
        Progress::OtherTocs => "its profile counts in other TOCs than this node has".into(),
        Progress::Disabled => "switched off".into(),
    };
    let told = match p.trace {
        Telling::None => "",
        Telling::Recording => "; its start is being recorded",
        Telling::Posted => "; its start was told",
        Telling::NothingToTell => "; of its start there was nothing sure to tell",
        Telling::Failed => "; its start could not be told",
    };
    format!("{}: {what}{told}", p.manifest)
}

fn image_line(i: &Image) -> String {
    let mut parts = Vec::new();
    if i.layers_lazy > 0 {
        let share = if i.chunks == 0 {
            100.0
        } else {
            i.chunks_present as f64 * 100.0 / i.chunks as f64
        };
        parts.push(format!("{} lazy layers, {share:.0}% fetched", i.layers_lazy));
    }
    if i.layers_unavailable > 0 {
        parts.push(format!("{} of them NOT AVAILABLE", i.layers_unavailable));
    }
    let otherwise = i.layers.iter().filter(|layer| layer.why.is_some()).count();
    if otherwise > 0 {
        parts.push(format!("{otherwise} of them shown by fuse"));
    }
    if i.layers_unpacked > 0 {
        parts.push(format!("{} unpacked layers", i.layers_unpacked));
    }
    parts.push(format!("{} on disk", size(i.disk_bytes)));
    if i.containers > 0 {
        parts.push(format!("{} containers", i.containers));
    }
    format!("{}: {}", i.image, parts.join(", "))
}

fn pull_line(p: &Pull) -> String {
    let ago = duration(p.at.age_secs());
    match &p.reason {
        None => format!("{}: lazy, {} layers, {ago} ago", p.image, p.layers_lazy),
        Some(reason) => format!(
            "{}: not lazy ({reason}): {}; {} of {} layers ordinary, {ago} ago",
            p.image,
            p.detail.as_deref().unwrap_or_default(),
            p.layers_ordinary,
            p.layers_ordinary + p.layers_lazy
        ),
    }
}

fn duration(secs: u64) -> String {
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    }
}

/// In units of 1024.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{Layer, Moment, Snapshots};

    #[test]
    fn a_person_reads_what_is_here_and_why_a_pull_was_not_lazy() {
        let image = Image {
            image: "docker.io/library/python:3.12".into(),
            chain_id: None,
            layers_lazy: 5,
            layers_unpacked: 0,
            layers_unavailable: 1,
            chunks: 200,
            chunks_present: 24,
            disk_bytes: 3 << 20,
            containers: 2,
            layers: vec![Layer {
                digest: headstart_layer_format::BlobDigest::of(b"l"),
                shown_by: Some("fuse".into()),
                why: Some("write it: no room".into()),
                chunks: 1,
                chunks_present: 1,
                disk_bytes: 1,
                read_bytes: 0,
            }],
        };
        let pull = Pull {
            at: Moment(0),
            image: "docker.io/library/python:3.12".into(),
            layers_lazy: 0,
            layers_ordinary: 5,
            reason: Some("no_server".into()),
            detail: Some("reach any server".into()),
        };
        let waiting = Waiting {
            manifest: headstart_layer_format::BlobDigest::of(b"w"),
            waited_secs: 4,
            layers: 5,
            layers_ready: 2,
            bytes: 60 << 20,
            bytes_converted: 30 << 20,
        };
        let prefetch = ImagePrefetch {
            manifest: headstart_layer_format::BlobDigest::of(b"m"),
            progress: Progress::Streaming,
            origin: None,
            starts: 3,
            chunks: 9,
            asked_chunks: 8,
            asked_bytes: 2 << 20,
            received_chunks: 4,
            received_bytes: 1 << 20,
            late_bytes: 0,
            near_chunks: 0,
            trace: Telling::Recording,
            first_read_unix_ms: None,
        };
        let status = Status {
            version: "1".into(),
            pid: 7,
            started_at: Moment(0),
            up_secs: 7300,
            starts: 1,
            root_dir: "/r".into(),
            socket: "/s".into(),
            servers: vec!["http://a".into()],
            config_refused: Some("parse configuration: no".into()),
            obstacle: None,
            presentation: Some("erofs".into()),
            calls: 1,
            resident_bytes: 0,
            snapshots: Snapshots::default(),
            images: vec![image],
            waiting: vec![waiting],
            pulls: vec![pull],
            prefetches: vec![prefetch],
        };
        let text = text(&status);
        for wanted in [
            "headstart-shim 1, process 7, up 2 h",
            "NOT USED, but the last one that was good: failed to parse configuration: no",
            "shown by erofs; servers http://a",
            "python:3.12: 5 lazy layers, 12% fetched, 1 of them NOT AVAILABLE, 1 of them shown by fuse, 3.0 MiB on disk, 2 containers",
            "2 of 5 layers ready, 30.0 MiB of 60.0 MiB converted, for 4 s so far",
            "python:3.12: not lazy (no_server): reach any server; 5 of 5 layers ordinary",
            "coming, 1.0 MiB of 2.0 MiB asked for, by a profile of 3 starts; its start is being recorded",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in {text}");
        }
        let json = serde_json::to_string(&status).unwrap();
        let newer = json.replacen('{', "{\"surprise\":1,", 1);
        assert!(serde_json::from_str::<Status>(&newer).is_ok());
    }
}
