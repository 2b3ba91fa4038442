"""Loads a running proxy and reads from /proc what that cost it."""

import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import threading
import time

from targets import LOAD_CORE, MISS_PATH, PROXY_CORE, hit_path

# A round counts as noisy when somebody else had the proxy's core for more than this share of it.
NOISE = 0.05
ATTEMPTS = 4
MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclasses.dataclass
class Sample:
    """One round of load. `cpu_us` is the proxy's CPU time per request; `foreign` the share of its core that it lost."""

    cpu_us: float
    requests_per_second: float
    foreign: float


def load(target, kind, seconds):
    """One quiet round if there is one within a few attempts, else the least noisy of them."""
    samples = []
    for _ in range(ATTEMPTS):
        samples.append(load_once(target, kind, seconds))
        if samples[-1].foreign <= NOISE:
            return samples[-1]
    return min(samples, key=lambda sample: sample.foreign)


def load_once(target, kind, seconds):
    path = MISS_PATH if kind == "miss" else hit_path(target.rules)
    url = f"http://127.0.0.1:{target.port}{path}"
    generate = {"http1": wrk, "http2": h2load}[target.protocol]
    core_before, (cpu_before, _), begun = core_busy(), on_cpu(target), time.monotonic()
    answers = generate(url, seconds)
    core_after, (cpu_after, waited), elapsed = core_busy(), on_cpu(target), time.monotonic() - begun
    expected = "refused" if kind == "miss" else "served"
    total = answers["served"] + answers["refused"]
    if total == 0 or answers[expected] != total or answers["errors"]:
        raise SystemExit(f"error: {target.name} {target.protocol}, {target.rules} rules, {kind}: {answers}")
    cpu = cpu_after - cpu_before
    foreign = max(0.0, core_after - core_before - cpu) / elapsed
    return Sample(cpu / total * 1e6, total / elapsed, foreign)


def wrk(url, seconds):
    output = run_pinned(["wrk", "-t", "1", "-c", "64", "-d", f"{seconds}s", url])
    total = number(r"(\d+) requests in", output)
    refused = number(r"Non-2xx or 3xx responses: (\d+)", output)
    return {"served": total - refused, "refused": refused, "errors": "Socket errors" in output}


def h2load(url, seconds):
    output = run_pinned(["h2load", "-c", "8", "-m", "8", "-D", str(seconds), url])
    return {
        "served": number(r"status codes: (\d+) 2xx", output),
        "refused": number(r"(\d+) 4xx", output),
        "errors": number(r"(\d+) errored", output),
    }


def run_pinned(command):
    return subprocess.run(["taskset", "-c", LOAD_CORE, *command], check=True, capture_output=True, text=True).stdout


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def tasks(target):
    """The /proc directory of each thread of the proxy."""
    for pid in target.processes():
        yield from pathlib.Path(f"/proc/{pid}/task").iterdir()


def on_cpu(target):
    """(seconds on a CPU, seconds ready to run but waiting for one), summed over all threads."""
    pairs = [(task / "schedstat").read_text(encoding="ascii").split()[:2] for task in tasks(target)]
    return sum(int(run) for run, _ in pairs) / 1e9, sum(int(wait) for _, wait in pairs) / 1e9


def core_busy():
    """Seconds that the proxy's core was not idle since boot, time stolen by the hypervisor included."""
    for line in pathlib.Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name == f"cpu{PROXY_CORE}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise SystemExit(f"error: no cpu{PROXY_CORE} in /proc/stat")


def resident_mib(target):
    """Resident memory of all processes of the proxy."""
    return sum(status(pathlib.Path(f"/proc/{pid}"), "VmRSS") for pid in target.processes()) / 1024


def idle(target, seconds):
    """(resident MiB, context switches) of a proxy that nobody talks to, over `seconds`."""
    before = switches(target)
    time.sleep(seconds)
    return resident_mib(target), switches(target) - before


def switches(target):
    return sum(
        status(task, "voluntary_ctxt_switches") + status(task, "nonvoluntary_ctxt_switches") for task in tasks(target)
    )


def status(folder, field):
    return number(rf"(?m)^{field}:\s+(\d+)", (folder / "status").read_text(encoding="utf-8"))


def bulk(target, gib):
    """(resident MiB before, peak MiB during an upload, peak MiB during a download) of `gib` GiB each."""
    size = int(gib * GIB)
    before = resident_mib(target)
    with peak(target) as upload:
        send(target, size)
    with peak(target) as download:
        receive(target, size)
    return before, max(upload), max(download)


@contextlib.contextmanager
def peak(target):
    """Collects the proxy's resident memory every 20 ms while the block runs."""
    samples, done = [resident_mib(target)], threading.Event()

    def sample():
        while not done.wait(0.02):
            samples.append(resident_mib(target))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def send(target, size):
    with socket.create_connection(("127.0.0.1", target.port), 30) as stream:
        head = f"POST /upload HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n\r\n"
        stream.sendall(head.encode())
        block = bytes(MIB)
        for start in range(0, size, MIB):
            stream.sendall(block[: min(MIB, size - start)])
        expect_ok(target, read_head(stream)[0])


def receive(target, size):
    with socket.create_connection(("127.0.0.1", target.port), 30) as stream:
        stream.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        head, received = read_head(stream)
        expect_ok(target, head)
        buffer = bytearray(MIB)
        while received < size:
            count = stream.recv_into(buffer)
            if count == 0:
                raise SystemExit(f"error: {target.name}: download ended after {received} of {size} bytes")
            received += count


def read_head(stream):
    """(the head, how many bytes of the body came with it)."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            break
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), len(body)


def expect_ok(target, head):
    if not head.startswith("HTTP/1.1 200"):
        raise SystemExit(f"error: {target.name}: bulk transfer answered with: {head[:200]!r}")
