//! What the admin endpoint shows of the running process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tollgate_policy::{Conflict, EndpointKey, EndpointPolicy, Quarantine};
use tollgate_xds::{Status, Variant};

use super::Request;
use super::listeners::Listeners;
use super::tenants;
use crate::admin::{Actions, BoundListener, Views};
use crate::config::{Config, ForwardedProto, Identities, Normalize, PolicySource};
use crate::control::Control;
use crate::control::listeners::{Discovered, NotServed, Report};
use crate::control::memory::Memory;
use crate::control::quota::CpuQuota;
use crate::explanation::{self, Asked, Enforced, Explained, PaidBy};
use crate::identity::Sources;
use crate::listener::connection::tenant_of;
use crate::metrics::Metrics;
use crate::policy_file::FilePlace;
use crate::readiness::Readiness;

/// Read-only views over control, configuration and listeners.
pub(super) struct ProcessViews {
    pub(super) config: Config,
    pub(super) control: Arc<Control>,
    pub(super) streams: Option<Status>,
    pub(super) listeners: Arc<Listeners>,
    pub(super) report: Report,
    pub(super) discovered: Discovered,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<Metrics>,
    pub(super) memory: Arc<Memory>,
    pub(super) quota: Arc<CpuQuota>,
}

fn age_ms(at: SystemTime) -> u64 {
    at.elapsed().map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// Who was to deliver a secret that is not there.
fn why_not_delivered(config: &Config, name: &str) -> String {
    let file = config.secrets.iter().find(|secret| secret.name == name).map(|secret| secret.file.display());
    match (file, &config.policy_source) {
        (Some(file), _) => format!("there is no file {file}"),
        (None, PolicySource::Directory(_)) => "no such name in `secrets:` of the configuration".to_owned(),
        (None, PolicySource::Xds { .. }) => {
            "no such name in `secrets:` of the configuration, and the control plane sends none".to_owned()
        }
    }
}

impl Views for ProcessViews {
    fn status(&self) -> Map<String, Value> {
        let world = self.control.store().load();
        let policy = &world.policy;
        let places = self.control.places();
        let quarantined: Vec<_> = policy.endpoints().flat_map(|policy| quarantined(policy, &places)).collect();
        let conflicts = policy.conflicts().map(|conflict| conflict_json(conflict, &places));
        let numbers =
            self.control.contested().into_iter().filter(|contested| contested.what.starts_with("endpoint_id"));
        let conflicts: Vec<_> = conflicts.chain(numbers.map(|contested| json!(contested.to_string()))).collect();
        let refused: Vec<_> =
            self.control.refused().into_iter().map(|r| json!({ "name": r.name, "reason": r.reason })).collect();
        let missing_secrets: Vec<_> = world
            .missing_secrets()
            .into_iter()
            .map(|(name, reason)| match world.secrets.is_delivered(name) {
                true => json!({ "name": name, "reason": reason }),
                false => {
                    json!({ "name": name, "reason": format!("{reason}: {}", why_not_delivered(&self.config, name)) })
                }
            })
            .collect();
        let source = match &self.config.policy_source {
            PolicySource::Xds { address, .. } => json!({ "xds": address.to_string() }),
            PolicySource::Directory(path) => json!({ "directory": path }),
        };
        let mut status = Map::new();
        status.insert(
            "policy".into(),
            json!({
                "source": source,
                "received": world.has_policy,
                "generation": policy.generation(),
                "age_ms": world.published.map(age_ms),
                "endpoints": policy.endpoint_count(),
                "quarantined": quarantined,
                "conflicts": conflicts,
                "refused": refused,
                "missing_secrets": missing_secrets,
            }),
        );
        status.insert("tenants".into(), tenants::status(&self.control.store().tenants()));
        status.insert("identities".into(), identities(&world.identities));
        status.insert("xds".into(), self.streams.as_ref().map_or(Value::Null, streams));
        let listeners = self.listeners.in_service().into_iter().map(|open| {
            let addresses: Vec<_> = open.bound().collect();
            json!({ "name": open.config.name, "addresses": addresses, "origin": open.origin.as_str() })
        });
        status.insert("listeners".into(), listeners.collect());
        let reported = self.report.read();
        let not_served = reported.not_served().into_iter().map(|(name, (kind, reason))| {
            json!({ "name": name, "reason": reason, "as_before": kind == NotServed::AsBefore })
        });
        status.insert("listeners_not_served".into(), not_served.collect());
        let mut ignored = reported.ignored;
        for open in self.listeners.in_service() {
            let reason = open.unlogged.map(|reason| format!("access_log ({reason})"));
            reason.into_iter().for_each(|reason| ignored.entry(open.config.name.clone()).or_default().push(reason));
        }
        let ignored = ignored.into_iter().map(|(name, settings)| json!({ "name": name, "settings": settings }));
        status.insert("listener_settings_without_effect".into(), ignored.collect());
        if let Some(bootstrap) = &self.config.bootstrap {
            status.insert("bootstrap_settings_without_effect".into(), json!(bootstrap.ignored));
        }
        status.insert("limits".into(), json!({ "connections": self.config.max_connections }));
        status.insert("memory".into(), tenants::memory(&self.control.store().tenants(), self.memory.end()));
        status.insert("cpu_quota".into(), self.quota.to_json());
        status.insert("policy_memory".into(), tenants::policy_memory(&self.control));
        if let Some(memory) = self.metrics.log_memory() {
            let memory = json!({ "bytes": memory.bytes(), "limit_bytes": memory.limit() });
            status.insert("log_memory".into(), memory);
        }
        status.insert("draining".into(), json!(self.readiness.waiting_for().iter().any(|what| what == "draining")));
        status
    }

    fn config_dump(&self) -> Value {
        let world = self.control.store().load();
        let mut identities: Vec<_> = world.identities.entries().collect();
        identities.sort();
        let identities: Vec<_> =
            identities.iter().map(|(net, id)| json!({ "prefix": net.to_string(), "identity": id.0 })).collect();
        let policies = self.control.received();
        let policies = policies.iter().map(|policy| match tollgate_proto::json::network_policy_to_json(policy) {
            Ok(value) => value,
            Err(error) => json!({ "endpointId": policy.endpoint_id.to_string(), "unprintable": error.to_string() }),
        });
        let in_service = self.listeners.in_service();
        let listeners = in_service.iter().map(|open| crate::config::listener_to_json(&open.config));
        json!({
            "configuration": crate::config::to_json(&self.config),
            "listeners": listeners.collect::<Value>(),
            "clusters": self.discovered.clusters.names(),
            "routes": self.discovered.routes.names(),
            "endpoints": self.discovered.endpoints.names(),
            "networkpolicies": policies.collect::<Value>(),
            "identities": identities,
        })
    }

    fn explain(&self, asked: &Asked) -> Result<Explained, String> {
        let world = self.control.store().load();
        let listener = self.listeners.of_direction(asked.direction);
        let listener = listener.as_ref();
        let enforced = Enforced {
            policies: &world.policy,
            secrets: &world.secrets,
            normalize: &listener.map_or_else(Normalize::default, |listener| listener.normalize),
            forwarded_proto: listener.map_or(ForwardedProto::Keep, |listener| listener.http.forwarded_proto),
            proxy_id: listener.map_or(0, |listener| listener.proxy_id),
            places: &self.control.places(),
            reference: None,
            offline: false,
        };
        let explained = explanation::explain(asked, &enforced).map_err(|error| error.to_string())?;
        let tenant = tenant_of(&world, &EndpointKey::from(asked.endpoint));
        let names = self.control.store().tenants().books().names();
        let names = names.load();
        let name = names.of(tenant).unwrap_or_default();
        Ok(explained.paid_by(PaidBy::new(name, world.tenants.settings(tenant))))
    }

    fn clusters(&self) -> Vec<String> {
        self.discovered.clusters.names().into_iter().collect()
    }

    fn tenants(&self, endpoints: bool) -> Value {
        let world = endpoints.then(|| self.control.store().load().clone());
        tenants::all(
            &self.control.store().tenants(),
            self.metrics.attribution(),
            self.quota.to_json(),
            world.as_deref(),
        )
    }

    fn listeners(&self) -> Vec<BoundListener> {
        self.listeners.bound()
    }
}

/// What of one policy is not enforced as written, with the file that it comes out of.
fn quarantined(policy: &EndpointPolicy, places: &HashMap<String, FilePlace>) -> Vec<Value> {
    let place = places.get(policy.resource());
    let entry = |q: Quarantine| {
        let mut entry = json!({ "rule": q.rule.to_string() });
        if let Some(name) = &q.name {
            entry["name"] = (&**name).into();
        }
        entry["element"] = (&*q.element).into();
        entry["reason"] = (&*q.reason).into();
        if let Some(place) = place {
            entry["file"] = place.to_string().into();
        }
        entry
    };
    policy.quarantined().map(entry).collect()
}

fn conflict_json(conflict: &Conflict, places: &HashMap<String, FilePlace>) -> Value {
    let names = |names: &[Arc<str>]| names.iter().map(|name| Value::from(&**name)).collect::<Vec<_>>();
    let mut entry = json!({
        "endpoint": conflict.key.to_string(),
        "enforced": names(&conflict.enforced),
        "overridden": names(&conflict.overridden),
    });
    let claimants = conflict.enforced.iter().chain(&conflict.overridden);
    let files: Vec<String> = claimants.filter_map(|name| Some(places.get(&**name)?.to_string())).collect();
    if !files.is_empty() {
        entry["files"] = files.into();
    }
    entry
}

fn identities(sources: &Sources) -> Value {
    let settings = sources.settings();
    let source = match &settings.source {
        Identities::Static(_) => "list",
        Identities::Nphds => "nphds",
        Identities::Ipcache(_) => "ipcache",
        Identities::Agent => "agent",
    };
    let maps: Vec<_> = sources.maps().iter().flat_map(|maps| maps.views()).collect();
    let maps: Vec<_> = maps
        .iter()
        .map(|map| match &map.state {
            Ok(id) => json!({ "name": map.name, "id": id }),
            Err(reason) => json!({ "name": map.name, "problem": reason }),
        })
        .collect();
    json!({ "source": source, "mode": settings.mode.as_str(), "maps": maps, "problem": sources.waits_for() })
}

fn streams(status: &Status) -> Value {
    status
        .streams()
        .into_iter()
        .map(|stream| {
            json!({
                "type_url": stream.type_url,
                "wanted": stream.wanted,
                "connected": stream.connected,
                "since_ms": age_ms(stream.since),
                "mode": stream.mode.map(Variant::as_str),
                "resources": stream.resources,
                "version": stream.version,
                "refused_version": stream.refused_version,
                "accepted_age_ms": stream.accepted_at.map(age_ms),
                "responses": stream.responses,
                "acks": stream.acks,
                "nacks": stream.nacks,
                "reconnects": stream.reconnects,
                "failed_attempts": stream.failed_attempts,
                "last_error": stream.last_error,
            })
        })
        .collect()
}

/// Passes an operator's wishes to the main loop.
pub(super) struct ProcessActions {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) set_log_level: super::SetLogLevel,
}

impl Actions for ProcessActions {
    fn drain(&self) {
        // A full queue means that the same was asked for already.
        let _ = self.requests.try_send(Request::Drain);
    }

    fn quit(&self) {
        let _ = self.requests.try_send(Request::Quit);
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        (self.set_log_level)(level)
    }
}
