//! The section `identities`: who tells which identity a peer carries, and whose word counts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tollgate_policy::SecurityId;

use super::document::{Place, Value};
use super::read::{Field, Section};
use super::scalar;
use super::sections::no_directory;

const EXAMPLE: &str =
    "nphds, agent, {bpf_root: /sys/fs/bpf}, or a list such as [{identity: 32226, addresses: [10.244.1.17]}]";
const MAPPING_EXAMPLE: &str = "{bpf_root: /sys/fs/bpf, ipcache_name: cilium_ipcache_v2}";
/// What today's agents call it.
const IPCACHE_NAME: &str = "cilium_ipcache_v2";
/// Where the datapath pins its maps below the BPF file system.
const GLOBALS: &str = "tc/globals";
/// As Cilium's filter.
const TTL: Duration = Duration::from_millis(3);

/// Where identities of peers come from, and what is done when sources disagree.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentitySettings {
    /// Who says which identity an address carries.
    pub source: Identities,
    /// Directory of the datapath's conntrack maps (`cilium_ct4_global`, `cilium_ct6_global`), which know what the first packet
    /// of a connection carried. `None`: they are not asked.
    pub conntrack: Option<PathBuf>,
    /// Whose word counts.
    pub mode: IdentityMode,
    /// How long an answer of the ipcache may be used; zero asks each time.
    pub ttl: Duration,
}

/// Who says which identity an address carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Identities {
    /// A fixed list; longest prefix wins.
    Static(Vec<StaticIdentity>),
    /// `cilium.NetworkPolicyHosts` over xDS.
    Nphds,
    /// The datapath's ipcache, pinned at this path.
    Ipcache(PathBuf),
    /// The maps that the agent names with its listeners, once it has named them.
    Agent,
}

/// Whose word counts when conntrack and the address disagree at accept, and what happens when an address changes hands
/// under an open connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdentityMode {
    /// Conntrack's, as in Cilium's filter. After a change the next request is judged by the new identity.
    #[default]
    Compat,
    /// The address's, where it has an entry. After a change as above.
    Fresh,
    /// Policy has to admit both. After a change the connection ends.
    Strict,
}

impl IdentityMode {
    const WORDS: [(&str, Self); 3] = [("compat", Self::Compat), ("fresh", Self::Fresh), ("strict", Self::Strict)];

    /// The word for it in configuration and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compat => "compat",
            Self::Fresh => "fresh",
            Self::Strict => "strict",
        }
    }
}

/// One identity with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticIdentity {
    /// The identity.
    pub identity: SecurityId,
    /// Addresses or prefixes that carry it.
    pub addresses: Vec<IpNet>,
}

impl IdentitySettings {
    /// This source alone, with every default.
    pub const fn new(source: Identities) -> Self {
        Self { source, conntrack: None, mode: IdentityMode::Compat, ttl: TTL }
    }

    /// The maps below a BPF file system: this ipcache, and conntrack.
    pub fn of_bpf_root(root: &Path, ipcache_name: &str) -> Self {
        let globals = root.join(GLOBALS);
        let source = Identities::Ipcache(globals.join(ipcache_name));
        Self { conntrack: Some(globals), ..Self::new(source) }
    }
}

/// `identities: nphds`, `agent`, a mapping, or a list. Without it: what an agent says with its listeners, where those come
/// from one; with xds its `NetworkPolicyHosts`; otherwise nothing, so that every peer is the world.
pub(super) fn identities(top: &mut Section<'_>, dynamic_listeners: bool) -> IdentitySettings {
    let with_xds = top.has("xds");
    let default = IdentitySettings::new(match (dynamic_listeners, with_xds) {
        (true, _) => Identities::Agent,
        (false, true) => Identities::Nphds,
        (false, false) => Identities::Static(Vec::new()),
    });
    let Some(field) = top.field("identities") else {
        return default;
    };
    match &field.node.value {
        Value::Text(word) if word == "nphds" => {
            refuse_without_xds(&field, with_xds);
            IdentitySettings::new(Identities::Nphds)
        }
        Value::Text(word) if word == "agent" => {
            if !dynamic_listeners {
                field.refuse("an agent names its maps with its listeners; write listeners: xds, or name the maps here");
            }
            IdentitySettings::new(Identities::Agent)
        }
        Value::Map(_) => from_mapping(&field, with_xds).unwrap_or(default),
        Value::List(_) => IdentitySettings::new(Identities::Static(static_identities(&field))),
        other => {
            field.refuse(format!("{} where identities belong; write {EXAMPLE}", other.kind()));
            default
        }
    }
}

fn refuse_without_xds(field: &Field<'_>, with_xds: bool) {
    if !with_xds {
        field.refuse("nphds comes over xds, which is not configured; add xds or list the identities here");
    }
}

/// `{bpf_root, ipcache_name, ipcache, nphds, conntrack, mode, ttl}`. `None` only after a mistake was noted.
fn from_mapping(field: &Field<'_>, with_xds: bool) -> Option<IdentitySettings> {
    let mut section = field.section(MAPPING_EXAMPLE)?;
    let root = section.field("bpf_root");
    let globals = root.as_ref().and_then(|field| field.read(directory)).map(|root| root.join(GLOBALS));
    let ipcache = section.field("ipcache");
    let ipcache_path = ipcache.as_ref().and_then(|field| field.read(map_path));
    let name = section.field("ipcache_name");
    let name_text = name.as_ref().and_then(|field| field.read(file_name));
    let nphds = section.field("nphds");
    let use_nphds = nphds.as_ref().and_then(|field| field.read(scalar::boolean)).unwrap_or(false);
    if let (Some(field), true) = (&nphds, use_nphds) {
        refuse_without_xds(field, with_xds);
    }
    if let (Some(field), None) = (&name, &root) {
        field.refuse("a name below bpf_root, which is not there; add bpf_root: /sys/fs/bpf or write ipcache: PATH");
    }
    let sources = [ipcache.as_ref().or(name.as_ref()), nphds.as_ref().filter(|_| use_nphds)];
    if let [Some(_), Some(field)] = sources {
        field.refuse("addresses have exactly one source; remove nphds or the ipcache");
    }
    if let (Some(field), Some(_)) = (&ipcache, &name) {
        field.refuse("the ipcache is named twice; remove ipcache or ipcache_name");
    }
    let source = match (&globals, ipcache_path) {
        _ if use_nphds => Some(Identities::Nphds),
        (_, Some(path)) => Some(Identities::Ipcache(path)),
        (Some(globals), None) if ipcache.is_none() => {
            let name = name_text.unwrap_or_else(|| IPCACHE_NAME.to_owned());
            Some(Identities::Ipcache(globals.join(name)))
        }
        _ => None,
    };
    if source.is_none() && root.is_none() && ipcache.is_none() {
        section.refuse_whole(format!("no source of identities; write {MAPPING_EXAMPLE}"));
    }
    let conntrack = conntrack(&mut section, globals);
    let mode = section.read("mode", IdentityMode::default(), |value| scalar::word(value, &IdentityMode::WORDS));
    let ttl = section.read("ttl", TTL, scalar::duration);
    section.finish(&[]);
    Some(IdentitySettings { source: source?, conntrack, mode, ttl })
}

/// `conntrack: true`, the default with `bpf_root`; `false`; or the directory of the maps.
fn conntrack(section: &mut Section<'_>, globals: Option<PathBuf>) -> Option<PathBuf> {
    let Some(field) = section.field("conntrack") else { return globals };
    match &field.node.value {
        Value::Bool(false) => None,
        Value::Bool(true) => {
            if globals.is_none() {
                field.refuse("the conntrack maps are below bpf_root, which is not there; add bpf_root: /sys/fs/bpf");
            }
            globals
        }
        // It may come later: the agent makes it.
        Value::Text(text) => Some(PathBuf::from(text)),
        other => {
            field.refuse(format!("{} where true, false or a directory belongs", other.kind()));
            None
        }
    }
}

fn directory(value: &Value) -> Result<PathBuf, String> {
    let path = PathBuf::from(scalar::text(value)?);
    no_directory(&path).map_or(Ok(path), Err)
}

/// The map itself may come later: the agent makes it.
fn map_path(value: &Value) -> Result<PathBuf, String> {
    let path = PathBuf::from(scalar::text(value)?);
    if path.is_dir() {
        return Err(format!("{} is a directory; write the path of a pinned map, or bpf_root", path.display()));
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(_) => Ok(path),
        None => Err(format!("\"{}\" has no directory; write /sys/fs/bpf/{GLOBALS}/{IPCACHE_NAME}", path.display())),
    }
}

fn file_name(value: &Value) -> Result<String, String> {
    match scalar::text(value)? {
        text if text.is_empty() || text.contains('/') || text == ".." || text == "." => {
            Err(format!("\"{text}\" is no file name; write one below bpf_root/{GLOBALS}, such as {IPCACHE_NAME}"))
        }
        text => Ok(text.to_owned()),
    }
}

fn static_identities(field: &Field<'_>) -> Vec<StaticIdentity> {
    let mut owners: HashMap<IpNet, (SecurityId, Place)> = HashMap::new();
    let mut identities = Vec::new();
    for item in field.list(EXAMPLE).unwrap_or_default() {
        let Some(mut section) = item.section("{identity: 32226, addresses: [10.244.1.17]}") else {
            continue;
        };
        let identity = match section.field("identity") {
            // 0 means "any" in policies, so no peer may carry it.
            Some(field) => field.read(|value| scalar::integer(value, 1, u32::MAX.into())),
            None => {
                section.refuse_whole("no identity; add identity: NUMBER");
                None
            }
        };
        let addresses = section.field("addresses");
        if addresses.is_none() {
            section.refuse_whole("no addresses; add addresses: [IP or prefix, …]");
        }
        let identity = SecurityId(identity.and_then(|number| u32::try_from(number).ok()).unwrap_or_default());
        let mut prefixes = Vec::new();
        for address in addresses.and_then(|field| field.list("[10.244.1.17, \"fd00::/64\"]")).unwrap_or_default() {
            let Some(prefix) = address.read(scalar::prefix) else {
                continue;
            };
            match owners.insert(prefix, (identity, address.node.place)) {
                Some((owner, place)) if owner != identity => address.refuse(format!(
                    "{prefix} belongs to identity {owner} already (line {}); give it to one of them",
                    place.line
                )),
                _ => prefixes.push(prefix),
            }
        }
        section.finish(&[]);
        identities.push(StaticIdentity { identity, addresses: prefixes });
    }
    identities
}
