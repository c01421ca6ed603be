//! presentation (owner LAZY).
