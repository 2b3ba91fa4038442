"""The proxies that are compared: the configuration each one gets, and the command that starts it on one core."""

import dataclasses
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import time

UPSTREAM = {"http1": ("127.0.0.1", 18081), "http2": ("127.0.0.1", 18082)}
PROXY_CORE, LOAD_CORE = "0", "1"
START_SECONDS = 20


def rules(count):
    """(method regex, path regex) pairs; `hit_path` matches the last one only."""
    return [("GET", f"/api/v1/svc{index:05}/items/[0-9]+") for index in range(count)]


def hit_path(count):
    """What only the last of `count` rules admits."""
    return f"/api/v1/svc{max(count, 1) - 1:05}/items/12345"


MISS_PATH = "/nothing/here"
BULK_RULES = [("GET|POST", "/upload|/bytes/[0-9]+")]


@dataclasses.dataclass
class Target:
    """One running proxy, and how many rules it was given."""

    name: str
    protocol: str
    rules: int
    port: int
    process: subprocess.Popen

    def processes(self):
        """The proxy's process and its children (nginx works in a child)."""
        found = [self.process.pid]
        for pid in found:
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
            found += [int(child) for child in children.split()]
        return found


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_upstream(binary):
    addresses = [f"{host}:{port}" for host, port in UPSTREAM.values()]
    process = subprocess.Popen(["taskset", "-c", LOAD_CORE, binary, *addresses])
    for _, port in UPSTREAM.values():
        wait_for(port, process, "canned-upstream")
    return process


def start(name, protocol, policy, port, folder, binaries):
    """Starts proxy `name` on `port` with the rules of `policy`. Its files and its log go to `folder`, which is new."""
    folder.mkdir(parents=True)
    command = COMMANDS[name](protocol, policy, port, folder, binaries)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", PROXY_CORE, *map(str, command)], stdout=log, stderr=log, cwd=folder
        )
    wait_for(port, process, f"{name} (see {folder / 'log'})")
    return Target(name, protocol, len(policy), port, process)


def wait_for(port, process, what):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"error: {what} ended with {process.returncode}") from None
            if time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"error: {what} does not listen on {port} after {START_SECONDS} s") from None
            time.sleep(0.05)


def bare_hyper(protocol, _policy, port, _folder, binaries):
    host, upstream = UPSTREAM[protocol]
    return [binaries["bare-hyper"], protocol, f"127.0.0.1:{port}", f"{host}:{upstream}"]


def tollgate(protocol, policy, port, folder, binaries):
    """Everything on that a node has on: policy from files, metrics, flow records to a file."""
    host, upstream = UPSTREAM[protocol]
    config = {
        "workers": 1,
        "admin": {"address": f"unix:{folder}/admin.sock"},
        "metrics": {"address": f"127.0.0.1:{port + 1000}"},
        "policies": {"directory": str(folder / "policies")},
        "identities": [{"identity": 32226, "addresses": ["127.0.0.1"]}],
        "listeners": [{
            "name": "ingress",
            "address": f"127.0.0.1:{port}",
            "direction": "ingress",
            "transparent": False,
            "upstream": f"{host}:{upstream}",
            "endpoint": "127.0.0.1",
        }],
        "access_log": [{"json": str(folder / "access.log")}],
    }
    http_rules = [
        {"headers": [regex_header(":method", method), regex_header(":path", path)]} for method, path in policy
    ]
    resource = {
        "@type": "type.googleapis.com/cilium.NetworkPolicy",
        "endpoint_ips": ["127.0.0.1"],
        "endpoint_id": "1",
        "ingress_per_port_policies": [
            # `transparent: false`: the original destination is the listener's own address.
            {"port": port, "rules": [{"http_rules": {"http_rules": http_rules}}]}
        ],
    }
    (folder / "policies").mkdir()
    write_json(folder / "policies" / "bench.json", resource)
    write_json(folder / "tollgate.yaml", config)  # JSON is YAML
    return [binaries["tollgate"], "run", "-c", folder / "tollgate.yaml"]


def regex_header(name, regex):
    return {"name": name, "string_match": {"safe_regex": {"regex": regex}}}


def nginx(protocol, policy, port, folder, binaries):
    if protocol != "http1":
        raise ValueError("nginx speaks HTTP/1.1 to an upstream, never HTTP/2")
    host, upstream = UPSTREAM[protocol]
    locations = "".join(
        f"    location ~ ^({path})$ {{ if ($request_method !~ ^({method})$) {{ return 403; }} proxy_pass http://canned; }}\n"
        for method, path in policy
    )
    (folder / "nginx.conf").write_text(f"""
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 0;
  proxy_request_buffering off;
  proxy_buffering off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream canned {{ server {host}:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
{locations}
    location / {{ return 403; }}
  }}
}}
""", encoding="utf-8")
    return [binaries["nginx"], "-e", folder / "error.log", "-c", folder / "nginx.conf"]


def envoy(protocol, policy, port, folder, binaries):
    host, upstream = UPSTREAM[protocol]
    policies = {
        f"rule{index}": {
            "principals": [{"any": True}],
            "permissions": [{"and_rules": {"rules": [
                {"header": regex_header(":method", method)}, {"header": regex_header(":path", path)},
            ]}}],
        }
        for index, (method, path) in enumerate(policy)
    }
    rbac = {"@type": extension("filters.http.rbac.v3.RBAC"), "rules": {"action": "ALLOW", "policies": policies}}
    manager = {
        "@type": extension("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "codec_type": "AUTO",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "canned", "timeout": "0s"}}],
        }]},
        "http_filters": [
            {"name": "rbac", "typed_config": rbac},
            {"name": "router", "typed_config": {"@type": extension("filters.http.router.v3.Router")}},
        ],
    }
    explicit = "http2_protocol_options" if protocol == "http2" else "http_protocol_options"
    options = {"@type": extension("upstreams.http.v3.HttpProtocolOptions"), "explicit_http_config": {explicit: {}}}
    write_json(folder / "envoy.json", {"static_resources": {
        "listeners": [{
            "name": "ingress",
            "address": socket_address("127.0.0.1", port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }],
        "clusters": [{
            "name": "canned",
            "type": "STATIC",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            "load_assignment": {"cluster_name": "canned", "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": socket_address(host, upstream)}}]}
            ]},
        }],
    }})
    return [binaries["envoy"], "-c", folder / "envoy.json", "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]


def extension(name):
    return f"type.googleapis.com/envoy.extensions.{name}"


def socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


COMMANDS = {"bare-hyper": bare_hyper, "tollgate": tollgate, "nginx": nginx, "envoy": envoy}


def find_binaries(release, envoy_path):
    """Where each proxy is; one that is not there is left out."""
    candidates = {
        "bare-hyper": release / "bare-hyper-proxy",
        "tollgate": release / "tollgate",
        "nginx": shutil.which("nginx") or shutil.which("/usr/sbin/nginx"),
        "envoy": envoy_path or shutil.which("envoy"),
    }
    return {name: str(path) for name, path in candidates.items() if path and pathlib.Path(path).exists()}
