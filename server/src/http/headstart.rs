//! /headstart/v1 (owner INGEST).
pub fn routes() -> axum::Router<crate::app::App> {
    axum::Router::new()
}
