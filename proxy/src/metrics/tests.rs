use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::flow::{FlowRecord, HttpRecord, Outcome};
use crate::reason::Reason;

/// Samples of a scrape by name with labels; fails on lines that neither format has.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if line.starts_with("# HELP ") || line.starts_with("# TYPE ") || line == "# EOF" {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
    }
    samples
}

fn scrape(metrics: &Metrics) -> BTreeMap<String, f64> {
    samples(&metrics.encode(Format::OpenMetrics).unwrap())
}

fn request(outcome: Outcome, reason: Option<Reason>, duration_us: u64) -> FlowRecord {
    let mut record = FlowRecord::for_test(outcome);
    record.http = Some(HttpRecord::default());
    record.reason = reason;
    record.duration_us = duration_us;
    record
}

#[test]
fn a_scrape_sums_over_workers() {
    let (metrics, workers) = Metrics::new(2);
    for worker in &workers {
        worker.flow_finished(&request(Outcome::Denied, Some(Reason::RequestNotAllowed), 100));
        worker.bytes_up(Direction::Egress, 5);
    }
    workers[0].flow_finished(&request(Outcome::Failed, Some(Reason::UpstreamConnect), 101));
    workers[0].flow_finished(&request(Outcome::Forwarded, None, u64::MAX / 4));
    workers[0].flow_finished(&request(Outcome::Denied, Some(Reason::TenantRate), 10_000_001));
    workers[1].flow_finished(&FlowRecord::for_test(Outcome::Denied));
    workers[1].flow_record_lost(FlowRecord::for_test(Outcome::Denied).ending());
    let got = scrape(&metrics);
    for (name, expected) in [
        (r#"tollgate_requests_total{direction="ingress",outcome="denied"}"#, 2.0),
        (r#"tollgate_requests_total{direction="ingress",outcome="failed"}"#, 1.0),
        (r#"tollgate_requests_total{direction="ingress",outcome="limited"}"#, 1.0),
        (r#"tollgate_requests_total{direction="egress",outcome="denied"}"#, 0.0),
        (r#"tollgate_refusals_total{reason="request_not_allowed"}"#, 2.0),
        (r#"tollgate_refusals_total{reason="upstream_connect"}"#, 0.0),
        (r#"tollgate_failures_total{reason="upstream_connect"}"#, 1.0),
        (r#"tollgate_bytes_total{direction="egress",flow="up"}"#, 10.0),
        (r#"tollgate_flow_records_total{class="denied"}"#, 3.0),
        (r#"tollgate_flow_records_total{class="limited"}"#, 1.0),
        (r#"tollgate_flow_records_lost_total{class="denied"}"#, 1.0),
        (r#"tollgate_request_duration_seconds_bucket{le="0.0001",direction="ingress"}"#, 2.0),
        (r#"tollgate_request_duration_seconds_bucket{le="0.00025",direction="ingress"}"#, 3.0),
        (r#"tollgate_request_duration_seconds_bucket{le="10.0",direction="ingress"}"#, 3.0),
        (r#"tollgate_request_duration_seconds_bucket{le="+Inf",direction="ingress"}"#, 5.0),
        (r#"tollgate_request_duration_seconds_count{direction="ingress"}"#, 5.0),
        (&format!(r#"tollgate_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION")), 1.0),
    ] {
        assert_eq!(got.get(name), Some(&expected), "{name}");
    }
    assert!(got["process_resident_memory_bytes"] > 1e5);
    assert!(got["process_open_fds"] >= 1.0);
    assert!(got["process_cpu_seconds_total"] > 0.0);
}

#[test]
fn connections_are_open_while_their_guard_lives() {
    let (metrics, workers) = Metrics::new(1);
    let index = metrics.listener("in\"g\\", Direction::Ingress);
    let labels = r#"{listener="in\"g\\",direction="ingress"}"#;
    let open = workers[0].connection_opened(index.index());
    let closed = workers[0].connection_opened(index.index());
    let held = workers[0].hold();
    drop(closed);
    let got = scrape(&metrics);
    assert_eq!(got[&format!("tollgate_connections_total{labels}")], 2.0);
    assert_eq!(got[&format!("tollgate_connections_open{labels}")], 1.0);
    assert_eq!(got["tollgate_held_connections"], 1.0);
    assert_eq!(metrics.connections_open(), 1);
    drop((open, held));
    assert_eq!(metrics.connections_open(), 0);
    assert_eq!(scrape(&metrics)["tollgate_held_connections"], 0.0);
}

#[test]
fn control_values_are_scraped() {
    let (metrics, _workers) = Metrics::new(1);
    let control = metrics.control();
    let policy =
        PolicyGauges { generation: 7, endpoints: 3, quarantined_rules: 1, conflicts: 2, ..PolicyGauges::default() };
    control.policy_in_force(policy, SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    control.policy_update(UpdateResult::Accepted);
    let got = scrape(&metrics);
    for (name, expected) in [
        ("tollgate_policy_generation", 7.0),
        ("tollgate_policy_endpoints", 3.0),
        ("tollgate_policy_quarantined_rules", 1.0),
        ("tollgate_policy_conflicts", 2.0),
        ("tollgate_policy_last_update_timestamp_seconds", 1.5),
        (r#"tollgate_policy_updates_total{result="accepted"}"#, 1.0),
    ] {
        assert_eq!(got.get(name), Some(&expected), "{name}");
    }
}

#[test]
fn every_sample_of_the_classic_format_has_its_type() {
    let (metrics, _workers) = Metrics::new(1);
    metrics.listener("ingress", Direction::Ingress);
    let text = metrics.encode(Format::Prometheus).unwrap();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap().0.to_owned();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(name == family || base == Some(&family), "{name} follows {family}");
        }
    }
    assert!(text.contains("# TYPE tollgate_requests_total counter\n"), "{text}");
    assert!(text.contains("# TYPE tollgate_build_info gauge\n"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    assert_eq!(samples(&text).len(), scrape(&metrics).len());
}

#[test]
fn the_accept_field_chooses_the_format() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    assert_eq!(Format::for_accept(Some(prometheus)), Format::OpenMetrics);
    assert_eq!(Format::for_accept(Some("*/*")), Format::Prometheus);
    assert_eq!(Format::for_accept(None), Format::Prometheus);
}

#[test]
fn the_series_of_listeners_are_bounded() {
    let (metrics, workers) = Metrics::new(1);
    let first = metrics.listener("0", Direction::Ingress);
    let mut held = Vec::new();
    for number in 1..MAX_LISTENERS + 5 {
        let series = metrics.listener(&number.to_string(), Direction::Ingress);
        let _open = workers[0].connection_opened(series.index());
        held.push(series);
    }
    assert_eq!(metrics.listener("0", Direction::Ingress).index(), first.index(), "one that is there goes on counting");
    let got = scrape(&metrics);
    assert_eq!(got[r#"tollgate_connections_total{listener="61",direction="ingress"}"#], 1.0);
    assert_eq!(got[r#"tollgate_connections_total{listener="(other)",direction="ingress"}"#], 5.0);
    assert!(!got.contains_key(r#"tollgate_connections_total{listener="62",direction="ingress"}"#));
    assert!(!got.contains_key(r#"tollgate_connections_total{listener="(other)",direction="egress"}"#));
}

#[test]
fn the_series_of_a_listener_that_is_gone_goes_to_the_next_that_needs_it() {
    let (metrics, workers) = Metrics::new(1);
    let series = |name: &str| metrics.listener(name, Direction::Ingress);
    let mut held: Vec<_> = (0..MAX_LISTENERS).map(|number| series(&number.to_string())).collect();
    for _ in 0..3 {
        drop(workers[0].connection_opened(held[7].index()));
    }
    let open = workers[0].connection_opened(held[9].index());
    let (seventh, ninth) = (held[7].index(), held[9].index());
    held.remove(9);
    held.remove(7);
    assert_eq!(series("7").index(), seventh, "it goes on where nobody needed the place");
    let key = |name: &str| format!(r#"tollgate_connections_total{{listener="{name}",direction="ingress"}}"#);
    assert_eq!(scrape(&metrics)[&key("7")], 3.0);
    let next = series("next");
    assert_eq!(next.index(), seventh);
    drop(workers[0].connection_opened(next.index()));
    let got = scrape(&metrics);
    assert_eq!((got[&key("next")], got.get(&key("7")), got[&key("9")]), (1.0, None, 1.0));
    let other = series("other");
    assert!(other.index() != ninth, "a connection is open");
    drop(open);
    assert_eq!(series("last").index(), ninth);
}

/// Names and labels as Envoy's own exporter gives them.
#[test]
fn dashboards_of_envoy_find_their_names() {
    let (metrics, workers) = Metrics::new(2);
    let answered = |worker: &Worker, direction, outcome, status| {
        let mut record = request(outcome, None, 1500);
        record.direction = direction;
        record.http.as_mut().unwrap().status = status;
        worker.flow_finished(&record);
    };
    answered(&workers[0], Direction::Egress, Outcome::Forwarded, 204);
    answered(&workers[1], Direction::Egress, Outcome::Forwarded, 404);
    answered(&workers[1], Direction::Ingress, Outcome::Denied, 403);
    answered(&workers[1], Direction::Ingress, Outcome::Failed, 503);
    answered(&workers[1], Direction::Ingress, Outcome::Failed, 0);
    workers[0].upstream_connect(Direction::Ingress, ConnectResult::Timeout);
    workers[0].upstream_connect(Direction::Ingress, ConnectResult::Refused);
    workers[0].upstream_connect(Direction::Egress, ConnectResult::Connected);
    metrics.control().policy_update(UpdateResult::Accepted);
    metrics.control().policy_update(UpdateResult::Rejected);
    let got = samples(&metrics.encode(Format::Prometheus).unwrap());
    let proxy = r#"envoy_http_conn_manager_prefix="proxy""#;
    let of = |cluster: &str| format!(r#"envoy_cluster_name="{cluster}-cluster""#);
    let (ingress, egress) = (of("ingress"), of("egress"));
    for (name, expected) in [
        (format!("envoy_http_downstream_rq_total{{{proxy}}}"), 5.0),
        (format!(r#"envoy_http_downstream_rq_xx{{envoy_response_code_class="4",{proxy}}}"#), 2.0),
        (format!(r#"envoy_http_downstream_rq_xx{{envoy_response_code_class="5",{proxy}}}"#), 1.0),
        (format!(r#"envoy_http_downstream_rq_time_bucket{{le="1.0",{proxy}}}"#), 0.0),
        (format!(r#"envoy_http_downstream_rq_time_bucket{{le="2.5",{proxy}}}"#), 5.0),
        (format!("envoy_http_downstream_rq_time_sum{{{proxy}}}"), 7.5),
        (format!("envoy_cluster_upstream_rq_total{{{egress}}}"), 2.0),
        (format!("envoy_cluster_upstream_rq_total{{{ingress}}}"), 2.0),
        (format!(r#"envoy_cluster_upstream_rq_xx{{{egress},envoy_response_code_class="2"}}"#), 1.0),
        (format!(r#"envoy_cluster_upstream_rq_xx{{{ingress},envoy_response_code_class="4"}}"#), 0.0),
        (format!("envoy_cluster_upstream_cx_connect_fail{{{ingress}}}"), 2.0),
        (format!("envoy_cluster_upstream_cx_connect_timeout{{{ingress}}}"), 1.0),
        (format!("envoy_cluster_upstream_cx_total{{{egress}}}"), 1.0),
        ("envoy_cilium_policy_updates_total".to_owned(), 2.0),
        ("envoy_cilium_policy_updates_rejected".to_owned(), 1.0),
        ("envoy_server_live".to_owned(), 1.0),
        (r#"tollgate_upstream_connects_total{result="refused"}"#.to_owned(), 1.0),
    ] {
        assert_eq!(got.get(&name), Some(&expected), "{name}");
    }
    let names: Vec<String> = metrics.envoy_stats().into_iter().filter(|stat| stat.used).map(|stat| stat.name).collect();
    for name in
        ["http.proxy.downstream_rq_4xx", "cluster.egress-cluster.upstream_rq_2xx", "cilium.policy.update_success"]
    {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
}

/// Names of metrics that stand in the code as a whole, as a scrape gives them or without the end that their type adds.
fn names_in_code() -> Vec<String> {
    let rooms = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics")).unwrap();
    let files = rooms.map(|file| file.unwrap().path()).filter(|path| !path.ends_with("tests.rs"));
    let texts: Vec<String> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let literals = texts.iter().flat_map(|text| text.split('"'));
    let is_name =
        |text: &&str| text.len() > "tollgate_".len() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    literals
        .filter(is_name)
        .filter(|text| text.starts_with("tollgate_") || text.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Whoever meets a metric finds out what it is, and whoever reads the page finds the metric.
#[test]
fn every_metric_stands_on_its_page_and_no_other() {
    let page = include_str!("../../../docs/metrics.md");
    let (metrics, workers) = Metrics::new(1);
    crate::tenant::for_test::use_everything(workers.into_iter().next().unwrap());
    let scrape = metrics.encode(Format::Prometheus).unwrap();
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let scraped: Vec<&str> = types.filter(|name| !name.starts_with("envoy_")).collect();
    let written: Vec<&str> = page.split('`').collect();
    let code = names_in_code();
    assert!(scraped.len() > 50 && code.len() > 60, "{} {}", scraped.len(), code.len());
    let spellings = |name: &str| ["", "_total", "_info"].map(|end| format!("{name}{end}"));
    for name in scraped.iter().copied().chain(code.iter().map(String::as_str)) {
        let stands = spellings(name).iter().any(|name| written.contains(&name.as_str()));
        assert!(stands, "{name} is not in docs/metrics.md");
    }
    for name in written.iter().filter(|name| name.starts_with("tollgate_")) {
        let is_there =
            scraped.contains(name) || code.iter().any(|known| spellings(known).contains(&(*name).to_owned()));
        assert!(is_there, "docs/metrics.md has {name}, which is no metric");
    }
}

/// What looks like the name of a metric in a text.
fn named_metrics(text: &str) -> std::collections::BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("tollgate_")).collect()
}

/// A panel over a metric that is called otherwise stays empty, and nobody knows why.
#[test]
fn dashboards_name_only_metrics_and_labels_that_there_are() {
    let dashboard = include_str!("../../../deploy/dashboards/tenants.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let (metrics, workers) = Metrics::new(1);
    crate::tenant::for_test::use_everything(workers.into_iter().next().unwrap());
    let (_, consumer) = crate::flow::channel(Vec::new(), 8);
    metrics.watch_log_memory(consumer.spawn(&crate::flow::FlowSettings::default()).unwrap().memory());
    metrics.watch_cpu_quota(Arc::new(CpuQuota::for_test()));
    let scrape = metrics.encode(Format::Prometheus).unwrap();
    let families: BTreeMap<&str, &str> = scrape
        .lines()
        .filter(|line| line.starts_with("tollgate_"))
        .filter_map(|line| Some((&line[..line.find(['{', ' '])?], line)))
        .collect();
    let mut seen = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let named = named_metrics(expression);
            assert!(!named.is_empty(), "{expression}");
            for name in named {
                let sample = families.get(name).unwrap_or_else(|| panic!("no metric {name}: {expression}"));
                for label in ["kind", "tenant", "reason"] {
                    if expression.contains(&format!("by ({label})")) || expression.contains(&format!(", {label})")) {
                        assert!(sample.contains(&format!("{label}=")), "{sample} has no {label}: {expression}");
                    }
                }
                seen += 1;
            }
        }
    }
    assert!(seen >= 12, "{seen}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        for name in named_metrics(variable["query"].as_str().unwrap()) {
            assert!(families.contains_key(name), "{name}");
        }
    }
}
