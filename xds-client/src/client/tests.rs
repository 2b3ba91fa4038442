//! The protocol against a scripted peer, with a paused clock.

mod aggregated;
mod incremental;
mod modes;
mod pacing;
mod protocol;
mod reconnect;
mod scripted;
mod socket;
