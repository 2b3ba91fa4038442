//! Socket marks (`SO_MARK`) as Cilium's datapath reads them.

/// A socket mark. The low 16 bits hold the magic that names the direction, the rest the source identity or endpoint.
///
/// Encoding of `cilium/bpf_metadata` and of the agent's `inherit_identity_from_host`: the datapath takes the source
/// identity of a proxied connection from the mark, because the packet's own source address may be the node's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(u32);

impl Mark {
    const INGRESS: u32 = 0x0A00;
    const EGRESS: u32 = 0x0B00;
    const ENDPOINT: u32 = 0x0900;

    /// The bare mark of a listener's socket. Accepted sockets inherit it, so replies to the client carry it.
    pub const fn listener(ingress: bool) -> Self {
        Self(if ingress { Self::INGRESS } else { Self::EGRESS })
    }

    /// The mark of an upstream socket: the listener's direction and the *source* identity of the flow.
    ///
    /// Only 24 bits of the identity fit: bits 16 to 23 go to the low byte, the low 16 bits to the high half. The scope
    /// flag of node-local identities (bit 24) is lost, which is what the datapath expects.
    pub const fn upstream(ingress: bool, identity: u32) -> Self {
        Self(Self::listener(ingress).0 | ((identity >> 16) & 0xFF) | ((identity & 0xFFFF) << 16))
    }

    /// The mark of an upstream socket that makes the datapath run the egress policy of endpoint `endpoint_id`
    /// (east/west load balancing). Endpoint ids have 16 bits; higher bits do not fit and are dropped.
    pub const fn endpoint(endpoint_id: u64) -> Self {
        Self(Self::ENDPOINT | (((endpoint_id & 0xFFFF) as u32) << 16))
    }

    /// The value for `SO_MARK`.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// Prints as in `ip rule` and nftables: `0x2ee10b00`.
impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Mark;

    #[test]
    fn encodes_direction_and_identity() {
        // (ingress, identity, mark); the first row is the worked example of the datapath's documentation.
        let table = [
            (false, 12001, 0x2EE1_0B00),
            (true, 12001, 0x2EE1_0A00),
            (true, 2, 0x0002_0A00),
            (false, 0, 0x0000_0B00),
            (true, 0x00AB_CDEF, 0xCDEF_0AAB),
            (true, 0x0100_0001, 0x0001_0A00),
        ];
        for (ingress, identity, mark) in table {
            assert_eq!(Mark::upstream(ingress, identity).raw(), mark, "ingress {ingress}, identity {identity:#x}");
        }
    }

    #[test]
    fn listener_marks_carry_no_identity() {
        assert_eq!(Mark::listener(true).raw(), 0x0A00);
        assert_eq!(Mark::listener(false).raw(), 0x0B00);
        assert_eq!(Mark::upstream(true, 0), Mark::listener(true));
    }

    #[test]
    fn endpoint_marks_hold_sixteen_bits() {
        assert_eq!(Mark::endpoint(69).raw(), 0x0045_0900);
        assert_eq!(Mark::endpoint(0x1_0045), Mark::endpoint(69));
        assert_eq!(format!("{:?}", Mark::endpoint(69)), "0x00450900");
    }
}
