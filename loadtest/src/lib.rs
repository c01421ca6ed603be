//! The load driver and test library (owner LOAD; playground, cri and relay are DEMO's).
