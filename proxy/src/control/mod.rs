//! The control side: turns what control planes send into the one immutable value that workers decide by.

mod world;

pub use world::{World, WorldStore};
