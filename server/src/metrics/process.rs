//! What the kernel says of this process.
//!
//! In: `/proc/self`. Out: numbers for the `process_*` metrics, read when they are asked for.
//! Invariant: what cannot be read is absent, never zero.
//! Not here: names ([`super::names`]).

use std::{fs, io::Read as _};

/// `/proc/self/stat` and `/proc/stat`'s lines that we read are far below this.
const PROC_SIZE_MAX: u64 = 64 << 10;

/// Memory in RAM.
pub fn resident_bytes() -> Option<f64> {
    let statm = read("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages as f64 * rustix::param::page_size() as f64)
}

pub fn open_files() -> Option<f64> {
    // One of them is the directory being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

pub fn threads() -> Option<f64> {
    stat_field(19)
}

pub fn cpu_seconds() -> Option<f64> {
    Some((stat_field(13)? + stat_field(14)?) / ticks_per_second())
}

/// Unix time of the start.
pub fn start_seconds() -> Option<f64> {
    let boot: f64 = read("/proc/stat")?
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(boot + stat_field(21)? / ticks_per_second())
}

/// A field of `/proc/self/stat`, counted from 0 as in proc(5) less one. The second one, the program's name, may hold
/// blanks and parentheses, so counting starts after its last parenthesis.
fn stat_field(index: usize) -> Option<f64> {
    let stat = read("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(index - 2)?.parse().ok()
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path)
        .ok()?
        .take(PROC_SIZE_MAX)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_plausible_numbers() {
        assert!(resident_bytes().unwrap() > 1e5);
        assert!(open_files().unwrap() >= 3.0);
        assert!(threads().unwrap() >= 1.0);
        assert!(cpu_seconds().unwrap() >= 0.0);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let age = now - start_seconds().unwrap();
        assert!((-5.0..86_400.0).contains(&age), "{age}");
    }
}
