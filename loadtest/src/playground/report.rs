//! The comparison as a table for people and as JSON for programs.
//!
//! In: a [`Comparison`]. Out: text.
//! Invariant: the numbers in the table are medians; the JSON has every start.
//! Not here: measuring.

use comfy_table::{CellAlignment, Table};

use super::{
    compare::{Comparison, Way},
    measure::Start,
};

/// The middle value; of an even number, the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn seconds(ms: f64) -> String {
    format!("{:.2} s", ms / 1000.0)
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

fn percent(part: f64, whole: u64) -> String {
    if whole == 0 {
        "-".to_owned()
    } else {
        format!("{:.1}%", 100.0 * part / whole as f64)
    }
}

pub fn json(comparison: &Comparison) -> String {
    serde_json::to_string_pretty(comparison).unwrap_or_else(|e| format!("{{\"error\": \"{e}\"}}"))
}

pub fn table(comparison: &Comparison) -> String {
    let rounds = comparison.starts.first().map_or(0, |(_, s)| s.len());
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "start",
        "pull",
        "create to ready",
        "total",
        "from the proxy",
        "from the upstream",
        "layer bytes read",
        "of the compressed image",
        "of its files",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (way, starts) in &comparison.starts {
        let m = |f: fn(&Start) -> f64| median(starts.iter().map(f));
        let layer_bytes = m(|s| s.layer_bytes as f64);
        let unpacked = match way {
            Way::OrdinaryDirect | Way::OrdinaryColdProxy => "100%".to_owned(),
            _ => percent(
                m(|s| s.unpacked_bytes.unwrap_or(0) as f64),
                comparison.uncompressed_bytes,
            ),
        };
        table.add_row([
            way.title().to_owned(),
            seconds(m(|s| s.pull_ms)),
            seconds(m(|s| s.ready_ms)),
            seconds(m(|s| s.total_ms)),
            megabytes(m(|s| s.proxy_bytes as f64)),
            megabytes(m(|s| s.upstream_bytes as f64)),
            megabytes(layer_bytes),
            percent(layer_bytes, comparison.compressed_bytes),
            unpacked,
        ]);
    }
    let ingest = |f: fn(&super::compare::Ingest) -> f64| median(comparison.ingests.iter().map(f));
    format!(
        "{table}\n\n{image}: {layers} layers, {compressed} compressed, {unpacked} of file contents. Medians of {rounds} \
         round(s), every node on empty state{cache}.\nIngest of the whole image: {seconds:.2} s summed over layers, \
         {cpu:.2} s of CPU; the server used {server:.2} s of CPU in all.\n",
        image = comparison.image,
        layers = comparison.layers,
        compressed = megabytes(comparison.compressed_bytes as f64),
        unpacked = megabytes(comparison.uncompressed_bytes as f64),
        cache = if comparison.page_cache_dropped {
            ", page cache dropped before each pull"
        } else {
            ""
        },
        seconds = ingest(|i| i.seconds),
        cpu = ingest(|i| i.cpu_seconds),
        server = ingest(|i| i.server_cpu_seconds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn the_table_shows_medians_and_shares() {
        let start = |ms: f64| Start {
            pull_ms: ms,
            layer_bytes: 250_000,
            unpacked_bytes: Some(100_000),
            ..Start::default()
        };
        let comparison = Comparison {
            image: "demo.test/x:v1".to_owned(),
            layers: 3,
            compressed_bytes: 1_000_000,
            uncompressed_bytes: 2_000_000,
            page_cache_dropped: false,
            starts: vec![(Way::LazyWarmProxy, vec![start(1000.0), start(9000.0), start(2000.0)])],
            ingests: Vec::new(),
        };
        let text = table(&comparison);
        for expected in ["lazy, warm proxy", "2.00 s", "25.0%", "5.0%", "Medians of 3"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
