"""The place where everything happens: a network namespace of its own, its redirection, and the upstreams.

Clients connect to tenants; TPROXY steers that into the proxy's listener, as on a node. Every proxy has the same world:

    127.0.V.1        the victim's endpoint behind proxy V, port 8081
    127.0.V.2-254    endpoints of the others behind proxy V, port 8080
    127.0.10V.N      who talks to them: .1 the victim's client, .2 the others'
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

PROXY_CORE, LOAD_CORE = "0", "1"
VICTIM_PORT, OTHERS_PORT = 8081, 8080
FIRST_LISTENER = 15000
START_SECONDS = 20
INSIDE = "TOLLGATE_NEIGHBOURS_INSIDE"

# What the proxies put on their own connections, so that these are not steered again; Cilium's marks.
RULES = """
table ip neighbours {
  chain prerouting {
    type filter hook prerouting priority mangle; policy accept;
    ip protocol != tcp accept
    meta mark & 0x00000f00 == { 0x00000a00, 0x00000b00 } accept
    # First packets only: the connections that follow have their socket.
    tcp flags & (syn | ack) != syn accept
%s
  }
}
"""


def enter():
    """Runs this program again in a network namespace of its own, and returns there."""
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    missing = [tool for tool in ("unshare", "ip", "nft", "taskset", "chrt") if not shutil.which(tool)]
    if missing:
        sys.exit(f"error: missing: {', '.join(missing)} (Debian: util-linux iproute2 nftables)")
    os.environ[INSIDE] = "yes"
    namespaces = ["--net"] if os.geteuid() == 0 else ["--net", "--user", "--map-root-user"]
    os.execvp("unshare", ["unshare", *namespaces, sys.executable, *sys.argv])


def steer(places):
    """Redirects what goes to the tenants of each proxy into its listener."""
    lines = ""
    for place in places:
        tenants = f"    ip daddr 127.0.{place}.0/24 tcp dport {{ {OTHERS_PORT}, {VICTIM_PORT} }}"
        lines += f"{tenants} tproxy to 127.0.0.1:{FIRST_LISTENER + place} accept\n"
        # Nobody listens: a dead proxy must not look like a fast one.
        lines += f"{tenants} drop\n"
    subprocess.run(["nft", "-f", "-"], input=RULES % lines, text=True, check=True)


def may_run_first():
    """Whether the victim may have a real-time priority. Without it, it queues behind the load on its own core."""
    return subprocess.run(["chrt", "-f", "50", "true"], capture_output=True, check=False).returncode == 0


def pinned(core, first=False):
    return ["taskset", "-c", core, *(["chrt", "-f", "50"] if first else [])]


def start_upstreams(binary, first):
    """One for the victim, that nobody else can occupy, and one for the others."""
    processes = []
    for port, own in ((VICTIM_PORT, first), (OTHERS_PORT, False)):
        process = subprocess.Popen([*pinned(LOAD_CORE, own), binary, f"0.0.0.0:{port}", f"127.0.0.1:{port + 1000}"])
        processes.append(process)
        wait_for_port(port, process, "canned-upstream")
    return processes


def wait_for_port(port, process, what):
    """Until somebody listens on that port; looks, and does not connect."""
    deadline = time.monotonic() + START_SECONDS
    wanted = f":{port:04X} "
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"error: {what} ended with {process.returncode}; it says above why, or run it by itself: {' '.join(map(str, process.args))}")
        table = pathlib.Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        if any(wanted in line.split("00000000:0000")[0] and " 0A " in line for line in table):
            return
        time.sleep(0.02)
    sys.exit(f"error: {what} does not listen on port {port} after {START_SECONDS} s; is the machine that busy, or the port taken? (ss -ltnp)")


def stop(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
