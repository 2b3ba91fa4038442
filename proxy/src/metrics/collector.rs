//! The families of a scrape.

use std::fmt::Error;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use tollgate_policy::Direction;

use tollgate_xds::StreamStatus;

use super::control::UpdateResult;
use super::worker::{Count, Counters, DURATION_BOUNDS_US, DirectionCounters};
use super::{AcceptErrorKind, Chore, ConnectResult, Families, IdentityMap, LookupResult, process};
use crate::control::listeners::NotServed;
use crate::flow::{AccessLogs, ENDINGS, LossCause};
use crate::reason::Reason;

pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];
/// In the order of [`crate::flow::EntryKind`].
const ENTRY_WORKS: [&str; 3] = ["request", "response", "denied"];

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Encoder(&mut encoder);
        self.connections(&mut families)?;
        self.requests(&mut families)?;
        self.durations(&mut families)?;
        self.reasons(&mut families)?;
        self.upstreams(&mut families)?;
        self.identities(&mut families)?;
        self.tenants(&mut families)?;
        self.attribution_families(&mut families)?;
        self.records(&mut families)?;
        self.access_logs(&mut families)?;
        self.policy(&mut families)?;
        self.xds(&mut families)?;
        self.discovered_listeners(&mut families)?;
        self.process(&mut families)?;
        self.envoy(&mut families)
    }
}

impl Families {
    fn connections(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let listeners = self.listener_counts();
        let mut accepted = families.counter("tollgate_connections", "Accepted downstream connections")?;
        for listener in &listeners {
            let labels = [("listener", listener.name.as_str()), ("direction", listener.direction.as_str())];
            counter(&mut accepted, &labels, listener.total)?;
        }
        let mut open = families.gauge("tollgate_connections_open", "Downstream connections open now")?;
        for listener in &listeners {
            let labels = [("listener", listener.name.as_str()), ("direction", listener.direction.as_str())];
            open.encode_family(&labels)?.encode_gauge(&listener.open)?;
        }
        let released = self.sum(|worker| worker.released.value());
        let held = self.sum(|worker| worker.held.value()).saturating_sub(released);
        families.single("tollgate_held_connections", "Connections held for their endpoint's first policy", held)?;
        let mut panics = families.counter("tollgate_connection_panics", "Connection tasks that ended in a panic")?;
        total(&mut panics, self.sum(|worker| worker.panics.value()))?;
        let help = "Tasks of workers beside their connections that ended in a panic";
        let mut panics = families.counter("tollgate_worker_panics", help)?;
        for chore in Chore::ALL {
            let value = self.sum(|worker| worker.chores[chore as usize].value());
            counter(&mut panics, &[("task", chore.as_str())], value)?;
        }
        let mut errors = families.counter("tollgate_accept_errors", "Failed accepts by kind")?;
        for (kind, name) in AcceptErrorKind::ALL {
            let value = self.sum(|worker| worker.accept_errors[kind as usize].value());
            counter(&mut errors, &[("kind", name)], value)?;
        }
        Ok(())
    }

    fn by_direction(&self, direction: Direction, value: impl Fn(&DirectionCounters) -> &Count) -> u64 {
        self.sum(|worker| value(&worker.directions[direction as usize]).value())
    }

    fn requests(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let mut requests = families.counter("tollgate_requests", "Finished HTTP requests by outcome")?;
        for direction in DIRECTIONS {
            for (index, outcome) in ENDINGS.into_iter().enumerate() {
                let labels = [("direction", direction.as_str()), ("outcome", outcome)];
                counter(&mut requests, &labels, self.by_direction(direction, |counters| &counters.requests[index]))?;
            }
        }
        let mut bytes = families.counter("tollgate_bytes", "Body or payload bytes; up is towards the upstream")?;
        for direction in DIRECTIONS {
            let labels = |flow| [("direction", direction.as_str()), ("flow", flow)];
            counter(&mut bytes, &labels("up"), self.by_direction(direction, |counters| &counters.bytes_up))?;
            counter(&mut bytes, &labels("down"), self.by_direction(direction, |counters| &counters.bytes_down))?;
        }
        Ok(())
    }

    fn durations(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let help = "HTTP requests by time from their first byte to the end";
        let mut histogram = families.family("tollgate_request_duration_seconds", help, MetricType::Histogram)?;
        for direction in DIRECTIONS {
            let bounds = DURATION_BOUNDS_US.iter().map(|&bound| bound as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds
                .enumerate()
                .map(|(index, bound)| {
                    (bound, self.by_direction(direction, |counters| &counters.duration_buckets[index]))
                })
                .collect();
            // The count is the sum of the buckets, so that a scrape in the middle of an update is consistent.
            let count = buckets.iter().map(|bucket| bucket.1).sum();
            let sum = self.by_direction(direction, |counters| &counters.duration_sum_us) as f64 / 1e6;
            histogram
                .encode_family(&[("direction", direction.as_str())])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn reasons(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let mut refusals = families.counter("tollgate_refusals", "Refused requests and connections by reason")?;
        for reason in Reason::ALL {
            let value = self.sum(|worker| worker.refusals[*reason as usize].value());
            counter(&mut refusals, &[("reason", reason.code())], value)?;
        }
        let help = "Allowed requests and connections that did not complete, by reason";
        let mut failures = families.counter("tollgate_failures", help)?;
        for reason in Reason::ALL {
            let value = self.sum(|worker| worker.failures[*reason as usize].value());
            counter(&mut failures, &[("reason", reason.code())], value)?;
        }
        let help = "What limits in shadow mode let pass, by the reason that it would have been refused for";
        let mut shadow = families.counter("tollgate_shadow_refusals", help)?;
        for reason in Reason::SHADOWED {
            let value = self.sum(|worker| worker.shadow[reason as usize].value());
            counter(&mut shadow, &[("reason", reason.code())], value)?;
        }
        Ok(())
    }

    fn upstreams(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let mut connects =
            families.counter("tollgate_upstream_connects", "Upstream connections asked for by result")?;
        for (result, name) in ConnectResult::ALL {
            let both = |worker: &Counters| worker.directions.iter().map(|d| d.connects[result as usize].value()).sum();
            let value = self.sum(both);
            counter(&mut connects, &[("result", name)], value)?;
        }
        let help = "Upstream connections that kept the client's address but not its port";
        let mut changed = families.counter("tollgate_upstream_source_port_changed", help)?;
        total(&mut changed, self.sum(|worker| worker.source_port_changed.value()))?;
        let mut retries = families.counter("tollgate_upstream_retries", "Requests sent again to their upstream")?;
        total(&mut retries, self.sum(|worker| worker.retries.value()))
    }

    fn identities(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let help = "Lookups of identities in maps of the datapath, by result";
        let mut lookups = families.counter("tollgate_identity_lookups", help)?;
        for (map, name) in IdentityMap::ALL {
            for (result, result_name) in LookupResult::ALL {
                let value = self.sum(|worker| worker.identity_lookups[map as usize][result as usize].value());
                counter(&mut lookups, &[("map", name), ("result", result_name)], value)?;
            }
        }
        let help = "Open connections of which an end was found to carry another identity than before";
        let mut changes = families.counter("tollgate_identity_changes", help)?;
        total(&mut changes, self.sum(|worker| worker.identity_changes.value()))?;
        let help = "Accepted connections for which conntrack and the address named different identities";
        let mut disagreements = families.counter("tollgate_identity_disagreements", help)?;
        total(&mut disagreements, self.sum(|worker| worker.identity_disagreements.value()))
    }

    fn records(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let mut records = families.counter("tollgate_flow_records", "Flow records made, lost ones included")?;
        for (index, class) in ENDINGS.into_iter().enumerate() {
            counter(&mut records, &[("class", class)], self.sum(|worker| worker.records[index].value()))?;
        }
        let mut lost =
            families.counter("tollgate_flow_records_lost", "Flow records that a worker could not hand over")?;
        for (index, class) in ENDINGS.into_iter().enumerate() {
            counter(&mut lost, &[("class", class)], self.sum(|worker| worker.records_lost[index].value()))?;
        }
        if let Some(memory) = self.log_memory.get() {
            let help =
                "Memory of flow records and access log entries that wait or are kept, which is on no tenant's account";
            families.single("tollgate_log_memory_bytes", help, memory.bytes())?;
            let help = "Most that there can be of tollgate_log_memory_bytes";
            families.single("tollgate_log_memory_limit_bytes", help, memory.limit())?;
        }
        let Some(sinks) = self.sinks.get() else {
            return Ok(());
        };
        let mut written = families.counter("tollgate_flow_sink_records", "Flow records written to a sink")?;
        for sink in sinks.iter() {
            counter(&mut written, &[("sink", sink.name.as_str())], sink.written.load(Ordering::Relaxed))?;
        }
        let mut lost =
            families.counter("tollgate_flow_sink_lost", "Flow records that a slow or failing sink had no room for")?;
        for sink in sinks.iter() {
            counter(&mut lost, &[("sink", sink.name.as_str())], sink.lost.load(Ordering::Relaxed))?;
        }
        let mut errors =
            families.counter("tollgate_flow_sink_errors", "Failed writes to a sink; each is tried again")?;
        for sink in sinks.iter() {
            counter(&mut errors, &[("sink", sink.name.as_str())], sink.errors.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    /// Where nobody logs there is nothing to show.
    fn access_logs(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let sockets = self.access_logs.get().map(AccessLogs::counters).unwrap_or_default();
        if sockets.is_empty() {
            return Ok(());
        }
        let unlogged = self.access_logs.get().map_or(0, AccessLogs::unlogged) as u64;
        let help = "Listeners that are served without the access log that they ask for";
        families.single("tollgate_listeners_without_access_log", help, unlogged)?;
        let mut made =
            families.counter("tollgate_access_log_entries", "Access log entries made, lost ones included")?;
        for (index, kind) in ENTRY_WORKS.into_iter().enumerate() {
            counter(&mut made, &[("type", kind)], self.sum(|worker| worker.log_entries[index].value()))?;
        }
        let help = "Access log entries that a worker could not hand over";
        let mut lost = families.counter("tollgate_access_log_entries_lost", help)?;
        for (index, kind) in ENTRY_WORKS.into_iter().enumerate() {
            counter(&mut lost, &[("type", kind)], self.sum(|worker| worker.log_entries_lost[index].value()))?;
        }
        let mut written = families.counter("tollgate_access_log_written", "Access log entries sent to a socket")?;
        for socket in &sockets {
            let labels = [("socket", socket.path.to_string_lossy())];
            counter(&mut written, &labels, socket.written.load(Ordering::Relaxed))?;
        }
        let help = "Access log entries that did not get to a socket's reader, by cause";
        let mut lost = families.counter("tollgate_access_log_lost", help)?;
        for socket in &sockets {
            for (cause, name) in LossCause::ALL {
                let labels = [("socket", socket.path.to_string_lossy()), ("cause", name.into())];
                counter(&mut lost, &labels, socket.lost(cause))?;
            }
        }
        Ok(())
    }

    fn policy(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let control = &self.control;
        let last = control.last_update_ms.load(Ordering::Relaxed) as f64 / 1e3;
        for (name, help, value) in [
            ("tollgate_policy_generation", "Generation of the policy snapshot in force", &control.generation),
            ("tollgate_policy_endpoints", "Endpoints that have a policy", &control.endpoints),
            (
                "tollgate_policy_quarantined_rules",
                "Policy elements that could not be compiled",
                &control.quarantined_rules,
            ),
            ("tollgate_policy_conflicts", "Addresses that more than one policy claims", &control.conflicts),
            (
                "tollgate_policy_unfinished",
                "Endpoints that deny in a direction until their policy is compiled in the background",
                &control.unfinished,
            ),
            (
                "tollgate_policy_without_room",
                "Endpoints that deny in a direction since their policy takes more memory than there is for it",
                &control.without_room,
            ),
            ("tollgate_policy_memory_bytes", "Bytes that compiled policies take", &control.bytes),
        ] {
            families.single(name, help, value.load(Ordering::Relaxed))?;
        }
        let help = "When the policy snapshot in force was applied; 0 before the first";
        families.single("tollgate_policy_last_update_timestamp_seconds", help, last)?;
        let mut updates = families.counter("tollgate_policy_updates", "Updates of the policy set by result")?;
        for (result, name) in UpdateResult::ALL {
            counter(&mut updates, &[("result", name)], control.updates[result as usize].load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    /// The streams of the xDS client, as they are at this moment; nothing where policy comes from a directory.
    fn xds(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let Some(status) = self.streams.get() else { return Ok(()) };
        let streams = status.streams();
        let mut connected = families.gauge("tollgate_xds_connected", "Whether the stream of a resource type is up")?;
        for stream in &streams {
            let up = u64::from(stream.connected);
            connected.encode_family(&[("type", resource_type(stream))])?.encode_gauge(&up)?;
        }
        type Part = fn(&StreamStatus) -> u64;
        let parts: [(&str, &str, Part); 3] = [
            ("tollgate_xds_acks", "ACKs sent", |stream| stream.acks),
            ("tollgate_xds_nacks", "NACKs sent", |stream| stream.nacks),
            ("tollgate_xds_reconnects", "Streams opened after the first", |stream| stream.reconnects),
        ];
        for (name, help, part) in parts {
            let mut family = families.counter(name, help)?;
            for stream in &streams {
                counter(&mut family, &[("type", resource_type(stream))], part(stream))?;
            }
        }
        Ok(())
    }

    fn discovered_listeners(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let Some(report) = self.discovered_listeners.get() else { return Ok(()) };
        let reported = report.read();
        let not_served = reported.not_served();
        let help = "Listeners of the control plane that are not served as asked, by reason";
        let mut family = families.gauge("tollgate_listeners_not_served", help)?;
        for (kind, name) in NotServed::ALL {
            let count = not_served.values().filter(|(found, _)| *found == kind).count() as u64;
            family.encode_family(&[("reason", name)])?.encode_gauge(&count)?;
        }
        Ok(())
    }

    fn process(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        families
            .family("tollgate_build", "Version of this binary", MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let workers = self.workers.len() as u64;
        families.single("tollgate_workers", "Worker threads", workers)?;
        if let Some(bytes) = process::resident_bytes() {
            families.single("process_resident_memory_bytes", "Resident memory", bytes)?;
        }
        if let Some(count) = process::open_fds() {
            families.single("process_open_fds", "Open file descriptors", count)?;
        }
        if let Some(limit) = process::max_fds() {
            families.single("process_max_fds", "Limit of open file descriptors", limit)?;
        }
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        families.single("process_start_time_seconds", "When the process started", started.as_secs_f64())?;
        families
            .counter("process_cpu_seconds", "User and system time of all threads")?
            .encode_counter::<NoLabelSet, _, u64>(&process::cpu_seconds(), None)
    }
}

/// Starts one family after the other.
pub(super) struct Encoder<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Encoder<'_, '_> {
    pub(super) fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    pub(super) fn counter<'s>(&'s mut self, name: &'s str, help: &str) -> Result<MetricEncoder<'s>, Error> {
        self.family(name, help, MetricType::Counter)
    }

    pub(super) fn gauge<'s>(&'s mut self, name: &'s str, help: &str) -> Result<MetricEncoder<'s>, Error> {
        self.family(name, help, MetricType::Gauge)
    }

    pub(super) fn single(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result<(), Error> {
        self.gauge(name, help)?.encode_gauge(&value)
    }
}

pub(super) fn counter<K, V, const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(K, V); N],
    value: u64,
) -> Result<(), Error>
where
    K: prometheus_client::encoding::EncodeLabelKey,
    V: prometheus_client::encoding::EncodeLabelValue,
{
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn total(family: &mut MetricEncoder<'_>, value: u64) -> Result<(), Error> {
    family.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// The type's message name, `cilium.NetworkPolicy`.
fn resource_type(stream: &StreamStatus) -> &'static str {
    stream.type_url.rsplit('/').next().unwrap_or_default()
}
