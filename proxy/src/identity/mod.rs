//! Which security identity the peers of a connection carry.
//!
//! Asked in this order: the datapath's conntrack (who sent the first packet of this connection), then its ipcache or a
//! table (whose address it is), and where neither has an entry it is [`SecurityId::WORLD`], never 0: "unknown" must not
//! equal "any". "No entry" and "cannot look up" are different answers: who cannot be looked up is refused, since the
//! rule that would deny it could be the one that cannot be found.

mod epoch;
mod maps;
mod peers;
mod sources;
pub(crate) mod sweep;
mod table;

pub(crate) use epoch::Accepted;
pub use maps::{MapState, MapView, Maps};
pub(crate) use peers::{Asking, InUse, Peers};
pub use sources::{Answer, Sources, Unavailable};
pub use table::{DuplicatePrefix, IdentityTable};
