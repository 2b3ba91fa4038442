//! Whose identity counts when sources disagree, or when an address changes hands under an open connection. Pure.
//!
//! What is compared is what the address carries now with what it carried at accept, never conntrack with the address:
//! a conntrack entry keeps the identity that it was made with, also when its pod is given other labels.

use tollgate_policy::SecurityId;

use crate::config::IdentityMode;

/// What was known of a connection's peer when it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Identity in conntrack, where it has one and the address has not changed hands since.
    pub(crate) conntrack: Option<SecurityId>,
    /// Identity that the address carried; the world without an entry.
    pub(crate) address: SecurityId,
}

/// The peer of a connection, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its identity.
    pub(crate) identity: SecurityId,
    /// Another one that policy has to admit too.
    pub(crate) also: Option<SecurityId>,
    /// The address carries another identity than at accept.
    pub(crate) changed: bool,
}

impl Accepted {
    /// Whether the two sources named different identities.
    pub(crate) fn disagrees(&self) -> bool {
        self.conntrack.is_some_and(|conntrack| conntrack != self.address)
    }

    /// The peer, whose address carries `now`. Once that is another than at accept, conntrack's word is void: it was about
    /// whoever had the address before.
    pub(crate) fn peer(&self, mode: IdentityMode, now: Option<SecurityId>) -> Peer {
        let address = now.unwrap_or(SecurityId::WORLD);
        if address != self.address {
            return Peer { identity: address, also: None, changed: true };
        }
        let (identity, also) = match (self.conntrack, mode) {
            (None, _) => (address, None),
            (Some(conntrack), IdentityMode::Compat) => (conntrack, None),
            // No entry is no word against conntrack.
            (Some(conntrack), IdentityMode::Fresh) => (now.unwrap_or(conntrack), None),
            (Some(conntrack), IdentityMode::Strict) => (conntrack, (conntrack != address).then_some(address)),
        };
        Peer { identity, also, changed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_word_counts() {
        use IdentityMode::{Compat, Fresh, Strict};
        // (mode, conntrack, address at accept, address now) → (identity, also, changed); 2 is the world, 0 no entry.
        for (mode, conntrack, accepted, now, identity, also, changed) in [
            (Compat, 0, 7, 7, 7, 0, false),
            (Compat, 5, 7, 7, 5, 0, false),
            (Compat, 5, 2, 0, 5, 0, false),
            (Compat, 5, 7, 8, 8, 0, true),
            (Compat, 5, 7, 5, 5, 0, true),
            (Compat, 5, 7, 0, 2, 0, true),
            (Fresh, 5, 7, 7, 7, 0, false),
            (Fresh, 5, 2, 0, 5, 0, false),
            (Fresh, 5, 2, 2, 2, 0, false),
            (Fresh, 5, 7, 0, 2, 0, true),
            (Strict, 5, 5, 5, 5, 0, false),
            (Strict, 5, 7, 7, 5, 7, false),
            (Strict, 5, 2, 0, 5, 2, false),
            (Strict, 0, 7, 7, 7, 0, false),
            (Strict, 5, 7, 8, 8, 0, true),
        ] {
            let some = |id| (id != 0).then_some(SecurityId(id));
            let at_accept = Accepted { conntrack: some(conntrack), address: SecurityId(accepted) };
            let expected = Peer { identity: SecurityId(identity), also: some(also), changed };
            assert_eq!(at_accept.peer(mode, some(now)), expected, "{mode:?} {conntrack} {accepted} {now}");
        }
    }
}
