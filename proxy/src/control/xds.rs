//! The xDS side of control: what is subscribed to, and what NetworkPolicy and NetworkPolicyHosts do with an update.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tollgate_policy::SecurityId;
use tollgate_proto::cilium;
use tollgate_xds::{Address, Client, ClientConfig, Handler, Mode, Rejection, Resource, State, Update, Variant};

use super::sds::SecretHandler;
use super::{Control, Received};
use crate::config::{Identities, ListenAddress, Node, XdsMode};
use crate::identity::IdentityTable;

/// A client subscribed to what this configuration takes from the control plane. Where the mode is to be found out, it
/// begins with `first`.
pub fn client(
    node: &Node,
    address: &ListenAddress,
    mode: XdsMode,
    first: Option<XdsMode>,
    identities: &Identities,
    control: &Arc<Control>,
) -> Client {
    let node = tollgate_xds::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        user_agent: "tollgate".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let address = match address {
        ListenAddress::Tcp(address) => Address::Tcp(address.to_string()),
        ListenAddress::Unix(path) => Address::Unix(path.clone()),
    };
    let mut config = ClientConfig::new(node, address);
    let variant = |mode| match mode {
        XdsMode::Auto | XdsMode::Split => Variant::Split,
        XdsMode::Ads => Variant::Ads,
        XdsMode::DeltaSplit => Variant::DeltaSplit,
    };
    config.mode = match mode {
        XdsMode::Auto => Mode::Auto(variant(first.unwrap_or(mode))),
        mode => Mode::Fixed(variant(mode)),
    };
    let client =
        Client::new(config).subscribe(tollgate_xds::NETWORK_POLICY, PolicyHandler { control: Arc::clone(control) });
    let secrets = SecretHandler::new(Arc::clone(control));
    let client = client.subscribe_named(tollgate_xds::SECRET, secrets, control.wanted_secrets());
    match identities {
        Identities::Nphds => client.subscribe(
            tollgate_xds::NETWORK_POLICY_HOSTS,
            HostsHandler { control: Arc::clone(control), hosts: State::default() },
        ),
        Identities::Static(_) | Identities::Ipcache(_) | Identities::Agent => client,
    }
}

/// Enforces each state of NetworkPolicy. It rejects nothing: what decodes is acknowledged, what cannot be enforced as
/// written is quarantined (DESIGN section 7), so that one tenant's mistake never holds up a node.
struct PolicyHandler {
    control: Arc<Control>,
}

impl Handler for PolicyHandler {
    type Resource = cilium::NetworkPolicy;

    fn name(policy: &Self::Resource) -> String {
        policy.endpoint_id.to_string()
    }

    async fn apply(&mut self, update: Update<Self::Resource>) -> Result<(), Rejection> {
        if update.first_on_stream {
            self.control.reopen_identity_maps();
        }
        let Update { changed, removed, .. } = update;
        let received =
            |Resource { name, message: policy, partly_read }| Received { name, policy, partly_read, place: None };
        let changed = changed.into_iter().map(received).collect();
        self.control.update_policies(changed, removed).await.map_err(|error| Rejection::new(error.to_string()))
    }
}

/// Looks identities up in each state of NetworkPolicyHosts. A state that contradicts itself is rejected as a whole, and the
/// last good one stays: guessing an identity could allow what policy denies.
struct HostsHandler {
    control: Arc<Control>,
    hosts: State<cilium::NetworkPolicyHosts>,
}

impl Handler for HostsHandler {
    type Resource = cilium::NetworkPolicyHosts;

    fn name(hosts: &Self::Resource) -> String {
        hosts.policy.to_string()
    }

    async fn apply(&mut self, update: Update<Self::Resource>) -> Result<(), Rejection> {
        let hosts = self.hosts.after(update);
        let table = table_of(hosts.iter().map(|(_, hosts)| &**hosts)).map_err(Rejection::new)?;
        self.control.replace_identities(table);
        self.hosts = hosts;
        Ok(())
    }
}

/// The table of a whole NPHDS state (`spec/cilium-filter.md` section 2.1); the error names identity and address.
pub fn table_of<'h>(hosts: impl IntoIterator<Item = &'h cilium::NetworkPolicyHosts>) -> Result<IdentityTable, String> {
    let mut entries = Vec::new();
    for host in hosts {
        // Identities are 32 bits; the wire type is wider.
        let identity = u32::try_from(host.policy)
            .map(SecurityId)
            .map_err(|_| format!("NetworkPolicyHosts {}: the identity is over 32 bits", host.policy))?;
        for text in &host.host_addresses {
            let prefix = parse_prefix(text)
                .map_err(|reason| format!("NetworkPolicyHosts {identity}: host_addresses {text:?}: {reason}"))?;
            entries.push((prefix, identity));
        }
    }
    IdentityTable::new(entries).map_err(|error| format!("NetworkPolicyHosts: {error}"))
}

/// An address, or a prefix in plain decimal without host bits.
fn parse_prefix(text: &str) -> Result<IpNet, &'static str> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| "not an IP address")?;
    let Some(length) = length else { return Ok(IpNet::from(address)) };
    let plain =
        !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length: u8 = length.parse().ok().filter(|_| plain).ok_or("the prefix length is not a plain number")?;
    let prefix = IpNet::new(address, length).map_err(|_| "the prefix is longer than the address")?;
    if prefix.network() != address {
        return Err("bits are set beyond the prefix");
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests;
