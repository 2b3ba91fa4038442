//! What tenants have used, as families. The series are bounded: [`MAX_SERIES`] tenants have their own, and all others are
//! one, `overflow`, which never goes back.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use tollgate_schedule::{DELAY_BOUNDS, Work};

use super::Families;
use super::collector::{Encoder, counter};
use crate::flow::ENDINGS;
use crate::tenant::{Kind, Tally, Totals};

/// The series of all tenants without one.
const OVERFLOW: &str = "overflow";

/// One tenant, or all that have no series.
struct Row {
    tenant: Arc<str>,
    totals: Totals,
}

impl Families {
    pub(super) fn tenants(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let (tallies, retired) = self.tenants.tallies_and_retired();
        let mut present = families.gauge("tollgate_tenants", "Tenants that there are now, by kind")?;
        for kind in [Kind::Group, Kind::Endpoint, Kind::Shared] {
            let count = tallies.iter().filter(|tally| tally.kind == kind && !tally.gone).count() as u64;
            present.encode_family(&[("kind", kind.as_str())])?.encode_gauge(&count)?;
        }
        let rows = rows(tallies, retired);
        one(families, &rows, "connections", "Accepted downstream connections by tenant", |row| row.connections)?;
        panics(families, &rows)?;
        gauge(families, &rows, "connections_open", "Downstream connections open now, by tenant", |row| row.open)?;
        gauge(families, &rows, "requests_in_flight", "HTTP requests under way, by tenant", |row| row.in_flight)?;
        gauge(families, &rows, "lanes", "Workers in whose lane a tenant is now", |row| row.lanes)?;
        let help = "Moves of tenants to lanes and back, by reason";
        let mut moves = families.counter("tollgate_tenant_lane_moves", help)?;
        for (row, to_lane) in rows.iter().flat_map(|row| [(row, true), (row, false)]) {
            for (reason, count) in row.totals.lane_moves(to_lane) {
                let to = if to_lane { "lane" } else { "worker" };
                counter(&mut moves, &[("tenant", &*row.tenant), ("to", to), ("reason", reason)], count)?;
            }
        }
        memory(families, &rows)?;
        bytes(families, &rows)?;
        logs(families, &rows)?;
        policies(families, &rows)?;
        let help = "Time for which downstream connections were open, by tenant";
        let mut seconds = families.family("tollgate_tenant_connection_seconds", help, MetricType::Counter)?;
        for row in &rows {
            let value = row.totals.connection_us as f64 / 1e6;
            seconds.encode_family(&[("tenant", &*row.tenant)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        if self.tenants.pools().fairness {
            measured(families, &rows)?;
        }
        let mut requests = families.counter("tollgate_tenant_requests", "Finished HTTP requests by tenant")?;
        for row in &rows {
            for (outcome, count) in ENDINGS.into_iter().zip(row.totals.requests) {
                counter(&mut requests, &[("tenant", &*row.tenant), ("outcome", outcome)], count)?;
            }
        }
        let help = "Refused requests and connections by tenant and reason";
        let mut refusals = families.counter("tollgate_tenant_refusals", help)?;
        for row in &rows {
            for (reason, count) in row.totals.refusals() {
                counter(&mut refusals, &[("tenant", &*row.tenant), ("reason", reason.code())], count)?;
            }
        }
        let help = "What limits in shadow would have refused, by tenant and reason";
        let mut shadowed = families.counter("tollgate_tenant_shadow_refusals", help)?;
        for row in &rows {
            for (reason, count) in row.totals.shadowed() {
                counter(&mut shadowed, &[("tenant", &*row.tenant), ("reason", reason.code())], count)?;
            }
        }
        Ok(())
    }
}

/// Where nobody measures it, there is nothing to show.
fn measured(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    let help = "Processor time of tasks by tenant and kind of work; what belongs to nobody is _overhead";
    let mut cpu = families.family("tollgate_tenant_cpu_seconds", help, MetricType::Counter)?;
    for row in rows {
        for ((kind, name), spent) in Work::ALL.into_iter().zip(row.totals.cpu_by_kind) {
            // Where nothing of a kind was done there is nothing to show.
            if spent > 0 || kind == Work::Io {
                cpu.encode_family(&[("tenant", &*row.tenant), ("kind", name)])?
                    .encode_counter::<NoLabelSet, _, u64>(&(spent as f64 / 1e9), None)?;
            }
        }
    }
    let help = "Time from when a task could run until it did, by tenant";
    let mut queue = families.family("tollgate_tenant_queue_seconds", help, MetricType::Histogram)?;
    for row in rows {
        let bounds = DELAY_BOUNDS.iter().map(|&bound| bound as f64 / 1e9).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(row.totals.delays).collect();
        let count = buckets.iter().map(|bucket| bucket.1).sum();
        let sum = row.totals.waited_ns as f64 / 1e9;
        queue.encode_family(&[("tenant", &*row.tenant)])?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    cpu_held(families, rows)
}

/// Few tenants have the ceiling.
fn cpu_held(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    let help = "Time for which tasks could have run but for a ceiling of processor time, by tenant";
    let mut held = families.family("tollgate_tenant_cpu_held_seconds", help, MetricType::Counter)?;
    for row in rows.iter().filter(|row| row.totals.held_ns > 0) {
        let value = row.totals.held_ns as f64 / 1e9;
        held.encode_family(&[("tenant", &*row.tenant)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

fn panics(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    one(families, rows, "panics", "Tasks of connections that ended in a panic, by tenant", |row| row.panics)?;
    let help = "Whether a tenant is kept apart because its connections panicked";
    let mut isolated = families.gauge("tollgate_tenant_isolated", help)?;
    for row in rows.iter().filter(|row| !row.totals.apart.is_zero()) {
        isolated.encode_family(&[("tenant", &*row.tenant)])?.encode_gauge(&1_u64)?;
    }
    Ok(())
}

fn memory(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    let help =
        "Bytes held now by tenant: buffers, queues, and what connections and requests are known to take beside them";
    gauge(families, rows, "memory_bytes", help, |row| row.memory)?;
    let help = "Memory held over time by tenant, in bytes times seconds";
    let mut held = families.family("tollgate_tenant_memory_byte_seconds", help, MetricType::Counter)?;
    for row in rows {
        let value = row.totals.memory_byte_ms as f64 / 1e3;
        held.encode_family(&[("tenant", &*row.tenant)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

fn bytes(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    let mut bytes = families.counter("tollgate_tenant_bytes", "Body or payload bytes by tenant")?;
    for row in rows {
        counter(&mut bytes, &[("tenant", &*row.tenant), ("flow", "up")], row.totals.bytes_up)?;
        counter(&mut bytes, &[("tenant", &*row.tenant), ("flow", "down")], row.totals.bytes_down)?;
    }
    // Few tenants have the ceiling.
    let paced = || rows.iter().filter(|row| row.totals.paced > 0);
    let help = "Exchanges that a rate of bytes held back, by tenant";
    let mut exchanges = families.counter("tollgate_tenant_paced", help)?;
    paced().try_for_each(|row| counter(&mut exchanges, &[("tenant", &*row.tenant)], row.totals.paced))?;
    let help = "Time for which a rate of bytes held exchanges back that have ended, by tenant";
    let mut seconds = families.family("tollgate_tenant_paced_seconds", help, MetricType::Counter)?;
    for row in paced() {
        let value = row.totals.paced_us as f64 / 1e6;
        seconds.encode_family(&[("tenant", &*row.tenant)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

/// Most tenants lose nothing.
fn logs(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    let help = "Flow records and access log entries that were lost, by tenant, log, class and reason";
    let mut lost = families.counter("tollgate_tenant_log_lost", help)?;
    for row in rows {
        for ([reason, log, class], count) in row.totals.log_lost() {
            let labels = [("tenant", &*row.tenant), ("log", log), ("class", class), ("reason", reason)];
            counter(&mut lost, &labels, count)?;
        }
    }
    let help = "Flow records and access log entries that a ceiling in shadow would have lost, by tenant";
    let mut shadowed = families.counter("tollgate_tenant_shadow_log_lost", help)?;
    for row in rows.iter().filter(|row| row.totals.log_shadowed > 0) {
        counter(&mut shadowed, &[("tenant", &*row.tenant)], row.totals.log_shadowed)?;
    }
    Ok(())
}

fn policies(families: &mut Encoder<'_, '_>, rows: &[Row]) -> Result<(), Error> {
    let help =
        "Bytes that compiled policies take, by tenant; a form that several tenants share is on the account of each";
    gauge(families, rows, "policy_bytes", help, |row| row.policy_bytes)?;
    let help = "Rules of policies in force, by tenant: those of ports, and the HTTP rules in them";
    gauge(families, rows, "policy_rules", help, |row| row.policy_rules)?;
    let help = "When a policy of the tenant last came into force or went, by tenant; none before";
    let mut changed =
        families.family("tollgate_tenant_policy_last_change_timestamp_seconds", help, MetricType::Gauge)?;
    for row in rows.iter().filter(|row| row.totals.policy_changed_ms > 0) {
        let value = row.totals.policy_changed_ms as f64 / 1e3;
        changed.encode_family(&[("tenant", &*row.tenant)])?.encode_gauge(&value)?;
    }
    let help = "Processor time of compiling policies, by tenant; on threads of its own";
    let mut compiling = families.family("tollgate_tenant_policy_compile_seconds", help, MetricType::Counter)?;
    for row in rows {
        let value = row.totals.compile_ns as f64 / 1e9;
        compiling.encode_family(&[("tenant", &*row.tenant)])?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

/// Those with series of their own, and the sum of the others if there are any.
fn rows(tallies: Vec<Tally>, retired: Totals) -> Vec<Row> {
    let (own, others): (Vec<_>, Vec<_>) = tallies.into_iter().partition(|tally| tally.has_series);
    let mut overflow = retired;
    others.iter().for_each(|tally| overflow.add(&tally.totals));
    let mut rows: Vec<Row> = own.into_iter().map(|tally| Row { tenant: tally.name, totals: tally.totals }).collect();
    if !others.is_empty() || !overflow.is_empty() {
        rows.push(Row { tenant: OVERFLOW.into(), totals: overflow });
    }
    rows
}

fn one(
    families: &mut Encoder<'_, '_>,
    rows: &[Row],
    name: &str,
    help: &str,
    value: fn(&Totals) -> u64,
) -> Result<(), Error> {
    let name = format!("tollgate_tenant_{name}");
    let mut family = families.counter(&name, help)?;
    rows.iter().try_for_each(|row| counter(&mut family, &[("tenant", &*row.tenant)], value(&row.totals)))
}

fn gauge(
    families: &mut Encoder<'_, '_>,
    rows: &[Row],
    name: &str,
    help: &str,
    value: fn(&Totals) -> u64,
) -> Result<(), Error> {
    let name = format!("tollgate_tenant_{name}");
    let mut family = families.gauge(&name, help)?;
    rows.iter().try_for_each(|row| family.encode_family(&[("tenant", &*row.tenant)])?.encode_gauge(&value(&row.totals)))
}
