//! `tollgate demo`: the whole story on this machine, in namespaces of its own.

pub mod namespaces;
pub mod world;
