//! Lanes: where a tenant goes that holds up others although time is shared fairly.
//!
//! Nothing interrupts a poll, so one that takes long holds up everybody on its worker. Each worker therefore has a second
//! thread beside it, its lane: a worker without listening sockets, of lower priority, which the kernel takes the processor
//! from whenever the worker has something to do. Who is in the lane is decided from what each tenant was seen to use
//! ([`decide`]), by the worker ([`watch`]); both sides know it by one load ([`placement`]). Connections go over where they can
//! do so without anybody noticing ([`handover`]): new ones when they are accepted, HTTP/1 between two exchanges. HTTP/2
//! connections are asked to come again (GOAWAY); tunnels stay where they are.

mod decide;
mod handover;
mod placement;
mod watch;

pub(crate) use decide::Cause;
pub(crate) use handover::{Handover, Resumed, SentUpstream, Stage};
pub(crate) use placement::{Crossing, Side, crossing};
pub(crate) use watch::Watch;

/// How much nicer than its worker a lane is, in the kernel's units: about a tenth of its worker's share where both want to
/// run. To be nicer needs no privilege.
pub(crate) const NICER: i32 = 10;
