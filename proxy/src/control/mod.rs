//! The control side: turns what control planes send into the one immutable value that workers decide by.

mod policies;
mod world;
pub mod xds;

pub use policies::{Control, RefusedResource};
pub use world::{World, WorldStore};
