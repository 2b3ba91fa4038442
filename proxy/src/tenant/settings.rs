//! What a tenant may use. A value that is not set is `None`: nothing is guaranteed, nothing is limited.

use std::num::{NonZeroU32, NonZeroU64};

use serde::Serialize;
use tollgate_proto::tenant as proto;
use tollgate_schedule::Part;

use super::commons::Space;
use super::limit;

/// Largest weight.
pub const MAX_WEIGHT: u32 = 1000;

/// Settings that this version acts on, by their paths. The others are read, checked and shown, and each is said to have no
/// effect yet: see [`Settings::without_effect`].
pub(super) const ENFORCED: &[&str] = &[
    "weight",
    "shadow",
    "isolation",
    "guarantee.connections",
    "guarantee.in_flight",
    "guarantee.cpu_millis",
    "ceilings.connections",
    "ceilings.new_connections",
    "ceilings.requests",
    "ceilings.in_flight",
    "ceilings.long_streams",
    "ceilings.bytes",
    "ceilings.log_bytes",
    "ceilings.header_bytes",
    "ceilings.cpu_millis",
    "ceilings.queue_delay_millis",
    "ceilings.upstream_connections",
    "guarantee.memory_bytes",
    "ceilings.memory_bytes",
    "policy.rules",
    "policy.expression_bytes",
    "policy.program_bytes",
    "policy.compile_millis_per_second",
    "policy.memory_bytes",
];

/// Everything that can be said about a tenant beside who belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Share of what is scarce, relative to others: 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// What it always has.
    pub guarantee: Guarantee,
    /// What it never exceeds.
    pub ceilings: Ceilings,
    /// What compiling its policies may cost.
    pub policy: PolicyBudget,
    /// Its limits only count what they would refuse.
    pub shadow: bool,
    /// How far it is kept apart.
    pub isolation: Isolation,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weight: 1,
            guarantee: Guarantee::default(),
            ceilings: Ceilings::default(),
            policy: PolicyBudget::default(),
            shadow: false,
            isolation: Isolation::Auto,
        }
    }
}

/// So many a second, and how many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// A second.
    pub per_second: NonZeroU64,
    /// At once.
    pub burst: NonZeroU64,
}

/// Floors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guarantee {
    /// Open connections of clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<NonZeroU32>,
    /// Requests under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<NonZeroU32>,
    /// Bytes of buffers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<NonZeroU64>,
    /// Thousandths of a CPU, of all workers together and the same part of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<NonZeroU32>,
}

impl Settings {
    /// What it may not exceed, setting by setting, in words.
    pub fn ceilings_in_words(&self) -> Vec<String> {
        limit::ceilings(&self.ceilings)
    }
}

impl Guarantee {
    /// The part of each of so many workers' time.
    pub(crate) fn of_a_worker(&self, workers: u32) -> Part {
        let millionths = |millis: NonZeroU32| u64::from(millis.get()) * 1000 / u64::from(workers.max(1));
        let millionths = self.cpu_millis.map_or(0, |millis| millionths(millis).max(1));
        Part::of_millionths(u32::try_from(millionths).unwrap_or(u32::MAX))
    }

    /// Of places.
    pub(super) fn of(&self, space: Space) -> Option<NonZeroU32> {
        match space {
            Space::Connections => self.connections,
            Space::InFlight => self.in_flight,
        }
    }
}

/// Contracts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ceilings {
    /// Open connections of clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<NonZeroU32>,
    /// New connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_connections: Option<Rate>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Rate>,
    /// Requests under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<NonZeroU32>,
    /// Tunnels, WebSockets and other exchanges without an end in sight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_streams: Option<NonZeroU32>,
    /// Bytes of bodies and tunnels, both ways together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Rate>,
    /// Bytes of one request's head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_bytes: Option<NonZeroU32>,
    /// Bytes of buffers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<NonZeroU64>,
    /// Thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<NonZeroU32>,
    /// Time for which its tasks wait behind each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_delay_millis: Option<NonZeroU32>,
    /// Connections to one destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_connections: Option<NonZeroU32>,
    /// Bytes of access log entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<Rate>,
}

/// What compiling policies may cost, for each endpoint of the tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyBudget {
    /// Rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<NonZeroU32>,
    /// Bytes of one regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expression_bytes: Option<NonZeroU32>,
    /// Bytes of one compiled regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_bytes: Option<NonZeroU32>,
    /// Milliseconds of compiling, each second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compile_millis_per_second: Option<NonZeroU32>,
    /// Bytes that compiled policies take, of all endpoints together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<NonZeroU64>,
}

/// How far a tenant is kept apart from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// By what is seen of it.
    #[default]
    Auto,
    /// Never.
    Shared,
    /// Always on threads apart.
    Lane,
}

impl Settings {
    /// Whether anything is set that a limit asks about.
    pub(super) fn concern_limits(&self) -> bool {
        self.ceilings != Ceilings::default() || self.guarantee != Guarantee::default() || self.shadow
    }

    /// What a resource says, and what of it is out of its range: the field and what is wrong with it. Such a setting has its default.
    pub(super) fn of_resource(tenant: &proto::Tenant) -> (Self, Vec<String>) {
        let mut mistakes = Vec::new();
        let weight = match tenant.weight {
            0 => 1,
            weight @ 1..=MAX_WEIGHT => weight,
            weight => {
                mistakes.push(format!("weight: {weight} is not from 1 to {MAX_WEIGHT}"));
                1
            }
        };
        let isolation = match tenant.isolation {
            0 => Isolation::Auto,
            1 => Isolation::Shared,
            2 => Isolation::Lane,
            other => {
                mistakes.push(format!("isolation: this version does not know the value {other}"));
                Isolation::Auto
            }
        };
        let guarantee = tenant.guarantee.unwrap_or_default();
        let policy = tenant.policy.unwrap_or_default();
        let settings = Self {
            weight,
            guarantee: Guarantee {
                connections: NonZeroU32::new(guarantee.connections),
                in_flight: NonZeroU32::new(guarantee.in_flight),
                memory_bytes: NonZeroU64::new(guarantee.memory_bytes),
                cpu_millis: NonZeroU32::new(guarantee.cpu_millis),
            },
            ceilings: Ceilings::of_resource(&tenant.ceilings.unwrap_or_default(), &mut mistakes),
            policy: PolicyBudget {
                rules: NonZeroU32::new(policy.rules),
                expression_bytes: NonZeroU32::new(policy.expression_bytes),
                program_bytes: NonZeroU32::new(policy.program_bytes),
                compile_millis_per_second: NonZeroU32::new(policy.compile_millis_per_second),
                memory_bytes: NonZeroU64::new(policy.memory_bytes),
            },
            shadow: tenant.shadow,
            isolation,
        };
        (settings, mistakes)
    }
}

impl Ceilings {
    /// Each the lower one of both.
    pub(super) fn lower_of(&self, other: &Self) -> Self {
        fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            }
        }
        let rate = |one: Option<Rate>, other: Option<Rate>| {
            let part = |of: fn(Rate) -> NonZeroU64| lower(one.map(of), other.map(of));
            Some(Rate { per_second: part(|rate| rate.per_second)?, burst: part(|rate| rate.burst)? })
        };
        Self {
            connections: lower(self.connections, other.connections),
            new_connections: rate(self.new_connections, other.new_connections),
            requests: rate(self.requests, other.requests),
            in_flight: lower(self.in_flight, other.in_flight),
            long_streams: lower(self.long_streams, other.long_streams),
            bytes: rate(self.bytes, other.bytes),
            header_bytes: lower(self.header_bytes, other.header_bytes),
            memory_bytes: lower(self.memory_bytes, other.memory_bytes),
            cpu_millis: lower(self.cpu_millis, other.cpu_millis),
            queue_delay_millis: lower(self.queue_delay_millis, other.queue_delay_millis),
            upstream_connections: lower(self.upstream_connections, other.upstream_connections),
            log_bytes: rate(self.log_bytes, other.log_bytes),
        }
    }

    /// Those that are rates, for whoever counts what is used of them.
    pub(super) fn rates(&self) -> [Option<Rate>; 5] {
        [self.new_connections, self.requests, self.cpu(), self.bytes, self.log_bytes]
    }

    /// Nanoseconds of processor time, a tenth of a second's at once.
    pub(crate) fn cpu(&self) -> Option<Rate> {
        let per_second = NonZeroU64::from(self.cpu_millis?).saturating_mul(NonZeroU64::new(1_000_000)?);
        Some(Rate { per_second, burst: NonZeroU64::new(per_second.get() / 10)? })
    }

    fn of_resource(ceilings: &proto::Ceilings, mistakes: &mut Vec<String>) -> Self {
        let mut rate = |name: &str, rate: Option<proto::Rate>| {
            let rate = rate?;
            let Some(per_second) = NonZeroU64::new(rate.per_second) else {
                mistakes.push(format!("ceilings.{name}.per_second: is 0; leave {name} out for no ceiling"));
                return None;
            };
            Some(Rate { per_second, burst: NonZeroU64::new(rate.burst).unwrap_or(per_second) })
        };
        Self {
            connections: NonZeroU32::new(ceilings.connections),
            new_connections: rate("new_connections", ceilings.new_connections),
            requests: rate("requests", ceilings.requests),
            in_flight: NonZeroU32::new(ceilings.in_flight),
            long_streams: NonZeroU32::new(ceilings.long_streams),
            bytes: rate("bytes", ceilings.bytes),
            header_bytes: NonZeroU32::new(ceilings.header_bytes),
            memory_bytes: NonZeroU64::new(ceilings.memory_bytes),
            cpu_millis: NonZeroU32::new(ceilings.cpu_millis),
            queue_delay_millis: NonZeroU32::new(ceilings.queue_delay_millis),
            upstream_connections: NonZeroU32::new(ceilings.upstream_connections),
            log_bytes: rate("log_bytes", ceilings.log_bytes),
        }
    }
}
