//! Criterion benches of the hot path, instruction counts of the engine and of the scheduler, and the side-by-side harness.

pub mod policy;
pub mod polls;
