//! Criterion benches of the hot path and the side-by-side harness.
