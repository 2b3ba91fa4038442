//! The xDS side of control: what is subscribed to, and what NetworkPolicy and NetworkPolicyHosts do with an update.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tollgate_policy::SecurityId;
use tollgate_proto::cilium;
use tollgate_xds::{Address, Client, ClientConfig, Handler, Mode, Rejection, Resource, Update, Variant};

use super::sds::SecretHandler;
use super::{ClaimOrder, Control, Received};
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
            HostsHandler { control: Arc::clone(control), state: HostsState::default() },
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
        let Update { changed, removed, first_on_stream, .. } = update;
        let order = if first_on_stream { ClaimOrder::BeginsAnew } else { ClaimOrder::Continues };
        let received =
            |Resource { name, message, partly_read }| Received::new(name, Arc::new(message), partly_read, None);
        let changed = changed.into_iter().map(received).collect();
        self.control.update_policies(changed, removed, order).await.map_err(|error| Rejection::new(error.to_string()))
    }
}

/// The state of NetworkPolicyHosts that was accepted last. The work of an update is that of what it changes.
#[derive(Default)]
struct HostsState {
    table: IdentityTable,
    /// What each resource claims.
    claims: HashMap<String, Claims>,
}

/// What one resource says.
#[derive(Debug)]
struct Claims {
    identity: SecurityId,
    prefixes: Vec<IpNet>,
}

impl HostsState {
    /// The table that an update leads to, and what is new in it.
    ///
    /// # Errors
    /// What is wrong, with identity and address.
    fn table_after(
        &self,
        changed: &[Resource<cilium::NetworkPolicyHosts>],
        removed: &[String],
    ) -> Result<(IdentityTable, Vec<Claims>), String> {
        let fresh: Vec<Claims> =
            changed.iter().map(|resource| claims_of(&resource.message)).collect::<Result<_, _>>()?;
        let names: HashSet<&String> = removed.iter().chain(changed.iter().map(|resource| &resource.name)).collect();
        let mut table = self.table.clone();
        let gone = names.into_iter().filter_map(|name| self.claims.get(name));
        gone.flat_map(|claims| &claims.prefixes).for_each(|prefix| table.release(*prefix));
        for Claims { identity, prefixes } in &fresh {
            for prefix in prefixes {
                table.claim(*prefix, *identity).map_err(|error| format!("NetworkPolicyHosts: {error}"))?;
            }
        }
        Ok((table, fresh))
    }
}

/// Looks identities up in each state of NetworkPolicyHosts. A state that contradicts itself is rejected as a whole, and the
/// last good one stays: guessing an identity could allow what policy denies.
struct HostsHandler {
    control: Arc<Control>,
    state: HostsState,
}

impl Handler for HostsHandler {
    type Resource = cilium::NetworkPolicyHosts;

    fn name(hosts: &Self::Resource) -> String {
        hosts.policy.to_string()
    }

    async fn apply(&mut self, update: Update<Self::Resource>) -> Result<(), Rejection> {
        let Update { changed, removed, .. } = update;
        let (table, fresh) = self.state.table_after(&changed, &removed).map_err(Rejection::new)?;
        self.control.replace_identities(table.clone());
        self.state.table = table;
        for name in &removed {
            self.state.claims.remove(name);
        }
        self.state.claims.extend(changed.into_iter().map(|resource| resource.name).zip(fresh));
        Ok(())
    }
}

/// The prefixes of one identity (`spec/cilium-filter.md` section 2.1).
///
/// # Errors
/// What is wrong, with identity and address.
fn claims_of(hosts: &cilium::NetworkPolicyHosts) -> Result<Claims, String> {
    // Identities are 32 bits; the wire type is wider.
    let identity = u32::try_from(hosts.policy)
        .map(SecurityId)
        .map_err(|_| format!("NetworkPolicyHosts {}: the identity is over 32 bits", hosts.policy))?;
    let prefix = |text: &String| {
        parse_prefix(text).map_err(|reason| format!("NetworkPolicyHosts {identity}: host_addresses {text:?}: {reason}"))
    };
    let prefixes = hosts.host_addresses.iter().map(prefix).collect::<Result<_, _>>()?;
    Ok(Claims { identity, prefixes })
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
