"""Starts the generators and reads what they print."""

import json
import subprocess
import sys

import world
from world import LOAD_CORE, OTHERS_PORT


class Generators:
    """Where the generator is, and whether the victim may run before the others."""

    def __init__(self, binary, first):
        self.binary, self.first = binary, first

    def start(self, arguments, seconds, first=False):
        """Starts one role. It ends by itself; the time limit is for when it does not."""
        command = [
            "timeout", "--kill-after=5", str(int(seconds) + 60),
            *world.pinned(LOAD_CORE, first and self.first), self.binary, *map(str, arguments), "--seconds", str(seconds),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def victim(self, proxy, seconds, experiment):
        target = f"{proxy.address(1)}:{experiment.victim_port}"
        arguments = ["victim", "--target", target, "--source", proxy.source(1), *experiment.victim]
        return self.start(arguments, seconds, first=True)


def finish(process):
    """What a role printed."""
    output, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(process.args)} ended with {process.returncode}")
    return json.loads(output)


def group(proxy, endpoint, connections, client=2, port=OTHERS_PORT):
    """The arguments for so many connections to an endpoint."""
    return ["--group", f"{proxy.address(endpoint)}:{port}={connections}@{proxy.source(client)}"]


def percentile(values, share):
    """Nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0
