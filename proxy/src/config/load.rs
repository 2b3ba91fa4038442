//! From a file to a [`Config`], or to every mistake in it.

use std::path::Path;
use std::time::Duration;

use super::document::{self, Node, Value};
use super::error::{ConfigError, ConfigErrors};
use super::listeners::{self, Bound};
use super::read::{Field, Mistake, Mistakes, Section};
use super::{Config, ListenAddress, MemoryLimit, UpstreamDefaults, scalar, sections};
use super::{identities, limits, tenants};
use crate::bootstrap;
use crate::tenant::{Pools, TenantConfig};

/// Under the 30 s that Kubernetes gives a pod to end.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// As Cilium's agent configures Envoy (`proxy-max-active-downstream-connections`).
pub(crate) const MAX_CONNECTIONS: usize = 50_000;
/// In the working directory, so that two proxies of two users do not compete.
const ADMIN_SOCKET: &str = "run/admin.sock";

/// The admin address of a configuration that does not name one, and of a command that is not told one.
pub fn default_admin() -> ListenAddress {
    ListenAddress::Unix(ADMIN_SOCKET.into())
}

/// Reads and checks a configuration file: ours or the bootstrap that Cilium's chart writes for Envoy (YAML, hence also JSON). Relative paths in it are relative to the
/// working directory.
///
/// # Errors
/// Every mistake in the file, each with its place and remedy.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    parse(&read_text(path)?, path)
}

/// The text of a configuration file.
///
/// # Errors
/// It cannot be read, or is no text.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    std::fs::read_to_string(path).map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::InvalidData => "not UTF-8 text; this is no configuration file".to_owned(),
            _ => format!("cannot read: {}; name a configuration file", sections::io_reason(&error)),
        };
        ConfigErrors::one(path, None, message)
    })
}

/// Reads and checks the text of a configuration file; `path` names it in errors.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
    let root = document::parse(text).map_err(|error| not_yaml(path, &error))?;
    let mistakes = Mistakes::default();
    let config = match bootstrap::is_bootstrap(&root) {
        true => bootstrap::read(&root, &mistakes),
        false => read(&root, &mistakes),
    };
    let mistakes = mistakes.into_sorted();
    match config {
        Some(config) if mistakes.is_empty() => Ok(config),
        _ => Err(errors(path, mistakes)),
    }
}

fn not_yaml(path: &Path, error: &document::SyntaxError) -> ConfigErrors {
    let place = error.place.map(|place| (place.line, place.column));
    ConfigErrors::one(path, place, format!("not valid YAML: {}", error.message))
}

fn errors(path: &Path, mistakes: Vec<Mistake>) -> ConfigErrors {
    let error = |mistake: Mistake| ConfigError {
        file: path.to_owned(),
        place: Some((mistake.place.line, mistake.place.column)),
        field: mistake.field,
        message: mistake.message,
    };
    ConfigErrors::new(mistakes.into_iter().map(error).collect())
}

/// `None` only after a mistake has been noted.
fn read(root: &Node, mistakes: &Mistakes) -> Option<Config> {
    let empty = Node { place: root.place, value: Value::Map(Vec::new()) };
    let root = match root.value {
        Value::Null => &empty,
        _ => root,
    };
    let whole = Field { node: root, path: String::new(), mistakes };
    let mut top = whole.section("keys such as listeners and policies")?;
    let mut bound = Bound::default();
    let listeners = listeners::listeners(&mut top, &mut bound, mistakes);
    let dynamic_listeners = listeners::come_from_xds(&mut top);
    let default_admin = Some(ListenAddress::Unix(ADMIN_SOCKET.into()));
    let admin = endpoint(&mut top, "admin", default_admin, scalar::optional_listen_address);
    let metrics = endpoint(&mut top, "metrics", None, scalar::optional_socket_address);
    let health = endpoint(&mut top, "health", None, scalar::optional_socket_address);
    let admin_tcp = match admin.value {
        Some(ListenAddress::Tcp(address)) => Some(address),
        _ => None,
    };
    for (key, address, place) in [
        ("admin.address", admin_tcp, admin.place),
        ("metrics.address", metrics.value, metrics.place),
        ("health.address", health.value, health.place),
    ] {
        if let Some(address) = address {
            bound.claim(address, key, place, mistakes);
        }
    }

    let node = sections::node(&mut top);
    let workers = top.read("workers", cores(), |value| count(value, 1024));
    let policy_source = sections::policy_source(&mut top);
    let identities = identities::identities(&mut top, dynamic_listeners);
    let secrets = sections::secrets(&mut top);
    let access_log = sections::access_log(&mut top);
    let drain_timeout = top.read("drain_timeout", DRAIN_TIMEOUT, scalar::duration);
    let max_connections = max_connections(&mut top);
    let (fairness, lanes) = sharing(&mut top);
    let reported_version = top.read("reported_version", None, |value| match scalar::text(value)? {
        "" => Err("empty; write a version, or remove it".to_owned()),
        text => Ok(Some(text.to_owned())),
    });
    let limits = limits::limits(&mut top);
    // What a control group says is known where the process runs.
    let memory = match limits.memory {
        MemoryLimit::Bytes(bytes) => Some(bytes),
        MemoryLimit::OfControlGroup | MemoryLimit::Off => None,
    };
    let pools = Pools::of(max_connections, workers, &limits, memory);
    let tenants = tenants::tenants(&mut top, Pools { fairness, lanes, ..pools });
    top.finish(&[]);
    let (policy_source, tenants_from_xds) = policy_source?;
    Some(Config {
        node,
        workers,
        admin: admin.value.into_iter().collect(),
        reported_version,
        metrics: metrics.value.into_iter().collect(),
        health: health.value.into_iter().collect(),
        policy_source,
        tenants_from_xds,
        identities,
        secrets,
        listeners,
        dynamic_listeners,
        upstream: UpstreamDefaults::default(),
        bootstrap: None,
        access_log,
        drain_timeout,
        max_connections,
        limits,
        tenants,
        fairness,
        lanes,
    })
}

fn max_connections(top: &mut Section<'_>) -> usize {
    top.read("max_connections", MAX_CONNECTIONS, |value| count(value, 10_000_000))
}

/// Whether time is shared by tenant, and whether there are lanes.
fn sharing(top: &mut Section<'_>) -> (bool, bool) {
    let fairness = top.read("fairness", true, scalar::on_or_off);
    let lanes = top.read("lanes", fairness, |value| match scalar::on_or_off(value)? {
        true if !fairness => Err("lanes need fair shares; remove fairness: off, or set lanes: off".to_owned()),
        lanes => Ok(lanes),
    });
    (fairness, lanes)
}

/// Tenants of a configuration, and what there is to give them, as far as the file says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantsConfigured {
    /// The tenants.
    pub tenants: TenantConfig,
    /// What there is; no end where that is known only where the proxy runs.
    pub pools: Pools,
}

/// The section `tenants`, for those who look at tenants on another machine than the proxy's: nothing else in the file is checked than
/// that and what it rests on.
///
/// # Errors
/// The file cannot be read, is no mapping in YAML, or has mistakes there.
pub fn tenants_configured(path: &Path) -> Result<TenantsConfigured, ConfigErrors> {
    let root = document::parse(&read_text(path)?).map_err(|error| not_yaml(path, &error))?;
    let mistakes = Mistakes::default();
    let whole = Field { node: &root, path: String::new(), mistakes: &mistakes };
    let mut configured = TenantsConfigured { tenants: TenantConfig::default(), pools: Pools::default() };
    let is_ours = !bootstrap::is_bootstrap(&root) && !matches!(root.value, Value::Null);
    if is_ours && let Some(mut top) = whole.section("keys such as listeners and policies") {
        let workers = top.read("workers", usize::MAX, |value| count(value, 1024));
        let (fairness, lanes) = sharing(&mut top);
        let max_connections = max_connections(&mut top);
        let limits = limits::limits(&mut top);
        let memory = match limits.memory {
            MemoryLimit::Bytes(bytes) => Some(bytes),
            // As much as it takes.
            MemoryLimit::OfControlGroup => Some(u64::MAX),
            MemoryLimit::Off => None,
        };
        let pools = Pools { fairness, lanes, ..Pools::of(max_connections, workers, &limits, memory) };
        configured = TenantsConfigured { tenants: tenants::tenants(&mut top, pools), pools };
    }
    let mistakes = mistakes.into_sorted();
    if mistakes.is_empty() { Ok(configured) } else { Err(errors(path, mistakes)) }
}

/// An address of ours and where the file names it.
struct Endpoint<T> {
    value: Option<T>,
    place: document::Place,
}

/// `KEY: {address: …}`.
fn endpoint<T>(
    top: &mut Section<'_>,
    key: &'static str,
    default: Option<T>,
    parse: impl FnOnce(&Value) -> Result<Option<T>, String>,
) -> Endpoint<T> {
    let mut endpoint = Endpoint { value: default, place: top.place };
    let Some(mut section) = top.field(key).and_then(|field| field.section("{address: …}")) else {
        return endpoint;
    };
    if let Some(field) = section.field("address") {
        endpoint.place = field.node.place;
        if let Some(value) = field.read(parse) {
            endpoint.value = value;
        }
    }
    section.finish(&[]);
    endpoint
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn count(value: &Value, most: u64) -> Result<usize, String> {
    let number = scalar::integer(value, 1, most)?;
    usize::try_from(number).map_err(|_| "too large for this machine".to_owned())
}
