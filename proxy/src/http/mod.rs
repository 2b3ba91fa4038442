//! HTTP: parsing, canonicalisation, and the way of a request through policy to the upstream and back.

mod authority;
pub mod canonical;
pub(crate) mod h1;
pub(crate) mod h2;
mod limit_fields;
pub(crate) mod limits;
pub(crate) mod request_id;
pub(crate) mod respond;
pub(crate) mod retry;

pub use h1::canonical_path_of;
pub(crate) use h1::{Buffer, BufferPool};
