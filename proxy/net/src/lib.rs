//! Linux sockets: TPROXY listeners, original destination, marks, transparent upstreams; the BPF maps of the datapath; what else
//! the kernel is asked for.
//!
//! All sockets made here are non-blocking and close-on-exec. The crate decides nothing about policy: it takes addresses and
//! marks and says, in its errors, which operation failed on which address and what an operator can do about it.

mod accept;
mod bpf;
mod capability;
mod descriptors;
mod error;
mod heap;
mod lease;
mod listener;
mod mark;
mod reuseport;
mod seqpacket;
mod thread_clock;
mod turns;
mod unix;
mod upstream;

pub use accept::{AcceptError, Accepted, original_dst, prepare_accepted};
pub use bpf::{Conntrack, ConntrackFlow, Ipcache, MapError, PinState, Shape};
pub use capability::{Capabilities, Capability, check_transparent};
pub use descriptors::{DescriptorLimit, make_room_for_descriptors, open_descriptors, raise_nofile};
pub use error::{NetError, Operation};
pub use heap::give_back_freed_memory;
pub use lease::is_open_to_write;
pub use listener::{ListenOptions, listen};
pub use mark::Mark;
pub use reuseport::{Shards, shard_by_source};
pub use seqpacket::{PacketError, PacketSender};
pub use thread_clock::ThreadClock;
pub use turns::ask_for_turns_of;
pub use unix::{SocketFile, listen_unix};
pub use upstream::{Upstream, UpstreamOptions, connect, is_own_address, reset, reset_on_close};
