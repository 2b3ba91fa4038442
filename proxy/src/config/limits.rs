//! `limits`: what hostile traffic may cost, whoever sends it.

use std::time::Duration;

use super::document::Value;
use super::read::{Field, Section};
use super::scalar;

/// Limits of the process that hold for every connection alike; `docs/limits.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Count what is over a limit, and let it pass.
    pub shadow: bool,
    /// Requests under way in the whole process, of which each tenant has its share; at least 1.
    pub in_flight: u32,
    /// HTTP/2 frames of a client that move no request, beyond what its requests pay for, per connection; `None`: any.
    pub http2_control_frames: Option<Rate>,
    /// HTTP/2 streams that a client resets before they are answered, per connection; `None`: any.
    pub http2_resets: Option<Rate>,
    /// Connections that wait for their client while places run short; `None`: they stay.
    pub idle_connections: Option<IdleLimits>,
    /// How much memory the process may have.
    pub memory: MemoryLimit,
    /// Workers keep below the processor time that the control group gives, if it has an end and is enough for that.
    pub cpu_quota: bool,
    /// Bytes that the kernel holds of what a peer has not been sent yet; `None`: as many as it likes.
    pub unsent: Option<u32>,
}

/// How much memory the process may have; tenants share seven tenths of it, without what the process takes for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// As much as the control group that it is in.
    #[default]
    OfControlGroup,
    /// So many bytes.
    Bytes(u64),
    /// Without an end.
    Off,
}

/// When an idle connection has to make room. As the last places are taken, all times shrink to a sixteenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleLimits {
    /// Of `max_connections`; up to there nobody has to.
    pub above_percent: u32,
    /// Time for a client to begin its first request.
    pub before_request: Duration,
    /// Time for a client to take more of what it is sent.
    pub while_not_reading: Duration,
    /// Time between two requests.
    pub between_requests: Duration,
}

impl Default for IdleLimits {
    fn default() -> Self {
        Self {
            above_percent: 87,
            before_request: Duration::from_secs(10),
            while_not_reading: Duration::from_secs(30),
            between_requests: Duration::from_secs(60),
        }
    }
}

/// So many per second in the long run, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; at least 1.
    pub per_second: u32,
    /// At once; at least 1.
    pub burst: u32,
}

impl Default for Limits {
    /// Far above what clients do, and far below what costs others anything: a control frame takes half a microsecond.
    fn default() -> Self {
        Self {
            shadow: false,
            in_flight: 100_000,
            http2_control_frames: Some(Rate { per_second: 500, burst: 2000 }),
            http2_resets: Some(Rate { per_second: 200, burst: 1000 }),
            idle_connections: Some(IdleLimits::default()),
            memory: MemoryLimit::default(),
            cpu_quota: true,
            unsent: Some(128 << 10),
        }
    }
}

const EXAMPLE: &str = "{per_second: 500, burst: 2000}, or off";

pub(super) fn limits(top: &mut Section<'_>) -> Limits {
    let default = Limits::default();
    let field = top.field("limits");
    let Some(mut section) = field.and_then(|field| field.section("{mode: shadow}")) else { return default };
    let limits = Limits {
        shadow: section
            .read("mode", default.shadow, |value| scalar::word(value, &[("enforce", false), ("shadow", true)])),
        in_flight: section.read("in_flight", default.in_flight, |value| {
            scalar::integer(value, 1, 1_000_000_000).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
        }),
        http2_control_frames: rate(&mut section, "http2_control_frames", default.http2_control_frames),
        http2_resets: rate(&mut section, "http2_resets", default.http2_resets),
        idle_connections: idle(&mut section, default.idle_connections),
        memory: memory(&mut section),
        cpu_quota: cpu_quota(&mut section, default.cpu_quota),
        unsent: unsent(&mut section, default.unsent),
    };
    section.finish(&[]);
    limits
}

fn rate(section: &mut Section<'_>, key: &'static str, default: Option<Rate>) -> Option<Rate> {
    let Some(field) = section.field(key) else { return default };
    if is_off(&field) {
        return None;
    }
    let (Some(mut section), Some(default)) = (field.section(EXAMPLE), default) else { return default };
    let number = |value: &Value| {
        scalar::integer(value, 1, 1_000_000_000).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    };
    let rate = Rate {
        per_second: section.read("per_second", default.per_second, number),
        burst: section.read("burst", default.burst, number),
    };
    section.finish(&[]);
    Some(rate)
}

fn idle(section: &mut Section<'_>, default: Option<IdleLimits>) -> Option<IdleLimits> {
    let Some(field) = section.field("idle_connections") else { return default };
    if is_off(&field) {
        return None;
    }
    let mut section = field.section("{above_percent: 87}, or off")?;
    let default = IdleLimits::default();
    let idle = IdleLimits {
        above_percent: section.read("above_percent", default.above_percent, |value| {
            scalar::integer(value, 1, 99).map(|number| u32::try_from(number).unwrap_or_default())
        }),
        before_request: section.read("before_request", default.before_request, scalar::duration),
        while_not_reading: section.read("while_not_reading", default.while_not_reading, scalar::duration),
        between_requests: section.read("between_requests", default.between_requests, scalar::duration),
    };
    section.finish(&[]);
    Some(idle)
}

fn memory(section: &mut Section<'_>) -> MemoryLimit {
    match section.field("memory") {
        None => MemoryLimit::default(),
        Some(field) if is_off(&field) => MemoryLimit::Off,
        Some(field) if matches!(&field.node.value, Value::Text(text) if text == "cgroup") => {
            MemoryLimit::OfControlGroup
        }
        Some(field) => field.read(least).map_or_else(MemoryLimit::default, MemoryLimit::Bytes),
    }
}

fn cpu_quota(section: &mut Section<'_>, default: bool) -> bool {
    match section.field("cpu_quota") {
        None => default,
        Some(field) if is_off(&field) => false,
        Some(field) => field.read(|value| scalar::word(value, &[("cgroup", true), ("off", false)])).unwrap_or(default),
    }
}

fn unsent(section: &mut Section<'_>, default: Option<u32>) -> Option<u32> {
    match section.field("unsent") {
        None => default,
        Some(field) if is_off(&field) => None,
        Some(field) => field.read(enough_to_send).or(default),
    }
}

/// With less, each write would wait for the one before.
fn enough_to_send(value: &Value) -> Result<u32, String> {
    let bytes = scalar::bytes(value)?;
    let wrong = || format!("{bytes} bytes are no use; write 16KiB to 1GiB, or off");
    u32::try_from(bytes).ok().filter(|bytes| (16 << 10..=1 << 30).contains(bytes)).ok_or_else(wrong)
}

/// With less, nobody would be served.
fn least(value: &Value) -> Result<u64, String> {
    match scalar::bytes(value)? {
        bytes if bytes >= 32 << 20 => Ok(bytes),
        bytes => Err(format!("{bytes} bytes are not enough to serve anybody; write 32MiB or more, or off")),
    }
}

/// YAML 1.1 takes the word for a boolean.
fn is_off(field: &Field<'_>) -> bool {
    match &field.node.value {
        Value::Text(text) => text == "off",
        value => matches!(value, Value::Bool(false)),
    }
}
