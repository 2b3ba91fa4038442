//! What this process may do with sockets, found out by trying.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{Mark, NetError, listener};

/// The outcome of one probe.
#[derive(Debug)]
pub enum Capability {
    /// The kernel let us.
    Usable,
    /// The kernel refused with this error: missing privilege, or a kernel without the feature.
    Refused(io::Error),
}

impl Capability {
    /// Whether the probe succeeded.
    pub const fn usable(&self) -> bool {
        matches!(self, Self::Usable)
    }
}

impl From<io::Result<()>> for Capability {
    fn from(result: io::Result<()>) -> Self {
        result.map_or_else(Self::Refused, |()| Self::Usable)
    }
}

/// What sockets of this process may do in its network namespace. For `status`, `doctor` and the checks at start.
#[derive(Debug)]
pub struct Capabilities {
    /// `IP_TRANSPARENT`: accept for, and connect from, IPv4 addresses that are not this host's.
    pub transparent_v4: Capability,
    /// `IPV6_TRANSPARENT`: the same for IPv6. Refused also where IPv6 is disabled.
    pub transparent_v6: Capability,
    /// `SO_MARK`: tell the datapath the flow's identity.
    pub mark: Capability,
}

impl Capabilities {
    /// Tries each option on a socket of its own, which is closed again. Takes microseconds, sends nothing.
    pub fn probe() -> Self {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        let transparent = |address| {
            listener::new_socket(address).and_then(|socket| listener::set_transparent(&socket, address)).into()
        };
        Self {
            transparent_v4: transparent(v4),
            transparent_v6: transparent(v6),
            mark: listener::new_socket(v4).and_then(|socket| socket.set_mark(Mark::listener(true).raw())).into(),
        }
    }
}

/// Checks that the transparent listener named `name` on `address` can work, before anything is opened.
///
/// The error names the listener, what is missing, and both remedies: the capability in the pod's specification, or
/// `transparent: false`.
pub fn check_transparent(name: &str, address: SocketAddr) -> Result<(), NetError> {
    check(Capabilities::probe(), name, address)
}

fn check(capabilities: Capabilities, name: &str, address: SocketAddr) -> Result<(), NetError> {
    let (transparent, option) = if address.is_ipv4() {
        (capabilities.transparent_v4, "IP_TRANSPARENT (CAP_NET_ADMIN or CAP_NET_RAW)")
    } else {
        (capabilities.transparent_v6, "IPV6_TRANSPARENT (CAP_NET_ADMIN or CAP_NET_RAW)")
    };
    let mark = (capabilities.mark, "SO_MARK (CAP_NET_ADMIN, or CAP_NET_RAW on Linux 5.17 and later)");
    for (capability, needs) in [(transparent, option), mark] {
        if let Capability::Refused(error) = capability {
            let remedy = match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT) => "IPv6 is disabled on this host: remove this listener's IPv6 address",
                _ => {
                    "add NET_ADMIN under securityContext.capabilities.add of the pod (or run as root), or set \
                     `transparent: false` for this listener"
                }
            };
            return Err(NetError::Capability { listener: format!("{name} ({address})"), needs, error, remedy });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Capabilities, Capability, check};
    use std::io;

    fn capabilities(transparent_v4: Capability, mark: Capability) -> Capabilities {
        let transparent_v6 = Capability::Refused(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        Capabilities { transparent_v4, transparent_v6, mark }
    }

    fn eperm() -> Capability {
        Capability::Refused(io::Error::from_raw_os_error(libc::EPERM))
    }

    #[test]
    fn names_the_listener_what_is_missing_and_the_remedy() {
        let v4 = "127.0.0.1:15001".parse().unwrap();
        let text = check(capabilities(eperm(), eperm()), "ingress", v4).unwrap_err().to_string();
        for part in
            ["ingress (127.0.0.1:15001)", "IP_TRANSPARENT", "CAP_NET_ADMIN", "not permitted", "transparent: false"]
        {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let text = check(capabilities(Capability::Usable, eperm()), "ingress", v4).unwrap_err().to_string();
        assert!(text.contains("needs SO_MARK"), "{text}");
    }

    #[test]
    fn judges_each_family_by_its_own_probe() {
        let usable = || capabilities(Capability::Usable, Capability::Usable);
        check(usable(), "ingress", "127.0.0.1:15001".parse().unwrap()).unwrap();
        let text = check(usable(), "ingress", "[::1]:15001".parse().unwrap()).unwrap_err().to_string();
        assert!(text.contains("IPv6 is disabled"), "{text}");
    }
}
