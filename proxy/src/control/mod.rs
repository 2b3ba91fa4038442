//! The control side: turns what control planes send into the one immutable value that workers decide by.

mod cgroup;
mod claims;
mod compile;
pub mod directory;
mod files;
pub mod identities;
pub mod listeners;
pub mod memory;
mod policies;
pub mod quota;
mod retired;
mod sds;
mod secret_sources;
pub mod secrets;
pub mod tenants;
mod warned;
mod watch;
mod world;
pub mod xds;

pub(crate) use compile::payer;
pub(crate) use policies::set_unknown_fields_aside;
pub use policies::{ClaimOrder, CompilingFailed, Control, Received, RefusedResource};
pub use world::{Owner, World, WorldStore};
