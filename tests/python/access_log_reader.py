"""A reader of the access log for tests, as Cilium's agent is one, independent of the Rust stack: Python's sockets and
Google's protobuf with messages generated from the project's own `.proto` files.

    access_log_reader.py PROTO_DIR STUBS_DIR SOCKET [--quiet]

Listens on the SEQPACKET socket, takes any number of connections, reads 4,096 bytes at once. Prints "ready", then one JSON
object per packet: the entry, with `bytes` (its size), or {"error": ...} for one that was cut off or does not decode. With
--quiet nothing is printed for good packets.

Commands, one per line on standard input:

    pause      takes nothing more from any connection
    resume     goes on
    count      prints {"count": {"Request": N, ..., "error": N}, "connections": N} of what came since the start
    quit       takes what is there, and ends
"""

import collections
import json
import os
import select
import socket
import sys

from google.protobuf import json_format

import proto_messages


def entry_class(proto_dir, stubs_dir):
    """`cilium.LogEntry`."""
    return proto_messages.classes(proto_dir, stubs_dir, ["cilium/accesslog.proto"], ["cilium.LogEntry"])["cilium.LogEntry"]


class Reader:
    def __init__(self, new, path, quiet):
        self.new, self.quiet = new, quiet
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(16)
        self.connections = []
        self.accepted = 0
        self.counts = collections.Counter()
        self.paused = False

    def say(self, value):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def packet(self, connection):
        """Takes one packet; false at the end of the connection."""
        data, _, flags, _ = connection.recvmsg(4096)
        if not data:
            return False
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError("cut off")
            entry = json_format.MessageToDict(
                self.new.FromString(data), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        except Exception as error:
            self.counts["error"] += 1
            self.say({"error": f"{type(error).__name__}: {error}"})
            return True
        self.counts[entry["entry_type"]] += 1
        if not self.quiet:
            self.say(entry | {"bytes": len(data)})
        return True

    def command(self, command):
        if command == "pause":
            self.paused = True
            self.say({"paused": True})
        elif command == "resume":
            self.paused = False
        elif command == "count":
            self.say({"count": self.counts, "connections": self.accepted})
        elif command == "quit":
            for connection in self.connections:
                connection.setblocking(False)
                try:
                    while self.packet(connection):
                        pass
                except OSError:
                    pass
            sys.exit(0)
        else:
            sys.exit(f"no such command: {command!r}")

    def run(self):
        commands = b""
        while True:
            waiting = [0] if self.paused else [0, self.listener, *self.connections]
            readable, _, _ = select.select(waiting, [], [])
            for ready in readable:
                if ready == 0:
                    more = os.read(0, 4096)
                    if not more:
                        return
                    *lines, commands = (commands + more).split(b"\n")
                    for line in lines:
                        self.command(line.decode())
                elif ready is self.listener:
                    self.connections.append(self.listener.accept()[0])
                    self.accepted += 1
                elif not self.packet(ready):
                    self.connections.remove(ready)


def main():
    proto_dir, stubs_dir, path = sys.argv[1:4]
    reader = Reader(entry_class(proto_dir, stubs_dir), path, "--quiet" in sys.argv)
    print("ready", flush=True)
    reader.run()


if __name__ == "__main__":
    main()
