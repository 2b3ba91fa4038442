//! The protocol against a scripted peer, with a paused clock.

mod protocol;
mod reconnect;
mod scripted;
mod socket;
