//! The behaviour matrix: the server is a client's first host, its upstream misbehaves, and a good registry is next.
//!
//! In: [`rows`] of misbehaviour, [`columns`] of clients. Out: each cell asserted, and the table, in
//! `target/playground/matrix.md` and on standard error.
//! Invariant, in every cell: a body that the server completes has the right bytes; containerd ends with the right image.
//! Not here: one request at a time (the server's own tests).

mod cell;
mod columns;
mod rows;

use std::sync::Arc;

use cell::{Cell, Outcome};
use columns::Column;
use futures_util::{StreamExt, stream};
use headstart_loadtest::playground::proxy::Proxy;

use crate::support::with_bench;

/// Short waits, so that an upstream that is silent costs a test seconds: in production they are longer.
const SHORT_WAITS: &str = "\n[fetch]\nconnect_timeout_ms = 2000\nheader_timeout_ms = 2500\nidle_timeout_ms = 1000\n\
                           tries_max = 3\n";

/// The upstream is not believed.
const HELD: &str = "hold_until_verified = \"always\"\n";

/// Cells of one client at the same time; many of them only wait.
const AT_ONCE: usize = 4;

#[test]
fn whatever_the_upstream_does_clients_get_the_image_or_go_on_to_the_next_host() {
    with_bench(|bench| async move {
        let bench = Arc::new(bench);
        let rows = rows::all();
        let mut cells = Vec::new();
        for column in Column::ALL {
            let of_column = rows.iter().enumerate().map(|(n, row)| Cell::new(column, n, row.layers));
            cells.push(of_column.map(Arc::new).collect::<Vec<_>>());
        }
        let urls: Vec<_> = cells.iter().flatten().map(|c| (c, c.upstream.url())).collect();
        let upstreams: Vec<(&str, &str, &str)> = urls
            .iter()
            .map(|(cell, url)| (&*cell.registry, &**url, if rows[cell.row].held { HELD } else { "" }))
            .collect();
        let proxy: Arc<Proxy> = Arc::new(bench.proxy_of("proxy", &upstreams, SHORT_WAITS).await);

        let columns = Column::ALL.into_iter().zip(cells).map(|(column, cells)| {
            let (bench, proxy, rows) = (bench.clone(), proxy.clone(), rows.clone());
            tokio::spawn(async move {
                let client = Arc::new(columns::Client::start(&bench, column, &cells, &proxy).await);
                // The rows below are the slow ones, so they begin.
                let runs = cells.clone().into_iter().rev().map(|cell| {
                    let (row, client) = (rows[cell.row].clone(), client.clone());
                    let (bench, proxy) = (bench.clone(), proxy.clone());
                    async move { cell.run(&row, &client, &bench, &proxy).await }
                });
                let mut outcomes: Vec<Outcome> = stream::iter(runs).buffered(AT_ONCE).collect().await;
                outcomes.reverse();
                client.verify(&cells, &outcomes);
                outcomes
            })
        });
        let mut outcomes = Vec::new();
        for column in columns.collect::<Vec<_>>() {
            outcomes.push(column.await.unwrap());
        }

        let table = table(&rows, &outcomes);
        eprintln!("{table}");
        std::fs::create_dir_all(&bench.site.cache_dir).unwrap();
        std::fs::write(bench.site.cache_dir.join("matrix.md"), &table).unwrap();
        let mut wrong = Vec::new();
        for (row_number, row) in rows.iter().enumerate() {
            for (column, outcomes) in Column::ALL.into_iter().zip(&outcomes) {
                let outcome = &outcomes[row_number];
                if !row.allowed(column).contains(&outcome.short()) {
                    wrong.push(format!("{}, {}: {outcome:?}", row.name, column.title()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

fn table(rows: &[rows::Row], outcomes: &[Vec<Outcome>]) -> String {
    let mut text = String::from("| upstream |");
    for column in Column::ALL {
        text.push_str(&format!(" {} |", column.title()));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(Column::ALL.len()));
    for (i, row) in rows.iter().enumerate() {
        text.push_str(&format!("\n| {} |", row.name));
        for outcomes in outcomes {
            text.push_str(&format!(" {} |", outcomes[i].title()));
        }
    }
    text.push('\n');
    text
}
