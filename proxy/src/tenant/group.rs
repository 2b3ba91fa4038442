//! Tenants that somebody configured: who belongs to them and what they may use.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use ipnet::IpNet;
use tollgate_policy::SecurityId;
use tollgate_proto::tenant as proto;

use super::{Guarantee, Pools, Settings};

/// Longest name of a tenant, in bytes.
pub const MAX_NAME: usize = 63;
/// What begins the name of an endpoint that is a tenant of its own.
pub(super) const ENDPOINT: &str = "endpoint-";
/// Names with a meaning of their own, beside those of endpoints.
const RESERVED: [&str; 2] = ["default", "overflow"];

/// A configured tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Unique.
    pub name: Arc<str>,
    /// Whom it consists of; at least one.
    pub members: Vec<Member>,
    /// What it may use.
    pub settings: Settings,
}

/// One way to belong to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    /// The endpoint of this number, with all of its addresses; not 0.
    Endpoint(u64),
    /// Endpoints with addresses in this prefix.
    Addresses(IpNet),
    /// Endpoints that carry this identity; not 0.
    Identity(SecurityId),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(id) => write!(f, "endpoint {id}"),
            Self::Addresses(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "address {}", net.addr()),
            Self::Addresses(net) => write!(f, "prefix {net}"),
            Self::Identity(identity) => write!(f, "identity {identity}"),
        }
    }
}

/// Why a group is set aside. Says the field, what is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The name is none.
    #[error("name: {0}")]
    Name(String),
    /// Another group has the name.
    #[error("name: another tenant is called \"{0}\" already; choose another name")]
    NameTaken(Arc<str>),
    /// Nobody belongs to it.
    #[error("members: there are none; name endpoint_ids, addresses or identities")]
    NoMember,
    /// A member is none.
    #[error("members.{0}")]
    Member(String),
    /// Another group has the member.
    #[error("members: {member} belongs to tenant \"{owner}\" already; name it in one of them")]
    MemberTaken {
        /// What both claim.
        member: Member,
        /// Who has it.
        owner: Arc<str>,
    },
    /// Another group began to claim a member at the same moment, and is stricter in something.
    #[error(
        "members: tenant \"{rival}\" names {member}, too, so each ceiling is the lower one of both; name it in one of them"
    )]
    Lowered {
        /// What both claim.
        member: Member,
        /// Who does not have it.
        rival: Arc<str>,
    },
    /// More places are guaranteed than there are.
    #[error(
        "guarantee.{places}: {promised} with what other tenants are guaranteed, and {key} is {total}; lower one of them"
    )]
    Guarantee {
        /// Of what.
        places: &'static str,
        /// To all tenants so far.
        promised: u64,
        /// The setting that says how many there are.
        key: &'static str,
        /// How many there are.
        total: u32,
    },
    /// More processor time is guaranteed than workers have.
    #[error(
        "guarantee.cpu: {promised}m with what other tenants are guaranteed, and workers: {workers} can guarantee {total}m, nine \
         tenths of their time; lower one of them"
    )]
    GuaranteedCpu {
        /// Thousandths of a processor, to all tenants so far.
        promised: u64,
        /// Worker threads.
        workers: u32,
        /// Thousandths of a processor.
        total: u64,
    },
    /// More memory is guaranteed than may be.
    #[error(
        "guarantee.memory: {promised} bytes with what other tenants are guaranteed, and of the {end} bytes that the process may have \
         (limits.memory) {total} can be guaranteed, half of what tenants get of them; lower one of them"
    )]
    GuaranteedMemory {
        /// Bytes, to all tenants so far.
        promised: u64,
        /// Bytes that the process may have.
        end: u64,
        /// Bytes that may be guaranteed.
        total: u64,
    },
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
    /// There is no room for another.
    #[error("there are {0} tenants already, which is the most; join some")]
    TooMany(usize),
}

/// Checks a name of a tenant; the error says what would do.
pub fn check_name(name: &str) -> Result<(), String> {
    let bad = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-'));
    let problem = match name {
        "" => "is empty".to_owned(),
        name if name.len() > MAX_NAME => format!("has {} bytes", name.len()),
        name if RESERVED.contains(&name) || name.starts_with(ENDPOINT) => {
            return Err(format!("\"{name}\" has a meaning of its own; choose another name"));
        }
        name if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.contains(bad) => {
            format!("\"{}\"", name.escape_debug())
        }
        _ => return Ok(()),
    };
    Err(format!(
        "{problem}; write 1 to {MAX_NAME} letters, digits, \".\", \"_\", \"/\" and \"-\", the first a letter or digit"
    ))
}

impl Group {
    /// What a resource says, and what of it makes no sense. Such a setting has its default and such a member is none: the others
    /// count, since the tenant would have no limits at all without them.
    ///
    /// # Errors
    /// It has no name, or no member that is one.
    pub fn of_resource(tenant: &proto::Tenant) -> Result<(Self, Vec<GroupError>), GroupError> {
        check_name(&tenant.name).map_err(GroupError::Name)?;
        let (members, mut left_out) = members(tenant.members.as_ref());
        if members.is_empty() {
            return Err(left_out.into_iter().next().unwrap_or(GroupError::NoMember));
        }
        let (settings, mistakes) = Settings::of_resource(tenant);
        left_out.extend(mistakes.into_iter().map(GroupError::Setting));
        Ok((Self { name: tenant.name.as_str().into(), members, settings }, left_out))
    }
}

/// Members that are some, and why others are none.
fn members(named: Option<&proto::Members>) -> (Vec<Member>, Vec<GroupError>) {
    let Some(named) = named else { return (Vec::new(), Vec::new()) };
    let (mut members, mut mistakes) = (Vec::new(), Vec::new());
    let mut add = |place: String, member: Result<Member, String>| match member {
        Ok(member) => members.push(member),
        Err(why) => mistakes.push(GroupError::Member(format!("{place}: {why}"))),
    };
    for (index, id) in named.endpoint_ids.iter().enumerate() {
        let member = match id {
            0 => Err("0 is no endpoint".to_owned()),
            id => Ok(Member::Endpoint(*id)),
        };
        add(format!("endpoint_ids[{index}]"), member);
    }
    for (index, text) in named.addresses.iter().enumerate() {
        add(format!("addresses[{index}]"), prefix(text).map(Member::Addresses));
    }
    for (index, identity) in named.identities.iter().enumerate() {
        let member = match identity {
            0 => Err("0 is no identity".to_owned()),
            identity => Ok(Member::Identity(SecurityId(*identity))),
        };
        add(format!("identities[{index}]"), member);
    }
    (members, mistakes)
}

/// An address, or a prefix in CIDR form without host bits.
fn prefix(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| format!("{text:?} is neither an IP address nor a prefix"))?,
    };
    match net.addr() {
        _ if net != net.trunc() => Err(format!("{text:?} has bits set after its prefix; write {}", net.trunc())),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Err(format!("{text:?} is an IPv4 address in IPv6 form; write it as IPv4"))
        }
        _ => Ok(net),
    }
}

/// Who has claimed which name and member. The first to claim has it: a later group that wants the same is refused as a
/// whole.
#[derive(Debug, Default)]
pub struct Claims {
    names: HashSet<Arc<str>>,
    members: HashMap<Member, Arc<str>>,
    pools: Pools,
    promised: Promised,
}

/// What is guaranteed to all together.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    connections: u64,
    in_flight: u64,
    memory_bytes: u64,
    cpu_millis: u64,
}

impl Promised {
    /// Adds what there is room for, and takes out of `guarantee` whatever there is not, each by itself. Returns what is wrong with that.
    fn add(&mut self, guarantee: &mut Guarantee, pools: Pools) -> Vec<GroupError> {
        let mut left_out = Vec::new();
        let Guarantee { connections, in_flight, memory_bytes, cpu_millis } = guarantee;
        for (promised, places, name, key, total) in [
            (&mut self.connections, connections, "connections", "max_connections", pools.connections),
            (&mut self.in_flight, in_flight, "in_flight", "limits.in_flight", pools.in_flight),
        ] {
            let sum = *promised + places.map_or(0, |places| u64::from(places.get()));
            if sum > u64::from(total) && places.take().is_some() {
                left_out.push(GroupError::Guarantee { places: name, promised: sum, key, total });
            } else {
                *promised = sum;
            }
        }
        let memory = self.memory_bytes.saturating_add(memory_bytes.map_or(0, NonZeroU64::get));
        match pools.memory_to_guarantee() {
            Some(total) if memory > total && memory_bytes.take().is_some() => {
                let end = pools.memory.unwrap_or_default();
                left_out.push(GroupError::GuaranteedMemory { promised: memory, end, total });
            }
            _ => self.memory_bytes = memory,
        }
        let cpu = self.cpu_millis + cpu_millis.map_or(0, |millis| u64::from(millis.get()));
        let total = pools.cpu_millis();
        match cpu > total && cpu_millis.take().is_some() {
            true => left_out.push(GroupError::GuaranteedCpu { promised: cpu, workers: pools.workers, total }),
            false => self.cpu_millis = cpu,
        }
        left_out
    }
}

impl Claims {
    /// Of nobody yet, where there is so much to guarantee.
    pub fn within(pools: Pools) -> Self {
        Self { pools, ..Self::default() }
    }

    /// Whether a group has this name.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Who has this member.
    pub fn owner(&self, member: &Member) -> Option<&Arc<str>> {
        self.members.get(member)
    }

    /// Takes everything that the group names, or nothing. What it is guaranteed beyond what there is, it is guaranteed no more; returns
    /// what is wrong with that.
    ///
    /// # Errors
    /// Another group has some of it.
    pub fn take(&mut self, group: &mut Group) -> Result<Vec<GroupError>, GroupError> {
        if self.names.contains(&group.name) {
            return Err(GroupError::NameTaken(Arc::clone(&group.name)));
        }
        for member in &group.members {
            if let Some(owner) = self.members.get(member) {
                return Err(GroupError::MemberTaken { member: *member, owner: Arc::clone(owner) });
            }
        }
        if self.names.len() >= super::MAX_GROUPS {
            return Err(GroupError::TooMany(super::MAX_GROUPS));
        }
        self.names.insert(Arc::clone(&group.name));
        self.members.extend(group.members.iter().map(|member| (*member, Arc::clone(&group.name))));
        Ok(self.promised.add(&mut group.settings.guarantee, self.pools))
    }
}
