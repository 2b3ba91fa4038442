//! HTTP: parsing, canonicalisation, and the way of a request through policy to the upstream and back.

mod authority;
pub mod canonical;
mod h1;
pub mod respond;
