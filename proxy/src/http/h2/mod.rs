//! HTTP/2 with prior knowledge, downstream and upstream: each stream is judged on its own, and its frames pass with
//! back-pressure, trailers, interim responses and resets.
//!
//! Framing, HPACK and flow control are the `h2` crate's; what is ours is the way of a request.

mod answer;
mod arriving;
mod budget;
mod connection;
mod detach;
mod driver;
mod frames;
mod handle;
mod held;
mod incoming;
mod opened;
mod outlet;
mod owed;
mod prefixed;
mod queue;
mod request;
mod retry;
mod stream;
mod table;
mod transfer;
mod upstream;

pub(crate) use connection::serve;
