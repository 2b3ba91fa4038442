"""Starts the generators and reads what they print."""

import json
import subprocess
import sys

import world
from world import LOAD_CORE, OTHERS_PORT, PROXY_CORE


class Generators:
    """Where the generator is, and whether the victim may run before the others."""

    def __init__(self, binary, first):
        self.binary, self.first = binary, first

    def start(self, arguments, seconds, first=False, core=LOAD_CORE):
        """Starts one role. It ends by itself; the time limit is for when it does not."""
        command = [
            "timeout", "--kill-after=5", str(int(seconds) + 60),
            *world.pinned(core, first and self.first), self.binary, *map(str, arguments), "--seconds", str(seconds),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def victim(self, proxy, seconds, experiment):
        """Starts the victim, and somebody who sees when the proxy's core is taken from everybody."""
        target = f"{proxy.address(1)}:{experiment.victim_port}"
        arguments = ["victim", "--target", target, "--source", proxy.source(1), *experiment.victim]
        watch = self.start(["watch"], seconds, first=True, core=PROXY_CORE)
        return Victim(self.start(arguments, seconds, first=True), watch, self.first)


class Victim:
    """A victim that asks."""

    def __init__(self, asking, watch, first):
        self.asking, self.watch, self.first = asking, watch, first

    def finish(self):
        """What it printed, with the spans in which it should have run and did not, and the share of the time in which nobody could
        on the proxy's core. Without a real-time priority neither could be told from the neighbours' load."""
        result, watched = finish(self.asking), finish(self.watch)
        if not self.first:
            return {**result, "held_up": [], "core_taken": 0.0}
        taken = sum(until - since for since, until in watched["held_up"])
        return {**result, "core_taken": taken / watched["seconds"]}


def finish(process):
    """What a role printed."""
    output, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(process.args)} ended with {process.returncode}; it says above why")
    return json.loads(output)


def undisturbed(result):
    """The samples of a victim, (seconds since its first was due, latency in us, outcome), during which it was not held up itself."""
    begun, held_up = result["first_due"], sorted(result["held_up"])
    kept = []
    for due, latency, outcome in result["samples"]:
        begin, end = begun + due / 1e6, begun + (due + latency) / 1e6
        if not any(since < end and begin < until for since, until in held_up):
            kept.append((due / 1e6, latency, outcome))
    return kept


def group(proxy, endpoint, connections, client=2, port=OTHERS_PORT):
    """The arguments for so many connections to an endpoint."""
    return ["--group", f"{proxy.address(endpoint)}:{port}={connections}@{proxy.source(client)}"]


def percentile(values, share):
    """Nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0
