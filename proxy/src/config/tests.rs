//! Configuration files in, values or exact error lines out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tollgate_policy::{Direction, SecurityId};

use super::{
    AccessLog, Config, EscapedSlashes, ForwardedProto, HttpSettings, Identities, IdentityMode, IdentitySettings,
    IdleLimits, Limits, ListenAddress, MemoryLimit, OriginalSource, PolicySource, Rate, SecretFile, Underscores,
    Upstream, XdsMode, load, parse,
};
use crate::tenant::TenantConfig;

const FILE: &str = "tollgate.yaml";

fn config(text: &str) -> Config {
    parse(text, Path::new(FILE)).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// Error lines without the file name.
fn errors(text: &str) -> Vec<String> {
    match parse(text, Path::new(FILE)) {
        Ok(config) => panic!("accepted:\n{text}\n{config:?}"),
        Err(errors) => errors
            .iter()
            .map(|error| {
                let line = error.to_string();
                line.strip_prefix("tollgate.yaml:").expect("names the file").to_owned()
            })
            .collect(),
    }
}

#[test]
fn a_policy_source_alone_gives_every_default() {
    let config = config("xds: {}");
    assert_eq!(config.node.id, "host~127.0.0.1~no-id~localdomain");
    assert_eq!(config.node.cluster, "ingress-cluster");
    assert_eq!(config.workers, std::thread::available_parallelism().expect("cores").get());
    assert_eq!(config.admin, [ListenAddress::Unix("run/admin.sock".into())]);
    assert!(config.metrics.is_empty() && config.health.is_empty());
    assert_eq!(
        config.policy_source,
        PolicySource::Xds {
            address: ListenAddress::Unix("/var/run/cilium/envoy/sockets/xds.sock".into()),
            mode: XdsMode::Auto,
        }
    );
    assert_eq!(config.identities, IdentitySettings::new(Identities::Nphds));
    assert_eq!(config.access_log, []);
    assert_eq!(config.drain_timeout, Duration::from_secs(20));
    assert_eq!((config.max_connections, config.fairness, config.lanes), (50_000, true, true));
    assert_eq!(config.limits, Limits::default());

    let [listener] = &config.listeners[..] else {
        panic!("one listener, not {:?}", config.listeners);
    };
    assert_eq!((listener.name.as_str(), listener.direction), ("ingress", Direction::Ingress));
    assert_eq!(listener.address.to_string(), "127.0.0.1:15001");
    assert!(listener.transparent);
    assert_eq!((listener.upstream, listener.endpoint), (Upstream::OriginalDst, None));
    assert_eq!(listener.original_source, OriginalSource::Never);
    assert!(listener.normalize.path && listener.normalize.merge_slashes);
    assert_eq!(listener.normalize.escaped_slashes, EscapedSlashes::UnescapeAndRedirect);
    assert_eq!(listener.policy_wait, Duration::from_secs(5));
    assert_eq!(listener.connect_timeout, Duration::from_secs(2));
    assert_eq!(listener.request_head_timeout, Duration::from_secs(10));
    assert_eq!(listener.denied_body, "Access denied");
    assert!(!listener.reason_header);
    assert_eq!((listener.http, &listener.access_log), (HttpSettings::default(), &None));
}

#[test]
fn every_key_is_read() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().display();
    let text = format!(
        r#"
node: {{ id: "sidecar~10.0.0.9~pod.ns~ns.svc", cluster: edge }}
workers: 3
max_connections: 10
limits: {{ mode: shadow, in_flight: 77, http2_control_frames: {{ per_second: 7 }}, http2_resets: "off", idle_connections: {{ above_percent: 5, before_request: 0s }}, memory: 512MiB, cpu_quota: off, unsent: 64KiB }}
fairness: off
drain_timeout: 500ms
admin: {{ address: 127.0.0.1:9901 }}
reported_version: "d1c4f0ba/1.2.3"
metrics: {{ address: "[::1]:9964" }}
health: {{ address: 127.0.0.1:9878 }}
policies: {{ directory: "{root}" }}
identities:
  - {{ identity: 32226, addresses: [10.244.1.17, "fd00::/64"] }}
secrets: [{{ name: bearer-token, file: "{root}/token" }}]
access_log: [{{ json: stdout }}, {{ json: "{root}/flows.json" }}, {{ unix: run/log.sock }}]
tenants: {{ default: {{ weight: 1 }} }}
listeners:
  - name: load
    address: 127.0.0.1:0
    additional_addresses: ["[::1]:0"]
    direction: egress
    transparent: false
    reuse_port: false
    proxy_id: 65535
    upstream: 127.0.0.1:8080
    endpoint: 10.244.2.232
    original_source: always
    normalize: {{ path: false, merge_slashes: false, escaped_slashes: keep, field_underscores: drop }}
    policy_wait: 0s
    connect_timeout: 1m
    request_head_timeout: 1h
    denied_body: |
      Stop here.
    reason_header: true
    http: {{ request_id: true, forwarded_proto: add, stream_idle_timeout: 3s, timeout: 4s, grpc_timeout: true, grpc_timeout_max: 0s, retries: 2, per_try_timeout: 6s, websocket: false, max_requests_per_connection: 9 }}
    tcp_idle_timeout: 7s
    access_log: {{ unix: /run/cilium/envoy/sockets/access_log.sock }}
"#
    );
    let config = config(&text);
    assert_eq!(config.node.id, "sidecar~10.0.0.9~pod.ns~ns.svc");
    assert_eq!(config.node.cluster, "edge");
    assert_eq!((config.workers, config.max_connections, config.fairness, config.lanes), (3, 10, false, false));
    let control = Some(Rate { per_second: 7, burst: 2000 });
    let idle = IdleLimits { above_percent: 5, before_request: Duration::ZERO, ..IdleLimits::default() };
    let limits = Limits {
        shadow: true,
        in_flight: 77,
        http2_control_frames: control,
        http2_resets: None,
        idle_connections: Some(idle),
        memory: MemoryLimit::Bytes(512 << 20),
        cpu_quota: false,
        unsent: Some(64 << 10),
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.drain_timeout, Duration::from_millis(500));
    assert_eq!(config.reported_version.as_deref(), Some("d1c4f0ba/1.2.3"));
    assert_eq!(config.admin, ["127.0.0.1:9901".parse().expect("address")]);
    assert_eq!(config.metrics, ["[::1]:9964".parse().expect("address")]);
    assert_eq!(config.health, ["127.0.0.1:9878".parse().expect("address")]);
    assert_eq!(config.policy_source, PolicySource::Directory(directory.path().to_owned()));
    let Identities::Static(identities) = &config.identities.source else {
        panic!("a list, not {:?}", config.identities);
    };
    assert_eq!(identities[0].identity, SecurityId(32226));
    let prefixes: Vec<_> = identities[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.244.1.17/32", "fd00::/64"]);
    let secret = SecretFile { name: "bearer-token".to_owned(), file: directory.path().join("token") };
    assert_eq!(config.secrets, [secret]);
    let file = directory.path().join("flows.json");
    let socket = AccessLog::CiliumSocket("run/log.sock".into());
    assert_eq!(config.access_log, [AccessLog::JsonStdout, AccessLog::JsonFile(file), socket]);

    let listener = &config.listeners[0];
    assert_eq!((listener.name.as_str(), listener.direction), ("load", Direction::Egress));
    assert_eq!(listener.additional_addresses, ["[::1]:0".parse().expect("address")]);
    assert!(!listener.transparent && !listener.reuse_port && listener.reason_header && listener.http.request_id);
    assert_eq!(listener.access_log, Some("/run/cilium/envoy/sockets/access_log.sock".into()));
    let limits = (listener.http.limits.stream_idle_timeout, listener.http.limits.timeout);
    assert_eq!(limits, (Some(Duration::from_secs(3)), Some(Duration::from_secs(4))));
    assert_eq!((listener.http.limits.retries, listener.http.forwarded_proto), (2, ForwardedProto::Add));
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!((listener.http.limits.per_try_timeout, listener.tcp_idle_timeout), (seconds(6), seconds(7)));
    assert!(
        listener.http.limits.grpc_timeout
            && listener.http.limits.grpc_timeout_max.is_none()
            && !listener.http.websocket
    );
    assert_eq!(listener.proxy_id, 65535);
    let upstream = "127.0.0.1:8080".parse().expect("address");
    assert_eq!(listener.upstream, Upstream::Fixed(upstream));
    assert_eq!(listener.endpoint, Some("10.244.2.232".parse().expect("address")));
    assert_eq!(listener.original_source, OriginalSource::Always);
    assert!(!listener.normalize.path && !listener.normalize.merge_slashes);
    assert_eq!(listener.normalize.escaped_slashes, EscapedSlashes::Keep);
    assert_eq!(listener.normalize.field_underscores, Underscores::Drop);
    assert_eq!(listener.http.max_requests_per_connection, 9);
    assert_eq!(listener.policy_wait, Duration::ZERO);
    assert_eq!(listener.connect_timeout, Duration::from_secs(60));
    assert_eq!(listener.request_head_timeout, Duration::from_secs(3600));
    assert_eq!(listener.denied_body, "Stop here.");
}

#[test]
fn json_is_read_and_none_turns_admin_off() {
    let config = config(
        "{\n\t\"xds\": {\"address\": \"http://127.0.0.1:18000\", \"mode\": \"split\"},\n\t\
         \"admin\": {\"address\": \"none\"}}",
    );
    assert_eq!(config.admin, []);
    assert_eq!(
        config.policy_source,
        PolicySource::Xds { address: "127.0.0.1:18000".parse().expect("address"), mode: XdsMode::Split }
    );
}

#[test]
fn transparent_egress_keeps_the_source_towards_remote_destinations() {
    let config = config("xds: {}\nlisteners: [{direction: egress}]");
    assert_eq!(config.listeners[0].name, "egress");
    assert_eq!(config.listeners[0].original_source, OriginalSource::RemoteDestinations);
}

#[test]
fn listeners_can_come_from_the_control_plane() {
    let config = config("xds: {}\nlisteners: xds");
    assert!(config.dynamic_listeners && config.listeners.is_empty());
    let dump = super::to_json(&config);
    assert_eq!((&dump["listeners"], &dump["identities"]), (&"xds".into(), &"agent".into()));
    assert_eq!(config.identities.source, Identities::Agent);
}

#[test]
fn one_mistake_is_one_line_with_place_and_remedy() {
    for (text, expected) in [
        // Keys.
        ("xds: {}\nlistners: []", "2:1: listners: unknown key; did you mean \"listeners\"?"),
        (
            "xds: {}\nlisteners:\n  - name: a\n    adress: 127.0.0.1:1",
            "4:5: listeners[0].adress: unknown key; did you mean \"address\"?",
        ),
        ("xds: {}\nlimits: {mode: warn}", "2:16: limits.mode: \"warn\" is none of enforce, shadow"),
        (
            "xds: {}\nlimits: {http2_resets: {burst: 0}}",
            "2:32: limits.http2_resets.burst: not a whole number from 1 to 1000000000",
        ),
        ("xds: {}\nlimits: {cpu_quota: container}", "2:21: limits.cpu_quota: \"container\" is none of cgroup, off"),
        ("xds: {}\nlimits: {unsent: 1KiB}", "2:18: limits.unsent: 1024 bytes are no use; write 16KiB to 1GiB, or off"),
        (
            "xds: {}\nlimits: {memory: 1MiB}",
            "2:18: limits.memory: 1048576 bytes are not enough to serve anybody; write 32MiB or more, or off",
        ),
        (
            "xds: {}\nlimits: {http2_resets: 5}",
            "2:24: limits.http2_resets: a number where a mapping belongs; write {per_second: 500, burst: 2000}, or off",
        ),
        ("xds: {}\nnode: {qqq: 1}", "2:8: node.qqq: unknown key; known are id, cluster"),
        ("xds: {}\nxds: {}", "2:1: not valid YAML: key \"xds\" appears twice"),
        (
            "policies: {directory: /tmp}\nlisteners: xds",
            "2:12: listeners: they come over xds, which is not configured; add xds or write [{name: ingress, address: \
             \"127.0.0.1:15001\", direction: ingress}]",
        ),
        // The document.
        ("- xds", "1:1: a list where a mapping belongs; write keys such as listeners and policies"),
        ("xds: [1\nb: 2", "2:2: not valid YAML: illegal placement of ':' indicator"),
        ("xds: {}\n---\nxds: {}", "3:1: not valid YAML: a second YAML document; only one is read"),
        (
            "",
            "1:1: no policy source; add xds: {address: \"unix:/var/run/cilium/envoy/sockets/xds.sock\"} or policies: \
             {directory: ./policies}",
        ),
        // Values.
        ("xds: {}\nworkers: 0", "2:10: workers: not a whole number from 1 to 1024"),
        ("xds: {}\nworkers: many", "2:10: workers: not a whole number from 1 to 1024"),
        ("xds: {}\ndrain_timeout: 5", "2:16: drain_timeout: 5 has no unit; write 5s or 5ms"),
        (
            "xds: {}\ndrain_timeout: 5 s",
            "2:16: drain_timeout: \"5 s\" is not a duration; write a whole number and ms, s, m or h, such as 5s \
             or 500ms",
        ),
        ("xds: {}\ndrain_timeout: 25h", "2:16: drain_timeout: \"25h\" is longer than 24h"),
        ("xds: {}\nlisteners: [{connect_timeout: 0s}]", "2:31: listeners[0].connect_timeout: must be longer than zero"),
        ("xds: {}\nlisteners: [{transparent: yes}]", "2:27: listeners[0].transparent: neither true nor false"),
        (
            "xds: {}\nlisteners: [{denied_body: 7}]",
            "2:27: listeners[0].denied_body: a number where text belongs; put it in quotes",
        ),
        (
            "xds: {}\nlisteners: [{address: localhost:15001}]",
            "2:23: listeners[0].address: \"localhost:15001\" is not an address; write IP:PORT, such as 127.0.0.1:15001 \
             or \"[::1]:15001\"",
        ),
        (
            "xds: {}\nlisteners: [{direction: ingres}]",
            "2:25: listeners[0].direction: \"ingres\" is unknown; did you mean \"ingress\"?",
        ),
        (
            "xds: {}\nlisteners: [{original_source: 10.0.0.1}]",
            "2:31: listeners[0].original_source: \"10.0.0.1\" is none of never, always, remote_destinations",
        ),
        (
            "xds: {}\nlisteners: [{name: in gress}]",
            "2:20: listeners[0].name: \"in gress\" is not a name; write 1 to 64 letters, digits, dots, dashes or \
             underscores",
        ),
        (
            "xds: {}\nlisteners: []",
            "2:12: listeners: no listener, so nothing would be accepted; write [{name: ingress, address: \
             \"127.0.0.1:15001\", direction: ingress}]",
        ),
        ("xds: {}\nlisteners: [{proxy_id: 65536}]", "2:24: listeners[0].proxy_id: not a whole number from 0 to 65535"),
        ("xds: {}\nadmin: 127.0.0.1:9901", "2:8: admin: text where a mapping belongs; write {address: …}"),
        (
            "xds: {}\nadmin: {address: /run/admin.sock}",
            "2:18: admin.address: \"/run/admin.sock\" is not an address; write unix:PATH or IP:PORT, such as \
             unix:run/admin.sock or 127.0.0.1:9901",
        ),
        // Node.
        (
            "xds: {}\nnode: {id: host}",
            "2:12: node.id: \"host\" has 1 parts joined by ~ and needs 4, the second an IP address, such as \
             host~127.0.0.1~no-id~localdomain",
        ),
        (
            "xds: {}\nnode: {id: a~b~c~d}",
            "2:12: node.id: second part \"b\" is not an IP address; write it like host~127.0.0.1~no-id~localdomain",
        ),
        // Policy source.
        (
            "xds: {}\npolicies: {directory: /}",
            "2:1: policies: policy comes from exactly one source; remove either xds or policies",
        ),
        (
            "policies: {directory: /nonexistent}",
            "1:23: policies.directory: cannot open directory /nonexistent: no such file or directory; create it (paths \
             are relative to the working directory)",
        ),
        (
            "policies: {directory: /dev/null}",
            "1:23: policies.directory: /dev/null is not a directory; name the directory that holds the policy files",
        ),
        (
            "xds: {address: \"https://10.0.0.1:1\"}",
            "1:16: xds.address: TLS to the control plane is not implemented in this version; use unix:PATH or \
             http://IP:PORT",
        ),
        (
            "xds: {address: 'http://agent:1'}",
            "1:16: xds.address: \"http://agent:1\" is not an address; write unix:PATH or http://IP:PORT, such as \
             unix:run/xds.sock; names are not resolved",
        ),
        (
            "xds: {tls: {}}",
            "1:7: xds.tls: TLS to the control plane is not implemented in this version; use a Unix socket",
        ),
        // Not in this version.
        (
            "xds: {}\nlisteners: [{tls: {}}]",
            "2:14: listeners[0].tls: TLS is not implemented in this version; remove it",
        ),
        (
            "xds: {}\nidentities: { ipcache: /sys }",
            "2:24: identities.ipcache: /sys is a directory; write the path of a pinned map, or bpf_root",
        ),
        ("xds: {}\ntenants: {gold: {weight: 2}}", "2:11: tenants.gold: unknown key; known are default, groups"),
        ("xds: {}\ntenants: {default: {weight: 0}}", "2:29: tenants.default.weight: not a whole number from 1 to 1000"),
        // Access log.
        (
            "xds: {}\naccess_log: [{json: stdout}, {json: stdout}]",
            "2:37: access_log[1].json: this sink is listed twice; remove one",
        ),
        (
            "xds: {}\naccess_log: [{unix: a.sock}, {unix: a.sock}]",
            "2:37: access_log[1].unix: this sink is listed twice; remove one",
        ),
        (
            "xds: {}\naccess_log: [{unix: a.sock, json: stdout}]",
            "2:21: access_log[0].unix: two sinks in one entry; give each its own",
        ),
        (
            "xds: {}\naccess_log: [{}]",
            "2:14: access_log[0]: no sink; write {json: stdout}, {json: FILE} or {unix: SOCKET}",
        ),
        ("xds: {}\naccess_log: [{unix: \"\"}]", "2:21: access_log[0].unix: empty; write the path of a Unix socket"),
        (
            "xds: {}\nsecrets: [{name: a, file: token}, {name: a, file: b}]",
            "2:42: secrets[1].name: secret \"a\" is listed twice; remove one",
        ),
        (
            "xds: {}\nsecrets: [{name: a}]",
            "2:11: secrets[0]: no file; add file: the path of the file that holds the secret",
        ),
        (
            "xds: {}\nsecrets: [{name: a, file: /etc}]",
            "2:27: secrets[0].file: /etc is a directory; write the path of a file",
        ),
        (
            "xds: {}\naccess_log: [{json: /nonexistent/flows}]",
            "2:21: access_log[0].json: cannot open directory /nonexistent: no such file or directory; create it (paths \
             are relative to the working directory)",
        ),
    ] {
        assert_eq!(errors(text), [expected], "{text}");
    }
}

#[test]
fn identities_come_from_maps() {
    let identities = |text: &str| config(&format!("xds: {{}}\nidentities: {text}")).identities;
    let named = identities("{ ipcache: /sys/fs/bpf/tc/globals/cilium_ipcache_v2 }");
    let path = PathBuf::from("/sys/fs/bpf/tc/globals/cilium_ipcache_v2");
    assert_eq!(named, IdentitySettings::new(Identities::Ipcache(path)));
    assert_eq!((named.mode, named.ttl, named.conntrack), (IdentityMode::Compat, Duration::from_millis(3), None));

    let globals = || Some(PathBuf::from("/sys/tc/globals"));
    let below = identities("{ bpf_root: /sys }");
    assert_eq!(below, IdentitySettings::of_bpf_root(Path::new("/sys"), "cilium_ipcache_v2"));
    assert_eq!(below.conntrack, globals());
    let all = identities("{ bpf_root: /sys, ipcache_name: other, conntrack: false, mode: strict, ttl: 0s }");
    assert_eq!(all.source, Identities::Ipcache("/sys/tc/globals/other".into()));
    assert_eq!((all.conntrack, all.mode, all.ttl), (None, IdentityMode::Strict, Duration::ZERO));
    let hosts = identities("{ nphds: true, bpf_root: /sys, mode: fresh }");
    assert_eq!((hosts.source, hosts.conntrack, hosts.mode), (Identities::Nphds, globals(), IdentityMode::Fresh));
    let both = identities("{ ipcache: /sys/fs/x, conntrack: /sys/fs }");
    assert_eq!((both.source, both.conntrack), (Identities::Ipcache("/sys/fs/x".into()), Some("/sys/fs".into())));

    for (text, expected) in [
        (
            "{}",
            "2:13: identities: no source of identities; write {bpf_root: /sys/fs/bpf, ipcache_name: cilium_ipcache_v2}",
        ),
        (
            "agent",
            "2:13: identities: an agent names its maps with its listeners; write listeners: xds, or name the maps here",
        ),
        ("{ mode: lax, nphds: true }", "2:21: identities.mode: \"lax\" is none of compat, fresh, strict"),
        (
            "{ bpf_root: /none }",
            "2:25: identities.bpf_root: cannot open directory /none: no such file or directory; create it (paths are \
             relative to the working directory)",
        ),
        (
            "{ ipcache_name: x }",
            "2:29: identities.ipcache_name: a name below bpf_root, which is not there; add bpf_root: /sys/fs/bpf or \
             write ipcache: PATH",
        ),
        (
            "{ bpf_root: /sys, ipcache_name: a/b }",
            "2:45: identities.ipcache_name: \"a/b\" is no file name; write one below bpf_root/tc/globals, such as \
             cilium_ipcache_v2",
        ),
        (
            "{ ipcache: cilium_ipcache_v2 }",
            "2:24: identities.ipcache: \"cilium_ipcache_v2\" has no directory; write \
             /sys/fs/bpf/tc/globals/cilium_ipcache_v2",
        ),
        (
            "{ ipcache: /sys/a, nphds: true }",
            "2:39: identities.nphds: addresses have exactly one source; remove nphds or the ipcache",
        ),
        (
            "{ ipcache: /sys/a, conntrack: true }",
            "2:43: identities.conntrack: the conntrack maps are below bpf_root, which is not there; add bpf_root: \
             /sys/fs/bpf",
        ),
        (
            "{ bpf_root: /sys, ipcache: /sys/a, ipcache_name: b }",
            "2:40: identities.ipcache: the ipcache is named twice; remove ipcache or ipcache_name",
        ),
        ("{ bpf_root: /sys, ttl: 3 }", "2:36: identities.ttl: 3 has no unit; write 3s or 3ms"),
        ("{ bpf_root: /sys, conntrak: true }", "2:31: identities.conntrak: unknown key; did you mean \"conntrack\"?"),
    ] {
        let found = errors(&format!("xds: {{}}\nidentities: {text}"));
        assert!(found.iter().any(|line| line == expected), "{text}\n{expected}\n{found:#?}");
    }
}

/// What was read is shown as it would be written.
#[test]
fn a_dump_of_maps_reads_back() {
    for text in ["{ bpf_root: /sys, mode: strict }", "{ nphds: true, bpf_root: /sys }", "{ ipcache: /sys/a, ttl: 1s }"]
    {
        let config = config(&format!("xds: {{}}\nidentities: {text}"));
        let dump = super::to_json(&config)["identities"].to_string();
        assert_eq!(self::config(&format!("xds: {{}}\nidentities: {dump}")).identities, config.identities, "{dump}");
    }
}

#[test]
fn identities_are_checked() {
    let directory = "policies: {directory: /}\n";
    for (text, expected) in [
        (
            "identities: nphds",
            "2:13: identities: nphds comes over xds, which is not configured; add xds or list the identities here",
        ),
        (
            "identities: [{identity: 0, addresses: []}]",
            "2:25: identities[0].identity: not a whole number from 1 to 4294967295",
        ),
        ("identities: [{addresses: []}]", "2:14: identities[0]: no identity; add identity: NUMBER"),
        ("identities: [{identity: 7}]", "2:14: identities[0]: no addresses; add addresses: [IP or prefix, …]"),
        (
            "identities: [{identity: 7, addresses: [10.0.0.1/8]}]",
            "2:40: identities[0].addresses[0]: \"10.0.0.1/8\" has bits set after its prefix; write 10.0.0.0/8",
        ),
        (
            "identities: [{identity: 7, addresses: ['::ffff:10.0.0.1']}]",
            "2:40: identities[0].addresses[0]: \"::ffff:10.0.0.1\" is an IPv4 address in IPv6 form, which no peer has; \
             write it as IPv4",
        ),
        (
            "identities:\n  - {identity: 7, addresses: [10.0.0.1]}\n  - {identity: 8, addresses: [10.0.0.1/32]}",
            "4:31: identities[1].addresses[0]: 10.0.0.1/32 belongs to identity 7 already (line 3); give it to one of \
             them",
        ),
    ] {
        assert_eq!(errors(&format!("{directory}{text}")), [expected], "{text}");
    }
}

#[test]
fn listeners_must_not_compete_or_loop() {
    for (text, expected) in [
        (
            "listeners: [{name: a}, {name: a, address: 127.0.0.1:2}]",
            "2:31: listeners[1].name: \"a\" is the name of another listener (line 2); names must differ",
        ),
        (
            "listeners: [{}, {address: 127.0.0.1:2}]",
            "2:17: listeners[1]: \"ingress\" is the name of another listener (line 2); names must differ",
        ),
        (
            "listeners: [{name: a}, {name: b, address: 0.0.0.0:15001}]",
            "2:43: listeners[1].address: 0.0.0.0:15001 is taken by listeners[0].address (127.0.0.1:15001); choose \
             another port",
        ),
        (
            "listeners: [{additional_addresses: ['[::1]:15001', 127.0.0.1:15001]}]",
            "2:52: listeners[0].additional_addresses[1]: 127.0.0.1:15001 is taken by listeners[0].address \
             (127.0.0.1:15001); choose another port",
        ),
        (
            "health: {address: 127.0.0.1:15001}",
            "2:19: health.address: 127.0.0.1:15001 is taken by listeners (127.0.0.1:15001); choose another port",
        ),
        (
            "listeners: [{transparent: false}]",
            "2:27: listeners[0].transparent: upstream original_dst on a listener that is not transparent is the \
             listener itself; write upstream: IP:PORT, or transparent: true",
        ),
        (
            "listeners: [{transparent: false, upstream: original_dst}]",
            "2:44: listeners[0].upstream: upstream original_dst on a listener that is not transparent is the listener \
             itself; write upstream: IP:PORT, or transparent: true",
        ),
        (
            "listeners: [{upstream: 127.0.0.1:15001}]",
            "2:24: listeners[0].upstream: 127.0.0.1:15001 is this listener itself; write the address of the upstream",
        ),
        (
            "listeners: [{transparent: false, upstream: helloworld:80}]",
            "2:44: listeners[0].upstream: \"helloworld:80\" is neither original_dst nor an IP:PORT, such as \
             127.0.0.1:8080; names are not resolved",
        ),
    ] {
        assert_eq!(errors(&format!("xds: {{}}\n{text}")), [expected], "{text}");
    }
}

#[test]
fn tenants_are_read() {
    let text = r#"
xds: {tenants: true}
tenants:
  default: {ceilings: {requests: 100}, shadow: true}
  groups:
  - name: team-a
    members: {endpoint_ids: [69], addresses: [10.244.1.17, 10.244.2.0/28, "fd00::/64"], identities: [32226]}
    weight: 1000
    guarantee: {connections: 500, in_flight: 200, memory: 16MiB, cpu: 500m}
    ceilings:
      connections: 5000
      new_connections: {per_second: 500, burst: 1000}
      requests: {per_second: 2000}
      in_flight: 1000
      long_streams: 50
      bytes: {per_second: 200MiB, burst: 16MiB}
      header: 64KiB
      memory: 1GiB
      cpu: 2
      queue_delay: 20ms
      upstream_connections: 256
      log_bytes: 256KiB
    policy: {rules: 5000, expression: 1KiB, program: 256KiB, compile_per_second: 50ms, memory: 64MiB}
    isolation: lane
"#;
    let config = config(text);
    assert!(config.tenants_from_xds);
    let TenantConfig { default, groups } = config.tenants;
    assert_eq!(default.without_effect(crate::tenant::Pools::default()), Vec::<String>::new());
    let [group] = &groups[..] else { panic!("{groups:?}") };
    let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
    let expected = ["endpoint 69", "address 10.244.1.17", "prefix 10.244.2.0/28", "prefix fd00::/64", "identity 32226"];
    assert_eq!(members, expected);
    let settings = serde_json::to_value(&group.settings).expect("plain values");
    let rate = |per_second: u64, burst: u64| json!({ "per_second": per_second, "burst": burst });
    let expected = json!({
        "weight": 1000,
        "guarantee": { "connections": 500, "in_flight": 200, "memory_bytes": 16 << 20, "cpu_millis": 500 },
        "ceilings": {
            "connections": 5000, "new_connections": rate(500, 1000), "requests": rate(2000, 2000), "in_flight": 1000,
            "long_streams": 50, "bytes": rate(200 << 20, 16 << 20), "header_bytes": 64 << 10,
            "memory_bytes": 1 << 30, "cpu_millis": 2000, "queue_delay_millis": 20, "upstream_connections": 256,
            "log_bytes": rate(256 << 10, 256 << 10),
        },
        "policy": { "rules": 5000, "expression_bytes": 1 << 10, "program_bytes": 256 << 10,
            "compile_millis_per_second": 50, "memory_bytes": 64 << 20 },
        "shadow": false,
        "isolation": "lane",
    });
    assert_eq!(settings, expected);
}

#[test]
fn mistakes_in_tenants_are_named() {
    let cases = [
        (
            "{}",
            "2:19: tenants.groups: a mapping where a list belongs; write [{name: team-a, members: {endpoint_ids: [69]}, weight: 2}]",
        ),
        (
            "[{members: {endpoint_ids: [1]}}]",
            "2:20: tenants.groups[0]: no name; add name: what metrics and flow records call the tenant",
        ),
        (
            "[{name: a, members: {endpoint_ids: [1]}, guarantee: {connections: 30000}}, {name: b, members: {endpoint_ids: [2]}, guarantee: {connections: 30000}}]",
            "2:94: tenants.groups[1]: guarantee.connections: 60000 with what other tenants are guaranteed, and max_connections is 50000; lower one of them",
        ),
        (
            "[{name: a, members: {endpoint_ids: [1]}, guarantee: {cpu: 2}}]",
            "2:20: tenants.groups[0]: guarantee.cpu: 2000m with what other tenants are guaranteed, and workers: 2 can guarantee 1800m, nine tenths of their time; lower one of them",
        ),
        (
            "[{name: a, members: {}}]",
            "2:39: tenants.groups[0].members: there are none; write {endpoint_ids: [69], addresses: [10.244.1.17, 10.244.2.0/28], identities: [32226]}",
        ),
        (
            "[{name: default, members: {endpoint_ids: [1]}}]",
            "2:27: tenants.groups[0].name: \"default\" has a meaning of its own; choose another name",
        ),
        (
            "[{name: a, members: {endpoint_ids: [0]}}]",
            "2:55: tenants.groups[0].members.endpoint_ids[0]: not a whole number from 1 to 18446744073709551615",
        ),
        (
            "[{name: a, members: {identities: [1]}, ceilings: {memory: 3k}}]",
            "2:77: tenants.groups[0].ceilings.memory: \"3k\" is not a size; write a whole number and KiB, MiB or GiB, such as 64KiB",
        ),
        (
            "[{name: a, members: {identities: [1]}, ceilings: {requests: {burst: 3}}}]",
            "2:79: tenants.groups[0].ceilings.requests: no per_second; write {per_second: 2000, burst: 4000}",
        ),
        (
            "[{name: a, members: {identities: [1]}, guarantee: {cpu: half}}]",
            "2:75: tenants.groups[0].guarantee.cpu: not an amount of CPU; write a whole number of them, such as 2, or of thousandths, such as 500m",
        ),
        (
            "[{name: a, members: {identities: [1]}}, {name: b, members: {identities: [1]}}]",
            "2:59: tenants.groups[1]: members: identity 1 belongs to tenant \"a\" already; name it in one of them",
        ),
        (
            "[{name: a, members: {identities: [1]}, limits: {}}]",
            "2:58: tenants.groups[0].limits: unknown key; known are name, members, weight, shadow, isolation, guarantee, ceilings, policy",
        ),
    ];
    let found: Vec<Vec<String>> = cases
        .iter()
        .map(|(groups, _)| errors(&format!("xds: {{}}\ntenants: {{groups: {groups}}}\nworkers: 2")))
        .collect();
    let expected: Vec<_> = cases.iter().map(|(_, expected)| vec![(*expected).to_owned()]).collect();
    assert_eq!(found, expected, "{found:#?}");
    assert_eq!(
        errors("xds: {}\ntenants: {default: {guarantee: {cpu: 10m}}}"),
        [
            "2:20: tenants.default: guarantee.cpu: nobody knows how many endpoints there will be, so it could not be kept; guarantee it to a group"
        ]
    );
    let group =
        "tenants: {groups: [{name: a, members: {endpoint_ids: [1]}, guarantee: {memory: 351MiB, connections: 50001}}]}";
    assert_eq!(
        errors(&format!("xds: {{}}\n{group}\nlimits: {{memory: 1000MiB}}")),
        [
            "2:20: tenants.groups[0]: guarantee.connections: 50001 with what other tenants are guaranteed, and max_connections is 50000; lower one of them",
            "2:20: tenants.groups[0]: guarantee.memory: 368050176 bytes with what other tenants are guaranteed, and of the 1048576000 bytes that the process may have (limits.memory) 367001600 can be guaranteed, half of what tenants get of them; lower one of them",
        ]
    );
    assert_eq!(
        errors("xds: {}\ntenants: {default: {guarantee: {memory: 351MiB}}}\nlimits: {memory: 1000MiB}"),
        [
            "2:20: tenants.default: guarantee.memory: 368050176 bytes, and one endpoint can have 367001600 of limits.memory in any case; lower one of them"
        ]
    );
}

#[test]
fn all_mistakes_are_reported_in_the_order_of_the_file() {
    let text =
        "worker: 2\nxds: {mode: delta}\nlisteners:\n  - {addres: x, policy_wait: soon}\n  - {name: ''}\ntenants: 3\n";
    let found = errors(text);
    let places: Vec<&str> = found.iter().map(|line| line.split(' ').next().expect("place")).collect();
    assert_eq!(places, ["1:1:", "2:13:", "4:6:", "4:30:", "5:5:", "5:12:", "6:10:"], "{found:#?}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = load(Path::new("/nonexistent/tollgate.yaml")).expect_err("is not there").to_string();
    assert_eq!(
        missing,
        "/nonexistent/tollgate.yaml: cannot read: no such file or directory; name a configuration file"
    );
    let directory = tempfile::tempdir().expect("temporary directory");
    let binary = directory.path().join("binary");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).expect("writes");
    let errors = load(&binary).expect_err("is not text").to_string();
    assert_eq!(errors, format!("{}: not UTF-8 text; this is no configuration file", binary.display()));
}

/// The commented example is what people copy: it must load, and "# default." must be true on each line that says so.
#[test]
fn the_example_file_tells_the_truth() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/tollgate.yaml");
    let text = std::fs::read_to_string(&path).expect("the example is there");
    let whole = config(&text);
    assert_eq!(whole.listeners.len(), 2);

    let lines: Vec<&str> = text.lines().collect();
    let claims: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].ends_with("# default.")).collect();
    assert!(claims.len() > 20, "{claims:?}");
    for claim in claims {
        let mut rest = lines.clone();
        let line = rest.remove(claim);
        assert_eq!(config(&rest.join("\n")), whole, "without line {}: {line}", claim + 1);
    }
}

/// What it shows of groups, as a comment, must load as well, and leave nothing out.
#[test]
fn the_group_of_the_example_file_has_every_setting() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/tollgate.yaml");
    let text = std::fs::read_to_string(&path).expect("the example is there");
    let (before, shown) = text.split_once("  groups: []  # default.\n").expect("there are groups");
    let is_shown = |line: &&str| line.starts_with("  #");
    let shown: Vec<String> = shown.lines().take_while(is_shown).map(|line| line.replacen("# ", "", 1)).collect();
    let groups = config(&format!("{before}{}\n", shown.join("\n"))).tenants.groups;
    assert_eq!(groups.len(), 1);
    let shown = serde_json::to_value(&groups[0].settings).expect("settings are JSON");
    let count = |part: &str| shown[part].as_object().map_or(0, serde_json::Map::len);
    assert_eq!(["guarantee", "ceilings", "policy"].map(count), [4, 12, 5], "{shown}");
}

#[test]
fn settings_that_others_leave_without_effect_are_named() {
    let idle = |text: &str| config(&format!("policies: {{ directory: /tmp }}\n{text}")).without_effect();
    let group = "tenants: { groups: [{ name: a, members: { endpoint_ids: [7] }, ceilings: { cpu: 1, requests: 5 } }] }";
    assert_eq!(idle(group), Vec::<String>::new());
    let unmeasured = "with fairness: off no processor time is measured; set fairness: on";
    assert_eq!(
        idle(&format!("fairness: off\n{group}")),
        [format!("tenants.groups, \"a\": ceilings.cpu: {unmeasured}")]
    );
    let default = "tenants: { default: { isolation: lane } }";
    assert_eq!(
        idle(&format!("lanes: off\n{default}")),
        ["tenants.default: isolation: lane: with lanes: off there are none; set lanes: on"]
    );
}

#[test]
fn a_section_without_a_value_is_all_defaults_or_says_what_it_needs() {
    let parse = |text: &str| parse(text, Path::new("t.yaml"));
    assert_eq!(parse("xds:\n").unwrap(), parse("xds: {}\n").unwrap());
    let error = parse("policies:\n").unwrap_err().to_string();
    assert!(error.contains("policies: has no value"), "{error}");
    for (word, mode) in [
        ("auto", XdsMode::Auto),
        ("split", XdsMode::Split),
        ("ads", XdsMode::Ads),
        ("delta-split", XdsMode::DeltaSplit),
    ] {
        let config = parse(&format!("xds: {{ mode: {word} }}\n")).unwrap();
        assert!(matches!(config.policy_source, PolicySource::Xds { mode: read, .. } if read == mode), "{word}");
    }
}
