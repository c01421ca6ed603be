//! fetch (owner LAZY).
pub mod servers;
