"""A control plane for tests, independent of the Rust one: grpcio, Google's protobuf, Envoy's own generated modules.

    control_plane.py PROTO_DIR STUBS_DIR

Speaks the state-of-the-world streams of NetworkPolicy, NetworkPolicyHosts and Tenant. Driven by one JSON object per line on
standard input, tells what happens by one JSON object per line on standard output. It does nothing on its own except to
send the current state of a type to each stream that opens.

Commands (`type` is "NetworkPolicy" unless given):

    {"do": "listen", "address": "unix:/run/xds.sock"}      starts to serve; port 0 is resolved in the event
    {"do": "set", "version": "1", "resources": [...]}      state of the type, in JSON; sent to every open stream
    {"do": "fill", "version": "2", "count": 9, "bytes": 5} as set: policies of `bytes` each, made here
    {"do": "send", "version": "3", "resources": [...]}     sent once to open streams; a resource is {"type_url", "hex"}
    {"do": "send_message", "hex": "ff"}                    sends this gRPC message as it is
    {"do": "drop", "code": "UNAVAILABLE"}                  ends the open streams of the type; "OK" to end without error
    {"do": "stop"}                                         closes the socket and cuts every connection

`set` and `send` also take `nonce` (default: the version) and `type_url` (default: the type's).

Events: listening, stopped, sent, open, ack, nack, stale, close, error. Each request event carries the request as
decoded (`request`) and as it came (`hex`).
"""

import json
import queue
import sys
import threading
from concurrent import futures

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

import proto_messages

TYPES = {
    "NetworkPolicy": "cilium.NetworkPolicy",
    "NetworkPolicyHosts": "cilium.NetworkPolicyHosts",
    "Tenant": "tollgate.tenant.v1.Tenant",
}
METHODS = {
    "NetworkPolicy": ("cilium.NetworkPolicyDiscoveryService", "StreamNetworkPolicies"),
    "NetworkPolicyHosts": ("cilium.NetworkPolicyHostsDiscoveryService", "StreamNetworkPolicyHosts"),
    "Tenant": ("tollgate.tenant.v1.TenantDiscoveryService", "StreamTenants"),
}
TYPE_URL = "type.googleapis.com/"

OUTPUT = threading.Lock()


def tell(event, **fields):
    """One event on standard output."""
    with OUTPUT:
        print(json.dumps({"event": event, **fields}), flush=True)


TENANT = "tollgate/tenant/v1/tenant.proto"


def compile_messages(proto_dir, stubs_dir):
    """The message class of each type, generated from the project's own `.proto` files."""
    made = proto_messages.classes(proto_dir, stubs_dir, ["cilium/npds.proto", "cilium/nphds.proto", TENANT], TYPES.values())
    return {kind: made[name] for kind, name in TYPES.items()}


class Stream:
    """One open stream: what is sent on it, and what came."""

    def __init__(self, kind):
        self.kind = kind
        self.outgoing = queue.Queue()
        self.outstanding = {}  # nonce -> version

    def send(self, response, version, nonce):
        self.outstanding[nonce] = version
        self.outgoing.put(response)
        tell("sent", type=self.kind, version=version, nonce=nonce, bytes=len(response))

    def hear(self, raw):
        request = discovery_pb2.DiscoveryRequest.FromString(raw)
        decoded = json_format.MessageToDict(request, preserving_proto_field_name=True)
        if not request.response_nonce:
            event = "open"
        elif self.outstanding.pop(request.response_nonce, None) is None:
            event = "stale"
        else:
            event = "nack" if request.HasField("error_detail") else "ack"
        tell(event, type=self.kind, request=decoded, hex=raw.hex())
        return event


class ControlPlane:
    """The states, the open streams and the server."""

    def __init__(self, messages):
        self.messages = messages
        self.lock = threading.Lock()
        self.states = {}  # type -> (version, nonce, bytes)
        self.streams = []
        self.server = None

    # gRPC side

    def handler(self, kind):
        def serve(requests, context):
            stream = Stream(kind)
            threading.Thread(target=self.read, args=(stream, requests), daemon=True).start()
            while True:
                item = stream.outgoing.get()
                if item is None:
                    return
                if isinstance(item, grpc.StatusCode):
                    context.abort(item, "dropped by the test")
                yield item

        return grpc.stream_stream_rpc_method_handler(serve, request_deserializer=bytes, response_serializer=bytes)

    def read(self, stream, requests):
        reason = ""
        try:
            for raw in requests:
                if stream.hear(raw) == "open":
                    with self.lock:
                        self.streams.append(stream)
                        state = self.states.get(stream.kind)
                        if state:
                            stream.send(state[2], state[0], state[1])
        except grpc.RpcError as error:
            reason = str(error)
        except Exception as error:  # a request that does not decode, told like everything else
            reason = f"{type(error).__name__}: {error}"
        with self.lock:
            if stream in self.streams:
                self.streams.remove(stream)
        stream.outgoing.put(None)
        tell("close", type=stream.kind, reason=reason)

    # commands

    def listen(self, address):
        handlers = [
            grpc.method_handlers_generic_handler(service, {method: self.handler(kind)})
            for kind, (service, method) in METHODS.items()
        ]
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=limits)
        self.server.add_generic_rpc_handlers(handlers)
        port = self.server.add_insecure_port(address)
        self.server.start()
        tell("listening", address=address, port=port)

    def stop(self):
        self.server.stop(grace=None).wait()
        self.server = None
        tell("stopped")

    def response(self, command, resources):
        response = discovery_pb2.DiscoveryResponse(
            version_info=command["version"],
            nonce=command.get("nonce", command["version"]),
            type_url=command.get("type_url", TYPE_URL + TYPES[command["type"]]),
        )
        for type_url, value in resources:
            response.resources.add(type_url=type_url, value=value)
        return response.version_info, response.nonce, response.SerializeToString()

    def of_kind(self, kind):
        return [stream for stream in self.streams if stream.kind == kind]

    def publish(self, command, messages):
        resources = [(TYPE_URL + TYPES[command["type"]], message.SerializeToString()) for message in messages]
        version, nonce, encoded = self.response(command, resources)
        with self.lock:
            self.states[command["type"]] = (version, nonce, encoded)
            for stream in self.of_kind(command["type"]):
                stream.send(encoded, version, nonce)

    def run(self, command):
        kind = command.setdefault("type", "NetworkPolicy")
        match command["do"]:
            case "listen":
                self.listen(command["address"])
            case "stop":
                self.stop()
            case "set":
                new = self.messages[kind]
                self.publish(command, [json_format.ParseDict(resource, new()) for resource in command["resources"]])
            case "fill":
                new = self.messages["NetworkPolicy"]
                text = "x" * command["bytes"]
                messages = [new(endpoint_id=n + 1, endpoint_ips=[text]) for n in range(command["count"])]
                self.publish(command, messages)
            case "send":
                own = TYPE_URL + TYPES[kind]
                resources = [(r.get("type_url", own), bytes.fromhex(r["hex"])) for r in command["resources"]]
                version, nonce, encoded = self.response(command, resources)
                with self.lock:
                    for stream in self.of_kind(kind):
                        stream.send(encoded, version, nonce)
            case "send_message":
                with self.lock:
                    for stream in self.of_kind(kind):
                        stream.outgoing.put(bytes.fromhex(command["hex"]))
            case "drop":
                code = command.get("code", "OK")
                with self.lock:
                    for stream in self.of_kind(kind):
                        stream.outgoing.put(None if code == "OK" else grpc.StatusCode[code])
            case unknown:
                raise ValueError(f"no such command: {unknown}")


def main():
    plane = ControlPlane(compile_messages(*sys.argv[1:3]))
    for line in sys.stdin:
        try:
            plane.run(json.loads(line))
        except Exception as error:
            tell("error", command=line.strip(), error=f"{type(error).__name__}: {error}")
    if plane.server:
        plane.stop()


if __name__ == "__main__":
    main()
