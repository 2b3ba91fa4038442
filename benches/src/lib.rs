//! Criterion benches of the hot path, instruction counts of the engine, and the side-by-side harness.

pub mod policy;
