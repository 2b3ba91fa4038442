"""The proxies that are compared: the configuration each one gets, how it is started, and what /proc says of it."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import subprocess
import urllib.request

import agent
import cgroup
import world
from log_reader import LogReader
from world import FIRST_LISTENER, OTHERS_PORT, PROXY_CORE, VICTIM_PORT

# Their place in the world. The last ones are Tollgates that a tenant has for itself; the number is its endpoint.
PLACES = {"tollgate": 1, "fairness-off": 2, "envoy": 3, "own-2": 4, "own-4": 5, "own-5": 6, "own-6": 7}
EVERYTHING = [("GET", "/.*")]
PANIC = "/panic"


@dataclasses.dataclass
class Setup:
    """What an experiment asks of the proxies. `rules` maps the last byte of an endpoint's address to (method regex, path
    regex) pairs; who is not in there may GET everything."""

    rules: dict = dataclasses.field(default_factory=dict)
    endpoints: int = 12
    max_connections: int = 50_000
    in_flight: int | None = None
    weights: dict = dataclasses.field(default_factory=dict)
    memory_mib: int | None = None
    cpu_quota: float | None = None
    # Tollgate keeps to that quota itself.
    paced: bool = True
    # What the reader of the access log does: `read`, `stalled` or `gone`; `None` for no such log.
    log: str | None = None
    # Policies come from an agent over xDS, not from a directory.
    agent: bool = False
    # Requests for `PANIC` panic.
    faulty: bool = False
    # Endpoints whose limits only count.
    shadow: tuple = ()

    def rules_of(self, endpoint):
        return self.rules.get(endpoint, EVERYTHING)


@dataclasses.dataclass
class Proxy:
    """One running proxy."""

    name: str
    process: subprocess.Popen
    folder: pathlib.Path
    setup: Setup
    binaries: dict
    group: cgroup.Group | None
    sender: agent.Agent | None = None
    reader: LogReader | None = None

    @property
    def place(self):
        return PLACES[self.name]

    def address(self, endpoint):
        return f"127.0.{self.place}.{endpoint}"

    def source(self, client):
        return f"127.0.{100 + self.place}.{client}"

    def another(self, name, folder):
        """One more on the same core, set up alike."""
        return start(name, self.setup, self.folder / folder, self.binaries)

    def alive(self):
        return self.process.poll() is None

    def times(self):
        """For each thread (seconds on a CPU, seconds ready to run but waiting for one)."""
        found = {}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            try:
                run, wait, _ = task.read_text(encoding="ascii").split()
            except (OSError, ValueError):  # A thread that ended meanwhile.
                continue
            found[task.parent.name] = (int(run) / 1e9, int(wait) / 1e9)
        return found

    def since(self, before):
        """(seconds on a CPU, seconds waiting for one) since `before`, of the threads that are there; what one that ended used
        meanwhile is lost."""
        pairs = [
            (run - before.get(thread, (0, 0))[0], wait - before.get(thread, (0, 0))[1])
            for thread, (run, wait) in self.times().items()
        ]
        return sum(run for run, _ in pairs), sum(wait for _, wait in pairs)

    def serving(self):
        """As `times`, of the threads that serve traffic; none of Envoy."""
        found = {}
        for thread, times in self.times().items():
            try:
                name = pathlib.Path(f"/proc/{self.process.pid}/task/{thread}/comm").read_text(encoding="utf-8")
            except OSError:
                continue
            if name.startswith(("worker-", "lane-")):
                found[thread] = times
        return found

    def resident_mib(self, field="VmRSS"):
        try:
            text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return 0.0
        found = re.search(rf"(?m)^{field}:\s+(\d+)", text)
        return int(found.group(1)) / 1024 if found else 0.0

    def metrics(self):
        """Tollgate's metrics as {(name, labels): value}."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port(self.place)}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            if self.alive():
                raise
            return {}  # It ended of what it was asked for, which the report says.
        found = re.findall(r"(?m)^([a-zA-Z_:]+)(\{.*\})? ([0-9.eE+-]+)$", text)
        return {(name, labels): float(value) for name, labels, value in found}

    def tenant_seconds(self):
        """Processor time of each tenant so far; nothing from a proxy that does not count it."""
        if self.name != "tollgate":
            return {}
        seconds = {}
        for (name, labels), value in self.metrics().items():
            tenant = re.search(r'tenant="([^"]*)"', labels or "")
            if name == "tollgate_tenant_cpu_seconds_total" and tenant:
                seconds[tenant.group(1)] = seconds.get(tenant.group(1), 0) + value
        return seconds

    def records_lost(self):
        """Flow records so far that the log had no room for; 0 for a proxy that has none."""
        if self.name == "envoy":
            return 0
        return sum(value for (name, _), value in self.metrics().items() if name == "tollgate_flow_records_lost_total")

    def stop(self):
        world.stop(self.process)
        if self.sender:
            self.sender.stop()
        if self.reader:
            self.reader.stop()
        if self.group:
            self.group.remove()


def start(name, setup, folder, binaries):
    """Starts one proxy on its core with one worker. Its files and its log go to `folder`, which is new."""
    folder.mkdir(parents=True)
    sender = None
    if setup.agent:
        sender = agent.Agent(folder / "xds.sock")
        sender.send([policy(PLACES[name], endpoint, setup.rules_of(endpoint)) for endpoint in range(1, setup.endpoints + 1)])
    reader = LogReader(setup.log, folder / "log.sock") if setup.log else None
    command = (envoy if name == "envoy" else tollgate)(name, setup, folder, binaries)
    group = cgroup.make(f"{name}-{os.getpid()}", setup.memory_mib, setup.cpu_quota)

    def prepare():
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if group:
            group.enter()

    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*world.pinned(PROXY_CORE), *map(str, command)], stdout=log, stderr=log, cwd=folder, preexec_fn=prepare,
            env={**os.environ, "TOLLGATE_FAULT_PANIC_PATH": PANIC} if setup.faulty else None,
        )
    world.wait_for_port(FIRST_LISTENER + PLACES[name], process, f"{name} (see {folder / 'log'})")
    return Proxy(name, process, folder, setup, binaries, group, sender, reader)


def metrics_port(place):
    return FIRST_LISTENER + 100 + place


def tollgate(name, setup, folder, binaries):
    place = PLACES[name]
    (folder / "policies").mkdir()
    for endpoint in range(1, 0 if setup.agent else setup.endpoints + 1):
        put_policy(folder, endpoint, policy(place, endpoint, setup.rules_of(endpoint)))
    write_json(folder / "tollgate.yaml", tollgate_config(name, setup, folder))  # JSON is YAML
    binary = binaries["faulty"] if setup.faulty else binaries.get(name, binaries["tollgate"])
    return [binary, "run", "-c", folder / "tollgate.yaml"]


def tollgate_config(name, setup, folder):
    place = PLACES[name]
    config = {
        "workers": 1,
        "max_connections": setup.max_connections,
        "admin": {"address": f"unix:{folder}/admin.sock"},
        "metrics": {"address": f"127.0.0.1:{metrics_port(place)}"},
        "drain_timeout": "0s",
        "policies": {"directory": str(folder / "policies")},
        "identities": [
            {"identity": 1000 + client, "addresses": [f"127.0.{100 + place}.{client}"]} for client in range(1, 10)
        ],
        "listeners": [{"name": "ingress", "address": f"127.0.0.1:{FIRST_LISTENER + place}"}],
    }
    if name == "fairness-off":
        config["fairness"] = "off"
    if setup.agent:
        del config["policies"]
        config["xds"] = {"address": f"unix:{folder}/xds.sock", "mode": "split"}
    groups = [{"endpoint": endpoint, "weight": weight} for endpoint, weight in setup.weights.items()]
    groups += [{"endpoint": endpoint, "shadow": True} for endpoint in setup.shadow]
    if groups:
        config["tenants"] = {"groups": [
            {"name": f"tenant-{endpoint}", "members": {"endpoint_ids": [endpoint]}, **settings}
            for settings in groups for endpoint in [settings.pop("endpoint")]
        ]}
    if not setup.paced:
        config["limits"] = {"cpu_quota": "off"}
    if setup.in_flight:
        config.setdefault("limits", {})["in_flight"] = setup.in_flight
    if setup.log:
        config["access_log"] = [{"unix": str(folder / "log.sock")}]
    return config


def policy(place, endpoint, rules):
    """The text of one endpoint's policy."""
    headers = [[regex_header(":method", method), regex_header(":path", path)] for method, path in rules]
    http_rules = {"http_rules": [{"headers": pair} for pair in headers]}
    return json.dumps({
        "@type": "type.googleapis.com/cilium.NetworkPolicy",
        "endpoint_ips": [f"127.0.{place}.{endpoint}"],
        "endpoint_id": str(endpoint),
        "ingress_per_port_policies": [
            {"port": port, "rules": [{"http_rules": http_rules}]} for port in (OTHERS_PORT, VICTIM_PORT)
        ],
    })


def put_policy(folder, endpoint, text):
    """Puts a policy in place at once, as a control plane would."""
    (folder / "new").write_text(text, encoding="utf-8")
    os.replace(folder / "new", folder / "policies" / f"{endpoint}.json")


def regex_header(name, regex):
    return {"name": name, "string_match": {"safe_regex": {"regex": regex}}}


def envoy(name, setup, folder, _binaries):
    """One listener and one shared ORIGINAL_DST cluster, as the bootstrap of Cilium's chart has them: an endpoint has rules of
    its own, but the cluster's breakers are everybody's."""
    place = PLACES[name]
    chains = [
        {"filter_chain_match": {"prefix_ranges": [{"address_prefix": f"127.0.{place}.{endpoint}", "prefix_len": 32}]},
         "filters": [connection_manager(rules)]}
        for endpoint, rules in setup.rules.items()
    ]
    options = {
        "@type": extension("upstreams.http.v3.HttpProtocolOptions"),
        "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": "60s"},
    }
    mark = {"level": 1, "name": 36, "int_value": 0x0A00, "state": "STATE_PREBIND", "description": "SO_MARK"}
    limit = "envoy.resource_monitors.global_downstream_max_connections"
    write_json(folder / "envoy.json", {
        "overload_manager": {"resource_monitors": [{"name": limit, "typed_config": {
            "@type": extension("resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
            "max_active_downstream_connections": setup.max_connections,
        }}]},
        "static_resources": {
            "listeners": [{
                "name": "ingress",
                "address": socket_address("127.0.0.1", FIRST_LISTENER + place),
                "transparent": True,
                "listener_filters": [{
                    "name": "original_dst",
                    "typed_config": {"@type": extension("filters.listener.original_dst.v3.OriginalDst")},
                }],
                "filter_chains": chains,
                "default_filter_chain": {"filters": [connection_manager(EVERYTHING)]},
            }],
            "clusters": [{
                "name": "ingress-cluster",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "2s",
                "cleanup_interval": "2.5s",
                "circuit_breakers": {"thresholds": [
                    {"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024, "max_retries": 128},
                ]},
                "upstream_bind_config": {"socket_options": [mark]},
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            }],
        },
    })
    return [_binaries["envoy"], "-c", folder / "envoy.json", "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]


def connection_manager(rules):
    policies = {
        f"rule{index}": {
            "principals": [{"any": True}],
            "permissions": [{"and_rules": {"rules": [
                {"header": regex_header(":method", method)}, {"header": regex_header(":path", path)},
            ]}}],
        }
        for index, (method, path) in enumerate(rules)
    }
    rbac = {"@type": extension("filters.http.rbac.v3.RBAC"), "rules": {"action": "ALLOW", "policies": policies}}
    return {"name": "http", "typed_config": {
        "@type": extension("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "proxy",
        "codec_type": "AUTO",
        "generate_request_id": False,
        "normalize_path": True,
        "merge_slashes": True,
        "stream_idle_timeout": "300s",
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "ingress-cluster", "timeout": "0s"}}],
        }]},
        "http_filters": [
            {"name": "rbac", "typed_config": rbac},
            {"name": "router", "typed_config": {"@type": extension("filters.http.router.v3.Router")}},
        ],
    }}


def extension(name):
    return f"type.googleapis.com/envoy.extensions.{name}"


def socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def refusal(name, setup, folder, binaries):
    """Why a proxy cannot be set up so, or an empty string: an older Tollgate knows no fair shares and no weights."""
    if setup.agent and not os.environ.get(agent.PYTHON):
        return "no Python environment of the tests"
    if name == "envoy":
        return "it has no tenants" if setup.weights else ""
    if setup.faulty and "faulty" not in binaries:
        return "there is no tollgate-faulty beside tollgate; run without --release, which builds it"
    (folder / "policies").mkdir(parents=True)
    write_json(folder / "tollgate.yaml", tollgate_config(name, setup, folder))
    command = [binaries[name], "run", "--check", "-c", folder / "tollgate.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if checked.returncode == 0 else checked.stderr.strip() or "it does not say why"
