//! What a conversion costs: ours, the floor under any (`gzip -dc | sha256sum`), and whatever other commands are named.
//!
//! In: layer blobs in files, and commands. Out: a [`Report`]: wall and CPU time, memory and what is on disk afterwards, of
//! each command in each round. Invariant: rounds are interleaved and their order rotates, every run begins with an empty
//! directory ($OUT), and the blobs are in the page cache; a ratio is taken within a round. Ours or the floor failing is an error; another
//! command that fails is left out, by name.
//! Not here: making images, and starting what a command needs beside itself (`scripts/bench-ingest.sh`), whose time is not
//! counted.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::playground::{PlaygroundError, Result, progress::Progress, report::median};

const FLOOR: &str = "gzip -dc | sha256sum";
/// Lines of a failed command's words that are shown.
const WORDS_MAX: usize = 400;

/// What is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestBenchConfig {
    /// headstart-server's binaries, as `PATH` or `LABEL=PATH`.
    pub headstart: Vec<String>,
    /// Layers in gzip, in files.
    pub layers: Vec<PathBuf>,
    /// Further commands for a shell, `NAME=COMMAND`; what they leave in $OUT counts as stored.
    pub peers: Vec<String>,
    pub rounds: usize,
    pub json: Option<PathBuf>,
}

impl Default for IngestBenchConfig {
    fn default() -> Self {
        Self {
            headstart: Vec::new(),
            layers: Vec::new(),
            peers: Vec::new(),
            rounds: 3,
            json: None,
        }
    }
}

/// One run of one command, its children included.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    pub wall_s: f64,
    pub cpu_s: f64,
    /// Of the largest process, and no less than this process had when it started it.
    pub peak_rss_bytes: u64,
    pub stored_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct Contender {
    pub name: String,
    /// One a round; none if it is left out.
    pub samples: Vec<Sample>,
    /// Why it is left out.
    pub left_out: Option<String>,
    #[serde(skip)]
    command: Vec<String>,
    /// Ours and the floor: without them there is nothing to compare.
    #[serde(skip)]
    is_needed: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub layers_count: usize,
    pub compressed_bytes: u64,
    /// The floor is the first.
    pub contenders: Vec<Contender>,
}

/// Measures all rounds. Blocks.
pub fn run(config: &IngestBenchConfig, progress: &Progress) -> Result<Report> {
    let mut compressed_bytes = 0;
    for layer in &config.layers {
        // Not into memory: what this process has when it starts a command counts as the command's.
        let copied = fs::File::open(layer).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
        compressed_bytes += copied.map_err(PlaygroundError::io(format!("read {}", layer.display())))?;
    }
    let mut contenders = contenders(config)?;
    for round in 0..config.rounds {
        for i in 0..contenders.len() {
            let count = contenders.len();
            let contender = &mut contenders[(i + round) % count];
            if contender.left_out.is_some() {
                continue;
            }
            progress.step(format!("round {}: {}", round + 1, contender.name));
            match measure(&contender.command)? {
                Ok(sample) => contender.samples.push(sample),
                Err(why) if contender.is_needed => {
                    return Err(PlaygroundError::unexpected("run", format!("{}: {why}", contender.name)));
                }
                Err(why) => {
                    contender.samples.clear();
                    contender.left_out = Some(why);
                }
            }
        }
    }
    Ok(Report {
        layers_count: config.layers.len(),
        compressed_bytes,
        contenders,
    })
}

fn contenders(config: &IngestBenchConfig) -> Result<Vec<Contender>> {
    let layers: Vec<String> = config.layers.iter().map(|l| l.display().to_string()).collect();
    let contender = |name: String, command: Vec<String>, is_needed| Contender {
        name,
        samples: Vec::new(),
        left_out: None,
        command,
        is_needed,
    };
    let shell = |script: &str| ["sh", "-ec", script, "sh"].map(str::to_owned).to_vec();
    // One after the other, as a runtime unpacks them. `set -e` does not see into a pipe: the digest of nothing is told.
    let floor = r#"for layer; do
        digest=$( { gzip -dc <"$layer" || echo failed >"$OUT/failed"; } | sha256sum ); [ -n "$digest" ] && [ ! -e "$OUT/failed" ]
    done"#;
    let mut all = vec![contender(
        FLOOR.to_owned(),
        [shell(floor), layers.clone()].concat(),
        true,
    )];
    for headstart in &config.headstart {
        let (label, path) = headstart.split_once('=').unwrap_or(("headstart", headstart));
        for (jobs, how) in [("1", "a layer at a time"), ("2", "two at a time")] {
            let script = r#"binary=$1 jobs=$2; shift 2; exec "$binary" convert --json --data-dir "$OUT/data" --jobs "$jobs" "$@" >/dev/null"#;
            let arguments = [path.to_owned(), jobs.to_owned()].to_vec();
            let command = [shell(script), arguments, layers.clone()].concat();
            all.push(contender(format!("{label}, {how}"), command, true));
        }
    }
    for peer in &config.peers {
        let (name, command) = peer
            .split_once('=')
            .ok_or_else(|| PlaygroundError::unexpected("read a peer", format!("{peer}: it is NAME=COMMAND")))?;
        all.push(contender(
            name.to_owned(),
            [shell(command), layers.clone()].concat(),
            false,
        ));
    }
    Ok(all)
}

/// `Ok(Err)`: the command's own failure.
fn measure(command: &[String]) -> Result<std::result::Result<Sample, String>> {
    let out = tempfile::tempdir().map_err(PlaygroundError::io("make a directory"))?;
    let words = out.path().with_extension("words");
    let file = fs::File::create(&words).map_err(PlaygroundError::io("make a file"))?;
    let (program, arguments) = command
        .split_first()
        .map_or(("true", &[][..]), |(p, a)| (p.as_str(), a));
    let started = Instant::now();
    let child = Command::new(program)
        .args(arguments)
        .env("OUT", out.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .map_err(PlaygroundError::io(format!("start {program}")))?;
    let (success, cpu, peak_rss_bytes) = wait(child.id()).map_err(PlaygroundError::io("wait for a command"))?;
    let wall = started.elapsed();
    let said = fs::read(&words).unwrap_or_default();
    let _ = fs::remove_file(&words);
    if !success {
        let said = String::from_utf8_lossy(&said);
        let start = said.char_indices().rev().take(WORDS_MAX).last().map_or(0, |(i, _)| i);
        return Ok(Err(format!("it failed: {}", said[start..].trim())));
    }
    Ok(Ok(Sample {
        wall_s: wall.as_secs_f64(),
        cpu_s: cpu.as_secs_f64(),
        peak_rss_bytes,
        stored_bytes: on_disk(out.path()),
    }))
}

/// Waits for a child and takes its account: whether it succeeded, CPU time with its children's, memory of the largest.
fn wait(pid: u32) -> io::Result<(bool, Duration, u64)> {
    let mut status = 0;
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for the call; the child is ours, and nobody else waits for it.
        let waited = unsafe { libc::wait4(pid as libc::pid_t, &mut status, 0, &mut usage) };
        if waited >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, (t.tv_usec as u32).saturating_mul(1000));
    let success = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    Ok((
        success,
        time(usage.ru_utime) + time(usage.ru_stime),
        (usage.ru_maxrss as u64) << 10,
    ))
}

/// Allocated, not apparent.
fn on_disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |path: PathBuf| match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => on_disk(&path),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(|entry| of(entry.path())).sum()
}

impl Report {
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["", "wall", "CPU", "peak RSS", "stored", "wall ratio", "CPU ratio"]);
        let Some(floor) = self.contenders.first() else {
            return String::new();
        };
        let mut notes = String::new();
        for contender in &self.contenders {
            if let Some(why) = &contender.left_out {
                notes += &format!("{} is left out: {why}\n", contender.name);
                continue;
            }
            let of = |field: fn(&Sample) -> f64| median(contender.samples.iter().map(field));
            let ratio = |field: fn(&Sample) -> f64| {
                let rounds = contender.samples.iter().zip(&floor.samples);
                median(rounds.map(|(mine, floors)| field(mine) / field(floors)))
            };
            let mib = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
            table.add_row([
                contender.name.clone(),
                format!("{:.2} s", of(|s| s.wall_s)),
                format!("{:.2} s", of(|s| s.cpu_s)),
                mib(of(|s| s.peak_rss_bytes as f64)),
                mib(of(|s| s.stored_bytes as f64)),
                format!("{:.2}", ratio(|s| s.wall_s)),
                format!("{:.2}", ratio(|s| s.cpu_s)),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let rounds = floor.samples.len();
        format!(
            "{} layers, {:.1} MiB compressed; medians of {rounds} rounds\n{table}\n{notes}",
            self.layers_count,
            self.compressed_bytes as f64 / f64::from(1 << 20),
        )
    }
}
