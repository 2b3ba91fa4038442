//! What the admin endpoint shows of tenants.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use tollgate_policy::EndpointKey;
use tollgate_schedule::{WORKS, Work};

use crate::control::memory::MemoryEnd;
use crate::control::{Control, World, payer};
use crate::listener::connection::tenant_of;
use crate::metrics::Attribution;
use crate::reason::Reason;
use crate::tenant::{Group, Kind, Registry, Tally, TenantId, Totals};

/// The part of `/status`.
pub(super) fn status(tenants: &Registry) -> Value {
    let pools = tenants.books().pools();
    let everybody = std::iter::once(("default", tenants.table().default_settings().without_effect(pools)));
    let groups = tenants.groups().map(|(_, group)| (&*group.name, group.without_effect(pools)));
    let without_effect = everybody
        .chain(groups)
        .filter_map(|(name, settings)| (!settings.is_empty()).then(|| json!({ "tenant": name, "settings": settings })));
    json!({
        "groups": tenants.groups().count(),
        "endpoints": tenants.table().endpoints(),
        "endpoints_sharing_accounts": tenants.crowded(),
        "refused": refused(tenants),
        "settings_without_effect": without_effect.collect::<Value>(),
    })
}

/// The part of `/status` about memory: without an end, tenants have only the ceilings that they are given.
pub(super) fn memory(tenants: &Registry, end: MemoryEnd) -> Value {
    let room = tenants.books().room();
    json!({
        "limit_bytes": end.bytes,
        "limit_from": end.source,
        "tenants_limit_bytes": room.limit(),
        "tenants_bytes": room.used(),
    })
}

/// The part of `/status` about what compiled policies take of memory, and which deny for want of it.
pub(super) fn policy_memory(control: &Control) -> Value {
    let (bytes, most) = control.policy_memory();
    let world = control.store().load().clone();
    let names = control.store().tenants().books().names();
    let names = names.load();
    let without_room = world.policy.endpoints().filter_map(|policy| {
        let tenant = payer(policy, &world.tenants);
        Some(json!({
            "policy": policy.resource(),
            "endpoint_id": policy.endpoint_id(),
            "tenant": names.of(tenant),
            "needed_bytes": policy.without_room()?,
        }))
    });
    json!({ "bytes": bytes, "limit_bytes": most, "without_room": without_room.collect::<Value>() })
}

/// All of `/tenants`; with the endpoints that have policies in a world, if one is given.
pub(super) fn all(tenants: &Registry, process: Attribution, cpu_quota: Value, world: Option<&World>) -> Value {
    let groups: HashMap<TenantId, &Group> = tenants.groups().map(|(id, group)| (id, &**group)).collect();
    let tallies = tenants.books().tallies();
    let mut endpoints = world.map(endpoints);
    let rows = tallies.iter().map(|tally| {
        let mut entry = tenant(tally, tenants, groups.get(&tally.id).copied());
        if let Some(endpoints) = &mut endpoints {
            entry["endpoints"] = endpoints.remove(&tally.id).unwrap_or_default().into();
        }
        entry
    });
    json!({
        "endpoints": tenants.table().endpoints(),
        "endpoints_sharing_accounts": tenants.crowded(),
        "refused": refused(tenants),
        "tenants": rows.collect::<Value>(),
        "process": {
            "cpu_seconds": process.cpu_seconds,
            "overhead_seconds": Map::from_iter(
                process.overhead_seconds.into_iter().map(|(kind, seconds)| (kind.to_owned(), json!(seconds))),
            ),
            "unattributed_ratio": process.unattributed_ratio,
            "run_delay_seconds": process.run_delay_seconds,
            "cpu_quota": cpu_quota,
        },
    })
}

/// Whose policies each tenant owns, by the numbers of endpoints: of one with several addresses those that are the tenant's.
fn endpoints(world: &World) -> HashMap<TenantId, Vec<Value>> {
    let mut all: BTreeMap<(u64, TenantId), Vec<String>> = BTreeMap::new();
    for policy in world.policy.endpoints() {
        for key in policy.keys() {
            let name = match key {
                EndpointKey::Address(address) => address.to_string(),
                EndpointKey::Name(name) => name.to_string(),
            };
            let addresses = all.entry((policy.endpoint_id(), tenant_of(world, key))).or_default();
            // Of several policies that claim it.
            if !addresses.contains(&name) {
                addresses.push(name);
            }
        }
    }
    let mut of_tenant: HashMap<TenantId, Vec<Value>> = HashMap::new();
    for ((number, tenant), addresses) in all {
        of_tenant.entry(tenant).or_default().push(json!({ "endpoint_id": number, "addresses": addresses }));
    }
    of_tenant
}

fn refused(tenants: &Registry) -> Value {
    let refused = tenants.refused().iter();
    refused
        .map(|refused| json!({ "origin": refused.origin, "reason": refused.reason, "whole": refused.whole }))
        .collect()
}

fn tenant(tally: &Tally, tenants: &Registry, group: Option<&Group>) -> Value {
    let totals = &tally.totals;
    let [forwarded, denied, limited, failed] = totals.requests;
    let settings = tenants.table().settings(tally.id);
    let mut entry = json!({
        "name": &*tally.name,
        "kind": tally.kind.as_str(),
        "gone": tally.gone,
        "weight": settings.weight,
        "compile_seconds": totals.compile_ns as f64 / 1e9,
        "connections": totals.connections,
        "connections_open": totals.open,
        "connection_seconds": totals.connection_us as f64 / 1e6,
        "requests_in_flight": totals.in_flight,
        "requests": { "forwarded": forwarded, "denied": denied, "limited": limited, "failed": failed },
        "bytes": { "up": totals.bytes_up, "down": totals.bytes_down },
        "refusals": by_reason(totals.refusals()),
        "denied": refused_by(totals, false),
        "limited": refused_by(totals, true),
        "would_limit": totals.shadowed().map(|(_, count)| count).sum::<u64>(),
        "shadow_refusals": by_reason(totals.shadowed()),
        "log_lost": log_lost(totals),
        "paced": totals.paced,
        "paced_seconds": totals.paced_us as f64 / 1e6,
        "paced_now": totals.paced_now,
        "panics": totals.panics,
        "isolated_seconds_left": totals.apart.as_secs_f64(),
        "memory_bytes": totals.memory,
        "memory_byte_seconds": totals.memory_byte_ms as f64 / 1e3,
        "policy_bytes": totals.policy_bytes,
        "policy_rules": totals.policy_rules,
        "policy_changed": (totals.policy_changed_ms > 0).then_some(totals.policy_changed_ms as f64 / 1e3),
    });
    if tenants.books().pools().fairness {
        entry["cpu_seconds"] = json!(totals.cpu_ns as f64 / 1e9);
        entry["cpu_seconds_by_kind"] = by_kind(totals.cpu_by_kind).into();
        entry["queue_seconds"] = json!(totals.waited_ns as f64 / 1e9);
        entry["cpu_held_seconds"] = json!(totals.held_ns as f64 / 1e9);
        entry["polls"] = json!(totals.polls);
    }
    entry["lane"] = match totals.lanes {
        0 => Value::Null,
        lanes => json!({ "workers": lanes, "seconds": totals.lane_us as f64 / 1e6 }),
    };
    let moves = |to_lane| totals.lane_moves(to_lane).map(|(reason, count)| (reason.to_owned(), count.into())).collect();
    entry["lane_moves"] = json!({ "to_lane": Value::Object(moves(true)), "back": Value::Object(moves(false)) });
    if let Some(group) = group {
        entry["members"] = group.members.iter().map(ToString::to_string).collect();
    }
    if matches!(tally.kind, Kind::Group | Kind::Endpoint) && !tally.gone {
        entry["settings"] = json!(settings);
        let pools = tenants.books().pools();
        let of_members = group.map(|group| group.without_effect(pools));
        entry["settings_without_effect"] = of_members.unwrap_or_else(|| settings.without_effect(pools)).into();
    }
    entry
}

/// Requests and connections that limits refused, or else policy.
fn refused_by(totals: &Totals, limits: bool) -> u64 {
    totals.refusals().filter(|(reason, _)| reason.is_limit() == limits).map(|(_, count)| count).sum()
}

fn by_kind(spent: [u64; WORKS]) -> Map<String, Value> {
    Work::ALL.into_iter().zip(spent).map(|((_, name), spent)| (name.to_owned(), json!(spent as f64 / 1e9))).collect()
}

/// By reason, of both logs.
fn log_lost(totals: &Totals) -> Map<String, Value> {
    let mut lost = Map::new();
    for ([reason, ..], count) in totals.log_lost() {
        let before = lost.get(reason).and_then(Value::as_u64).unwrap_or_default();
        lost.insert(reason.to_owned(), (before + count).into());
    }
    lost
}

fn by_reason(counts: impl Iterator<Item = (Reason, u64)>) -> Map<String, Value> {
    counts.map(|(reason, count)| (reason.code().to_owned(), count.into())).collect()
}
