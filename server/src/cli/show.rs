//! Tables and sums on standard output.
//!
//! In: answers of the server. Out: text for people, or JSON.
//! Invariant: a closed pipe is an error and not a panic.
//! Not here: questions.

use std::io::Write as _;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::CliError;
use crate::{
    admin::api::{Image, List, Object, Pin},
    reclaim::Report,
    scrub,
    store::usage::now_ms,
};

pub fn line(text: &str) -> Result<(), CliError> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

pub fn json(what: &impl Serialize) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(what)?)
}

pub fn images(list: List<Image>, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return json(&list);
    }
    let mut table = table(&["IMAGE", "DIGEST", "SIZE", "USED", "PINNED", "LAYERS READY"]);
    for image in &list.items {
        table.add_row([
            image.name.clone(),
            short(&image.digest.to_string()),
            size(image.bytes),
            ago(image.used_unix_ms),
            yes(image.pinned),
            format!("{}/{}", image.layers_ready, image.layers_count),
        ]);
    }
    end(&table, list.items.len(), list.count, list.bytes)
}

pub fn objects(list: List<Object>, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return json(&list);
    }
    let mut table = table(&["DIGEST", "SIZE", "USED", "PINNED", "STATE"]);
    for object in &list.items {
        table.add_row([
            object.digest.to_string(),
            size(object.bytes),
            ago(object.used_unix_ms),
            yes(object.pinned),
            object.state.clone(),
        ]);
    }
    end(&table, list.items.len(), list.count, list.bytes)
}

pub fn pins(list: List<Pin>, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return json(&list);
    }
    let mut table = table(&["PIN", "DIGEST", "SIZE"]);
    for pin in &list.items {
        let digest = pin.digest.map_or("unknown".into(), |digest| short(&digest.to_string()));
        table.add_row([pin.target.clone(), digest, size(pin.bytes)]);
    }
    end(&table, list.items.len(), list.count, list.bytes)
}

pub fn report(report: &Report, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return json(report);
    }
    let mut table = table(&["WHAT", "DIGEST", "SIZE", "REASON"]);
    for (what, list) in [("original", &report.originals), ("layer", &report.layers)] {
        for gone in list {
            table.add_row([
                what.into(),
                gone.digest.to_string(),
                size(gone.bytes),
                gone.reason.clone(),
            ]);
        }
    }
    if table.row_iter().next().is_some() {
        line(&table.to_string())?;
    }
    let verb = if report.dry_run { "would go" } else { "went" };
    line(&format!(
        "{} originals ({}) and {} converted layers {verb}; {} packs free {}",
        report.originals_count,
        size(report.originals_bytes),
        report.layers_count,
        report.packs_count,
        size(report.packs_bytes),
    ))?;
    line(&format!(
        "held: originals {}, packs {}",
        size(report.originals_held_bytes),
        size(report.packs_held_bytes)
    ))
}

pub fn scrubbed(report: &scrub::Report, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return json(report);
    }
    let mut table = table(&["DAMAGED", "WHICH", "WHY", "REPAIRED"]);
    for damage in &report.damages {
        table.add_row([
            damage.what.clone(),
            damage.name.clone(),
            damage.why.clone(),
            yes(damage.repaired),
        ]);
    }
    if table.row_iter().next().is_some() {
        line(&table.to_string())?;
    }
    line(&format!(
        "read {} originals ({}), {} packs ({}, {} records) and {} rows: {} damaged, {} repaired",
        report.originals_count,
        size(report.originals_bytes),
        report.packs_count,
        size(report.packs_bytes),
        report.records_count,
        report.rows_count,
        report.damaged_count,
        report.repaired_count,
    ))
}

pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table
}

fn end(table: &Table, listed: usize, count: usize, bytes: u64) -> Result<(), CliError> {
    line(&table.to_string())?;
    line(&format!("{listed} of {count}, {} in all", size(bytes)))
}

pub fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "" }.into()
}

/// 1.5 GiB.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

pub fn ago(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "never".into();
    }
    let secs = now_ms().saturating_sub(unix_ms) / 1000;
    match secs {
        0..=119 => format!("{secs} s ago"),
        120..=7_199 => format!("{} min ago", secs / 60),
        7_200..=172_799 => format!("{} h ago", secs / 3600),
        _ => format!("{} d ago", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_short() {
        let sizes = [0, 1023, 1536, 5 << 30, 3 << 40].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.5 KiB", "5.0 GiB", "3.0 TiB"]);
        assert_eq!(ago(0), "never");
        assert_eq!(ago(now_ms() - 3 * 3_600_000), "3 h ago");
    }
}
