//! Sockets that accept redirected connections, and what happens to each from accept to its end.

pub(crate) mod accept;
pub(crate) mod connection;
pub(crate) mod handover;
mod identities;
pub(crate) mod judge;
mod present;
mod serve;
pub(crate) mod serving;
