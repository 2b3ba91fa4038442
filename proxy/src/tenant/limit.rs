//! A limit that was reached, in words: which setting it is, and its value. Whoever reads a record need not look for them.

use std::num::{NonZeroU32, NonZeroU64};

use super::{Ceilings, Pools, Rate, Settings, panics};
use crate::reason::Reason;

/// The setting that `reason` is about, by the name that it has in the configuration. `None` where it is no limit, or none is set.
pub(super) fn of(reason: Reason, is_request: bool, settings: &Settings, pools: Pools) -> Option<String> {
    let ceilings = &settings.ceilings;
    match reason {
        Reason::TenantConnections => count("connections", ceilings.connections),
        Reason::TenantConnectionRate => rate("new_connections", ceilings.new_connections, ""),
        Reason::TenantRate => rate("requests", ceilings.requests, ""),
        Reason::TenantInFlight => count("in_flight", ceilings.in_flight),
        Reason::TenantLongStreams => count("long_streams", ceilings.long_streams),
        Reason::TenantCpu => ceilings.cpu_millis.map(|millis| {
            let delay = delay(ceilings).map_or(String::new(), |delay| format!(", or {delay}"));
            format!("ceilings.cpu: {millis}m{delay}")
        }),
        Reason::TenantQueueDelay => delay(ceilings),
        Reason::TenantHeaders => ceilings.header_bytes.map(|bytes| format!("ceilings.header: {bytes} bytes")),
        Reason::TenantUpstreams => count("upstream_connections", ceilings.upstream_connections),
        Reason::TenantBandwidth => rate("bytes", ceilings.bytes, " bytes"),
        Reason::TenantMemory => Some(memory(ceilings.memory_bytes)),
        Reason::TenantShare => {
            let (key, total) = if is_request { ("limits.in_flight", pools.in_flight) } else { connections(pools) };
            Some(format!("its share of {key}: {total}"))
        }
        Reason::ConnectionLimit => {
            let (key, total) = connections(pools);
            Some(format!("{key}: {total}"))
        }
        Reason::IdleReaped | Reason::SlowReader => {
            let (key, total) = connections(pools);
            let ceiling = count("connections", ceilings.connections).map(|ceiling| format!("{ceiling}, "));
            Some(format!("limits.idle_connections of {}{key}: {total}", ceiling.unwrap_or_default()))
        }
        Reason::TenantIsolated => Some(panics::in_words()),
        _ => None,
    }
}

/// Everything that a tenant may not exceed, by the names that settings have in the configuration.
pub(super) fn ceilings(ceilings: &Ceilings) -> Vec<String> {
    [
        count("connections", ceilings.connections),
        rate("new_connections", ceilings.new_connections, ""),
        rate("requests", ceilings.requests, ""),
        count("in_flight", ceilings.in_flight),
        count("long_streams", ceilings.long_streams),
        rate("bytes", ceilings.bytes, " bytes"),
        ceilings.header_bytes.map(|bytes| format!("ceilings.header: {bytes} bytes")),
        ceilings.memory_bytes.map(|bytes| format!("ceilings.memory: {bytes} bytes")),
        ceilings.cpu_millis.map(|millis| format!("ceilings.cpu: {millis}m")),
        delay(ceilings),
        count("upstream_connections", ceilings.upstream_connections),
        rate("log_bytes", ceilings.log_bytes, " bytes"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn delay(ceilings: &Ceilings) -> Option<String> {
    ceilings.queue_delay_millis.map(|millis| format!("ceilings.queue_delay: {millis}ms"))
}

fn connections(pools: Pools) -> (&'static str, u32) {
    ("max_connections", pools.connections)
}

fn count(name: &str, most: Option<NonZeroU32>) -> Option<String> {
    most.map(|most| format!("ceilings.{name}: {most}"))
}

fn rate(name: &str, rate: Option<Rate>, unit: &str) -> Option<String> {
    rate.map(|Rate { per_second, burst }| format!("ceilings.{name}: {per_second}{unit}/s, burst {burst}"))
}

/// Which of the two it was is not known any more: both hold at any time.
fn memory(ceiling: Option<NonZeroU64>) -> String {
    let left = "what limits.memory leaves for it";
    ceiling.map_or_else(|| left.to_owned(), |most| format!("ceilings.memory: {most} bytes, or {left}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::Ceilings;

    #[test]
    fn every_limit_has_its_setting_and_value() {
        let (two, many) = (NonZeroU32::new(2), NonZeroU64::new(4000).unwrap());
        let rate = Some(Rate { per_second: NonZeroU64::new(2000).unwrap(), burst: many });
        let ceilings = Ceilings {
            connections: two,
            new_connections: rate,
            requests: rate,
            in_flight: two,
            long_streams: two,
            bytes: rate,
            header_bytes: two,
            memory_bytes: Some(many),
            cpu_millis: two,
            queue_delay_millis: two,
            upstream_connections: two,
            log_bytes: None,
        };
        let all = super::ceilings(&Ceilings { log_bytes: rate, ..ceilings });
        assert_eq!((all.len(), &*all[2]), (12, "ceilings.requests: 2000/s, burst 4000"));
        let settings = Settings { ceilings, ..Settings::default() };
        let pools = Pools { connections: 100, in_flight: 50, ..Pools::default() };
        let said = |reason| of(reason, true, &settings, pools);
        assert_eq!(said(Reason::TenantRate).unwrap(), "ceilings.requests: 2000/s, burst 4000");
        assert_eq!(said(Reason::TenantConnections).unwrap(), "ceilings.connections: 2");
        assert_eq!(said(Reason::TenantShare).unwrap(), "its share of limits.in_flight: 50");
        assert_eq!(of(Reason::TenantShare, false, &settings, pools).unwrap(), "its share of max_connections: 100");
        assert_eq!(said(Reason::TenantCpu).unwrap(), "ceilings.cpu: 2m, or ceilings.queue_delay: 2ms");
        assert_eq!(said(Reason::TenantQueueDelay).unwrap(), "ceilings.queue_delay: 2ms");
        let idle = "limits.idle_connections of ceilings.connections: 2, max_connections: 100";
        assert_eq!(said(Reason::IdleReaped).unwrap(), idle);
        // No limit goes without, but those that say themselves what they counted.
        let silent = [Reason::FrameFlood, Reason::ResetFlood];
        for reason in Reason::ALL.iter().filter(|reason| !silent.contains(reason)) {
            assert_eq!(said(*reason).is_some(), reason.is_limit(), "{reason:?}");
        }
        assert_eq!(of(Reason::TenantRate, true, &Settings::default(), pools), None, "it was taken away meanwhile");
    }
}
