//! What is counted here under the names that Envoy gives it, for the tools and dashboards that ask for those
//! (`spec/cilium-agent.md` sections 2.5 and 2.6). `docs/envoy-admin.md` lists them; what is not counted is not made up.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use tollgate_policy::Direction;

use super::collector::{DIRECTIONS, Encoder};
use super::worker::{DURATION_BOUNDS_US, DirectionCounters};
use super::{ConnectResult, Families, process};

/// One statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// As `/stats` shows it: `listener.ingress.downstream_cx_active`.
    pub name: String,
    /// Its value now.
    pub value: u64,
    /// Whether it ever moved.
    pub used: bool,
    /// The Prometheus family, and the labels that tell its members apart.
    family: String,
    labels: Vec<(&'static str, String)>,
}

/// The statistic prefix that an agent gives every HTTP connection manager.
const HTTP_PREFIX: &str = "proxy";

impl Stat {
    fn new(family: impl Into<String>, labels: Vec<(&'static str, String)>, name: String, value: u64) -> Self {
        Self { name, value, used: value > 0, family: family.into(), labels }
    }

    /// One whose name has no variable part.
    fn plain(name: &str, value: u64) -> Self {
        Self::new(format!("envoy_{}", name.replace('.', "_")), Vec::new(), name.to_owned(), value)
    }
}

impl Families {
    /// Every statistic; members of one family stand together.
    pub(super) fn envoy_stats(&self) -> Vec<Stat> {
        let mut stats = self.listener_stats();
        self.http_stats(&mut stats);
        self.cluster_stats(&mut stats);
        self.policy_stats(&mut stats);
        self.server_stats(&mut stats);
        stats
    }

    fn listener_stats(&self) -> Vec<Stat> {
        let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for listener in self.listener_counts() {
            let count = counts.entry(listener.name).or_default();
            count.0 += listener.open;
            count.1 += listener.total;
        }
        let stat = |what: &str, name: &str, value, used| {
            let labels = vec![("envoy_listener_address", name.to_owned())];
            let flat = format!("listener.{name}.downstream_cx_{what}");
            Stat { used, ..Stat::new(format!("envoy_listener_downstream_cx_{what}"), labels, flat, value) }
        };
        let active = counts.iter().map(|(name, (active, total))| stat("active", name, *active, *total > 0));
        let total = counts.iter().map(|(name, (_, total))| stat("total", name, *total, *total > 0));
        active.chain(total).collect()
    }

    /// Both directions together, as they share the prefix.
    fn http_stats(&self, stats: &mut Vec<Stat>) {
        let prefix = || ("envoy_http_conn_manager_prefix", HTTP_PREFIX.to_owned());
        let both =
            |value: &dyn Fn(&DirectionCounters) -> u64| self.sum(|worker| worker.directions.iter().map(value).sum());
        let total = both(&|counters| counters.requests.iter().map(super::worker::Count::value).sum());
        let name = |what: &str| format!("http.{HTTP_PREFIX}.downstream_rq_{what}");
        stats.push(Stat::new("envoy_http_downstream_rq_total", vec![prefix()], name("total"), total));
        for class in 0..5 {
            let value = both(&|counters| counters.answers.iter().map(|by_class| by_class[class].value()).sum());
            let digit = class + 1;
            let labels = vec![("envoy_response_code_class", digit.to_string()), prefix()];
            stats.push(Stat::new("envoy_http_downstream_rq_xx", labels, name(&format!("{digit}xx")), value));
        }
    }

    /// The clusters of an agent's listeners: whatever was let through goes to one of two.
    fn cluster_stats(&self, stats: &mut Vec<Stat>) {
        let mut by_cluster =
            |family: &str, what: &str, class: Option<usize>, value: &dyn Fn(&DirectionCounters) -> u64| {
                for direction in DIRECTIONS {
                    let cluster = match direction {
                        Direction::Ingress => "ingress-cluster",
                        Direction::Egress => "egress-cluster",
                    };
                    let mut labels = vec![("envoy_cluster_name", cluster.to_owned())];
                    labels.extend(class.map(|class| ("envoy_response_code_class", class.to_string())));
                    let value = self.sum(|worker| value(&worker.directions[direction as usize]));
                    stats.push(Stat::new(family, labels, format!("cluster.{cluster}.{what}"), value));
                }
            };
        let connects = |counters: &DirectionCounters, result: ConnectResult| counters.connects[result as usize].value();
        by_cluster("envoy_cluster_upstream_cx_total", "upstream_cx_total", None, &|counters| {
            connects(counters, ConnectResult::Connected)
        });
        by_cluster("envoy_cluster_upstream_cx_connect_fail", "upstream_cx_connect_fail", None, &|counters| {
            let failed = ConnectResult::ALL.into_iter().map(|(result, _)| result);
            let failed = failed.filter(|result| !matches!(result, ConnectResult::Connected | ConnectResult::Reused));
            failed.map(|result| connects(counters, result)).sum()
        });
        by_cluster("envoy_cluster_upstream_cx_connect_timeout", "upstream_cx_connect_timeout", None, &|counters| {
            connects(counters, ConnectResult::Timeout)
        });
        by_cluster("envoy_cluster_upstream_rq_total", "upstream_rq_total", None, &|counters| {
            let [forwarded, _denied, _limited, failed] = &counters.requests;
            forwarded.value() + failed.value()
        });
        for class in 0..5 {
            let digit = class + 1;
            let what = format!("upstream_rq_{digit}xx");
            by_cluster("envoy_cluster_upstream_rq_xx", &what, Some(digit), &|counters| {
                counters.answers[0][class].value()
            });
        }
    }

    fn policy_stats(&self, stats: &mut Vec<Stat>) {
        let [accepted, rejected] = [0, 1].map(|index: usize| self.control.updates[index].load(Ordering::Relaxed));
        stats.push(Stat::plain("cilium.policy.updates_total", accepted + rejected));
        stats.push(Stat::plain("cilium.policy.update_success", accepted));
        stats.push(Stat::plain("cilium.policy.updates_rejected", rejected));
        let Some(status) = self.streams.get() else { return };
        for stream in status.streams() {
            let prefix = match stream.type_url.rsplit('.').next() {
                Some("NetworkPolicy") => "cilium.npds",
                Some("NetworkPolicyHosts") => "cilium.nphds",
                Some("Listener") => "listener_manager.lds",
                Some("Cluster") => "cluster_manager.cds",
                _ => continue,
            };
            for (what, value) in [
                ("update_attempt", stream.responses),
                ("update_success", stream.acks),
                ("update_rejected", stream.nacks),
                ("control_plane.connected_state", u64::from(stream.connected)),
            ] {
                stats.push(Stat::plain(&format!("{prefix}.{what}"), value));
            }
        }
    }

    fn server_stats(&self, stats: &mut Vec<Stat>) {
        let draining = self.readiness.get().is_some_and(crate::readiness::Readiness::is_draining);
        let uptime = self.started.elapsed().unwrap_or_default().as_secs();
        let connections = self.listener_counts().iter().map(|listener| listener.open).sum();
        for (name, value) in [
            ("server.live", u64::from(!draining)),
            ("server.uptime", uptime),
            ("server.concurrency", self.workers.len() as u64),
            ("server.total_connections", connections),
            ("server.memory_physical_size", process::resident_bytes().unwrap_or_default()),
        ] {
            stats.push(Stat { used: true, ..Stat::plain(name, value) });
        }
    }

    /// The same for a scrape.
    pub(super) fn envoy(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let stats = self.envoy_stats();
        for family in stats.chunk_by(|one, other| one.family == other.family) {
            let Some(Stat { family: name, .. }) = family.first() else { continue };
            let help = "See Envoy's documentation";
            // A counter is written with `_total`; Envoy has some without.
            let (name, kind) = match name.strip_suffix("_total") {
                Some(name) => (name, MetricType::Counter),
                None => (name.as_str(), MetricType::Gauge),
            };
            let is_counter = matches!(kind, MetricType::Counter);
            let mut encoder = families.family(name, help, kind)?;
            for Stat { labels, value, .. } in family {
                match (is_counter, labels.is_empty()) {
                    (true, true) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None)?,
                    (true, false) => {
                        encoder.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?
                    }
                    (false, true) => encoder.encode_gauge(value)?,
                    (false, false) => encoder.encode_family(labels)?.encode_gauge(value)?,
                }
            }
        }
        self.request_time(families)
    }

    /// In milliseconds.
    fn request_time(&self, families: &mut Encoder<'_, '_>) -> Result<(), Error> {
        let help = "See Envoy's documentation";
        let mut histogram = families.family("envoy_http_downstream_rq_time", help, MetricType::Histogram)?;
        let bounds = DURATION_BOUNDS_US.iter().map(|&bound| bound as f64 / 1e3).chain([f64::INFINITY]);
        let both =
            |value: &dyn Fn(&DirectionCounters) -> u64| self.sum(|worker| worker.directions.iter().map(value).sum());
        let buckets: Vec<(f64, u64)> = bounds
            .enumerate()
            .map(|(index, bound)| (bound, both(&|counters| counters.duration_buckets[index].value())))
            .collect();
        let count = buckets.iter().map(|bucket| bucket.1).sum();
        let sum = both(&|counters| counters.duration_sum_us.value()) as f64 / 1e3;
        histogram
            .encode_family(&[("envoy_http_conn_manager_prefix", HTTP_PREFIX)])?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}
