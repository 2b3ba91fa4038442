"""A control plane that behaves like a Cilium agent, in each of its modes, and misbehaves on demand.

    strict_agent.py PROTO_DIR STUBS_DIR

Independent of the Rust implementations: grpcio, Google's protobuf, Envoy's own generated modules. Driven by one JSON
object per line on standard input; answers each with one event per line on standard output, and tells of each ack, nack
and violation. As strict as an agent: a request that it would end a stream for is a violation, and ends the stream.

Commands (`type` is a key of TYPES, "NetworkPolicy" unless given):

    {"do": "listen", "path": "/run/xds.sock", "mode": "split"}   serves "split", "ads" or "delta-split", nothing else
    {"do": "bind", "path": "/run/xds.sock"}                       accepts connections and says nothing
    {"do": "stop"}                                                closes the socket and cuts every connection
    {"do": "set", "resources": [...]}                             exactly these resources, in JSON
    {"do": "patch", "resources": [...], "remove": ["name"]}       these come or change, those go
    {"do": "fill", "first": 1000, "count": 9}                     adds as many policies of other endpoints
    {"do": "touch", "id": 1000, "port": 81}                       changes one of them
    {"do": "send", "bad": "garbage"}                              one of BAD, once to each open stream of the type
    {"do": "repeat", "bad": "garbage"}                            the same, again after each answer; null ends it
    {"do": "insist", "id": 1000}                                  its policy becomes garbage, and is sent again whenever it is refused;
                                                                  null ends that
    {"do": "flap", "times": 50, "every": 0.1}                     ends all open streams so often
    {"do": "count"}                                               what happened so far

A change is answered with its version when it is set, not when it is acknowledged.
"""

import json
import pathlib
import queue
import socket
import sys
import threading
import time
from concurrent import futures

import grpc
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2

# For what listeners hold in an Any.
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

import proto_messages

NODE = "host~127.0.0.1~no-id~localdomain"
PREFIX = "type.googleapis.com/"
AGGREGATED = "envoy.service.discovery.v3.AggregatedDiscoveryService", "StreamAggregatedResources"
# Full name, service, suffix of its methods, and whether an aggregated stream takes no names for all names.
TYPES = {
    "NetworkPolicy": ("cilium.NetworkPolicy", "cilium.NetworkPolicyDiscoveryService", "NetworkPolicies", True),
    "NetworkPolicyHosts": (
        "cilium.NetworkPolicyHosts",
        "cilium.NetworkPolicyHostsDiscoveryService",
        "NetworkPolicyHosts",
        True,
    ),
    "Listener": (
        "envoy.config.listener.v3.Listener",
        "envoy.service.listener.v3.ListenerDiscoveryService",
        "Listeners",
        True,
    ),
    "Cluster": (
        "envoy.config.cluster.v3.Cluster",
        "envoy.service.cluster.v3.ClusterDiscoveryService",
        "Clusters",
        True,
    ),
    "RouteConfiguration": (
        "envoy.config.route.v3.RouteConfiguration",
        "envoy.service.route.v3.RouteDiscoveryService",
        "Routes",
        False,
    ),
    "ClusterLoadAssignment": (
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "envoy.service.endpoint.v3.EndpointDiscoveryService",
        "Endpoints",
        False,
    ),
    "Secret": (
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "envoy.service.secret.v3.SecretDiscoveryService",
        "Secrets",
        False,
    ),
}
BAD = ("garbage", "truncated", "wrong type", "wrong response type", "not utf-8")
OUTPUT = threading.Lock()


def tell(event, **fields):
    """One event on standard output."""
    with OUTPUT:
        print(json.dumps({"event": event, **fields}), flush=True)


def message_classes(proto_dir, stubs_dir):
    """The message class of each type; those of Cilium generated from the project's own `.proto` files."""
    own = ["cilium.NetworkPolicy", "cilium.NetworkPolicyHosts"]
    made = proto_messages.classes(proto_dir, stubs_dir, ["cilium/npds.proto", "cilium/nphds.proto"], own)
    return {
        "NetworkPolicy": made["cilium.NetworkPolicy"],
        "NetworkPolicyHosts": made["cilium.NetworkPolicyHosts"],
        "Listener": listener_pb2.Listener,
        "Cluster": cluster_pb2.Cluster,
        "RouteConfiguration": route_pb2.RouteConfiguration,
        "ClusterLoadAssignment": endpoint_pb2.ClusterLoadAssignment,
        "Secret": secret_pb2.Secret,
    }


class Violation(Exception):
    """A request that an agent ends the stream for."""


def require(holds, what):
    if not holds:
        raise Violation(what)


class Cache:
    """The resources of one type. Every change has a version of its own."""

    def __init__(self, kind):
        self.kind = kind
        self.url = PREFIX + TYPES[kind][0]
        self.version = 1
        self.resources = {}  # name -> (version of its last change, bytes)

    def change(self, changed, removed):
        self.version += 1
        for name in removed:
            self.resources.pop(name, None)
        for name, value in changed:
            self.resources[name] = (self.version, value)

    def chosen(self, names):
        """The resources that these names want, or all of them."""
        if names is None:
            return self.resources
        return {name: self.resources[name] for name in names if name in self.resources}


class Topic:
    """One type on one stream."""

    def __init__(self, cache):
        self.cache = cache
        self.wants = None  # a set of names; None before the first request, all of them with `everything`
        self.everything = False
        self.ready = False  # a request allows one response
        self.forced = False  # names were added, so the next response comes at once
        self.sent = 0  # version of the last response
        self.outstanding = None  # its nonce
        self.bad = False  # that response was meant to be refused
        self.known = {}  # incremental: name -> version that the client has

    def names(self):
        return None if self.everything else self.wants

    def want(self, names, everything):
        new = set(names)
        self.forced |= self.wants is not None and bool(new - self.wants)
        self.wants = new
        self.everything = everything


class Stream:
    """One open stream. `take` and `next` run under the agent's lock."""

    def __init__(self, agent, kinds, aggregated):
        self.agent = agent
        self.aggregated = aggregated
        self.topics = {agent.caches[kind].url: Topic(agent.caches[kind]) for kind in kinds}
        self.greeted = False
        self.nonces = 0
        self.ended = None  # how the stream ends

    def greet(self, request):
        if not self.greeted:
            require(request.node.id == NODE, f"invalid node {request.node.id!r}")
        else:
            require(not request.node.id, "the node is sent again")
        self.greeted = True

    def topic(self, request):
        if not request.type_url and not self.aggregated:
            return next(iter(self.topics.values()))
        require(request.type_url in self.topics, f"type {request.type_url!r} on this stream")
        return self.topics[request.type_url]

    def answered(self, topic, request, nonce):
        event = "nack" if request.HasField("error_detail") else "ack"
        self.agent.count(event)
        fields = {"message": request.error_detail.message} if event == "nack" else {}
        tell(event, type=topic.cache.kind, nonce=nonce, bad=topic.bad, **fields)
        topic.outstanding = None
        if event == "nack" and self.agent.insists and topic.cache.kind == "NetworkPolicy":
            topic.cache.change([(self.agent.insists, b"\xff\xff\xff")], [])
        if self.agent.repeated and topic.cache.kind == self.agent.repeated[0]:
            self.inject(topic, self.agent.repeated[1])

    def inject(self, topic, bad):
        self.agent.outgoing(self, self.bad_response(topic, bad))

    def resources_of_a_bad_one(self, topic, bad):
        url, good = topic.cache.url, next(iter(topic.cache.resources.values()), (0, b""))[1]
        value = {"garbage": b"\xff\xff\xff", "truncated": good[:-1] or b"\x0a\x05", "not utf-8": b"\x0a\x02\xff\xfe"}
        if bad == "wrong type":
            return [(PREFIX + "cilium.Other", good)]
        return [(url, good), (url, value.get(bad, good))]


class StateOfTheWorld(Stream):
    """Split and aggregated streams."""

    def take(self, raw):
        request = discovery_pb2.DiscoveryRequest.FromString(raw)
        self.greet(request)
        topic = self.topic(request)
        version, nonce = request.version_info, request.response_nonce
        if not self.aggregated:
            require(version == "" or version.isdigit(), f"version {version!r}")
            require(nonce == "" or nonce.isdigit(), f"nonce {nonce!r}")
            require(not nonce or int(version or 0) <= int(nonce), f"version {version} after nonce {nonce}")
        first = topic.wants is None
        if first:
            require(not nonce and not version, "a new stream carries a version or a nonce")
        wildcard = TYPES[topic.cache.kind][3]
        everything = not request.resource_names and (wildcard or not self.aggregated)
        require(wildcard or not everything, f"no names, which means every {topic.cache.kind} of the node")
        topic.want(request.resource_names, everything)
        if nonce and nonce == topic.outstanding:
            self.answered(topic, request, nonce)
        elif nonce and self.aggregated and topic.outstanding:
            return  # stale
        topic.ready = True

    def next(self):
        """The next response that is due, if any."""
        clusters = self.agent.caches["Cluster"]
        for topic in self.topics.values():
            if not topic.ready or topic.wants is None or topic.outstanding:
                continue
            if topic.cache.kind == "Listener" and clusters.resources and not self.agent.clusters_known:
                continue
            if not topic.everything and not topic.wants:
                continue
            if topic.sent == topic.cache.version and not topic.forced:
                continue
            chosen = topic.cache.chosen(topic.names())
            complete = topic.names() is not None and len(chosen) == len(topic.names())
            if complete and not topic.forced and all(version <= topic.sent for version, _ in chosen.values()):
                topic.sent = topic.cache.version
                continue
            topic.forced, topic.sent, topic.bad = False, topic.cache.version, False
            return self.response(topic, [(topic.cache.url, value) for _, value in chosen.values()])
        return None

    def response(self, topic, resources, type_url=None):
        self.nonces += 1
        version = f"e1:g{topic.cache.version}" if self.aggregated else str(topic.cache.version)
        nonce = str(self.nonces) if self.aggregated else version
        topic.outstanding, topic.ready = nonce, False
        response = discovery_pb2.DiscoveryResponse(
            version_info=version, nonce=nonce, type_url=type_url or topic.cache.url
        )
        for url, value in resources:
            response.resources.add(type_url=url, value=value)
        return response.SerializeToString()

    def bad_response(self, topic, bad):
        if not self.aggregated:
            topic.cache.version += 1
            topic.sent = topic.cache.version
        wrong = PREFIX + "cilium.Other" if bad == "wrong response type" else None
        topic.bad = True
        return self.response(topic, self.resources_of_a_bad_one(topic, bad), wrong)


class Incremental(Stream):
    """Incremental streams of one type."""

    def take(self, raw):
        request = discovery_pb2.DeltaDiscoveryRequest.FromString(raw)
        self.greet(request)
        topic = self.topic(request)
        nonce = request.response_nonce
        require(nonce or not request.HasField("error_detail"), "an error without a nonce")
        require(not nonce or nonce == topic.outstanding, f"nonce {nonce!r}, outstanding is {topic.outstanding!r}")
        if topic.wants is None:
            require(not nonce, "a new stream carries a nonce")
            names = set(request.resource_names_subscribe)
            topic.want(names, not names or "*" in names)
            topic.known = dict.fromkeys(request.initial_resource_versions, -1)
        else:
            names = topic.wants | set(request.resource_names_subscribe)
            topic.want(names - set(request.resource_names_unsubscribe), topic.everything)
            for name in request.resource_names_unsubscribe:
                topic.known.pop(name, None)
            for name in request.resource_names_subscribe:
                topic.known.pop(name, None)
        if nonce:
            self.answered(topic, request, nonce)
        topic.ready = True

    def next(self):
        for topic in self.topics.values():
            if topic.wants is None or topic.outstanding:
                continue
            chosen = topic.cache.chosen(topic.names())
            changed = [(name, entry) for name, entry in chosen.items() if topic.known.get(name) != entry[0]]
            removed = [name for name in topic.known if name not in chosen]
            if not changed and not removed and topic.sent:
                continue
            topic.sent, topic.bad = topic.cache.version, False
            topic.known = {name: version for name, (version, _) in chosen.items()}
            return self.response(topic, [(name, topic.cache.url, value) for name, (_, value) in changed], removed)
        return None

    def response(self, topic, resources, removed, type_url=None):
        self.nonces += 1
        topic.outstanding = f"n{self.nonces}"
        response = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=str(topic.cache.version),
            nonce=topic.outstanding,
            type_url=type_url or topic.cache.url,
            removed_resources=removed,
        )
        for name, url, value in resources:
            resource = response.resources.add(name=name, version=str(topic.cache.version))
            resource.resource.type_url = url
            resource.resource.value = value
        return response.SerializeToString()

    def bad_response(self, topic, bad):
        topic.bad = True
        names = list(topic.cache.resources) + ["bad"]
        resources = zip([names[0], "bad"], *zip(*self.resources_of_a_bad_one(topic, bad)))
        wrong = PREFIX + "cilium.Other" if bad == "wrong response type" else None
        return self.response(topic, list(resources), [], wrong)


class Agent:
    """The states, the open streams and the server."""

    def __init__(self, new):
        self.new = new
        self.caches = {kind: Cache(kind) for kind in TYPES}
        self.changed = threading.Condition()
        self.streams = {}  # stream -> bytes to send before anything else
        self.server = None
        self.bound = None
        self.repeated = None  # type and kind of a bad response
        self.insists = None  # name of a policy that is garbage
        self.clusters_known = False
        self.counts = {}
        self.violations = []

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def outgoing(self, stream, response):
        self.streams[stream].append(response)
        self.changed.notify_all()

    def end(self, streams, code):
        for stream in streams:
            stream.ended = code
        self.changed.notify_all()

    # gRPC side

    def handler(self, new_stream, kinds, aggregated):
        def serve(requests, context):
            stream = new_stream(self, kinds, aggregated)
            with self.changed:
                self.streams[stream] = []
                self.count("streams")
            threading.Thread(target=self.read, args=(stream, requests), daemon=True).start()
            while True:
                with self.changed:
                    response = None
                    while not response and not stream.ended:
                        response = self.streams[stream].pop(0) if self.streams[stream] else stream.next()
                        if not response and not stream.ended:
                            self.changed.wait()
                    if stream.ended:
                        self.streams.pop(stream, None)
                        break
                    self.count("responses")
                yield response
            if stream.ended != grpc.StatusCode.OK:
                context.abort(stream.ended, "ended by the agent")

        return grpc.stream_stream_rpc_method_handler(serve, request_deserializer=bytes, response_serializer=bytes)

    def read(self, stream, requests):
        try:
            for raw in requests:
                with self.changed:
                    if stream.ended:
                        return
                    self.count("requests")
                    stream.take(raw)
                    self.clusters_known |= any(t.cache.kind == "Cluster" and t.sent for t in stream.topics.values())
                    self.changed.notify_all()
        except grpc.RpcError:
            pass  # the client has gone, or the test has ended the stream
        except Violation as violation:
            with self.changed:
                self.violations.append(str(violation))
            tell("violation", what=str(violation))
        with self.changed:
            stream.ended = stream.ended or grpc.StatusCode.INVALID_ARGUMENT
            self.changed.notify_all()

    # commands

    def listen(self, path, mode):
        methods = {}
        if mode == "ads":
            service, method = AGGREGATED
            methods[service] = {method: self.handler(StateOfTheWorld, list(TYPES), True)}
        else:
            for kind, (_, service, suffix, _) in TYPES.items():
                new, verb = (StateOfTheWorld, "Stream") if mode == "split" else (Incremental, "Delta")
                methods[service] = {verb + suffix: self.handler(new, [kind], False)}
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.clusters_known = False
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=limits)
        handlers = [grpc.method_handlers_generic_handler(service, table) for service, table in methods.items()]
        self.server.add_generic_rpc_handlers(handlers)
        pathlib.Path(path).unlink(missing_ok=True)
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()

    def bind(self, path):
        pathlib.Path(path).unlink(missing_ok=True)
        self.bound = socket.socket(socket.AF_UNIX)
        self.bound.bind(path)
        self.bound.listen(64)

    def stop(self):
        if self.bound:
            self.bound.close()
            self.bound = None
        if self.server:
            with self.changed:
                self.end(list(self.streams), grpc.StatusCode.UNAVAILABLE)
            self.server.stop(grace=None).wait()
            self.server = None

    def encode(self, kind, resource):
        message = json_format.ParseDict(resource, self.new[kind]())
        names = {"NetworkPolicy": "endpoint_id", "NetworkPolicyHosts": "policy", "ClusterLoadAssignment": "cluster_name"}
        name = names.get(kind, "name")
        return str(getattr(message, name)), message.SerializeToString()

    def filler(self, number, port):
        policy = self.new["NetworkPolicy"](endpoint_id=number, endpoint_ips=[f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"])
        entry = policy.ingress_per_port_policies.add(port=port)
        rule = entry.rules.add(remote_policies=[number % 97 + 256])
        header = rule.http_rules.http_rules.add().headers.add(name=":path")
        header.string_match.safe_regex.regex = f"/service/{number % 500}/.*"
        return str(number), policy.SerializeToString()

    def run(self, command):
        kind = command.setdefault("type", "NetworkPolicy")
        cache = self.caches[kind]
        do = command["do"]
        if do == "stop":
            self.stop()
        elif do == "listen":
            self.listen(command["path"], command["mode"])
        elif do == "bind":
            self.bind(command["path"])
        elif do == "flap":
            for _ in range(command["times"]):
                time.sleep(command["every"])
                with self.changed:
                    self.end(list(self.streams), grpc.StatusCode.UNAVAILABLE)
        with self.changed:
            if do in ("set", "patch"):
                changed = {}
                for resource in command["resources"]:
                    name, value = self.encode(kind, resource)
                    # Several of one name: what a cache calls them is not in the message.
                    changed[name if name not in changed else f"{name}#{len(changed)}"] = value
                changed = list(changed.items())
                removed = list(cache.resources) if do == "set" else command.get("remove", [])
                cache.change(changed, removed)
            elif do == "fill":
                first = command["first"]
                cache.change([self.filler(number, 80) for number in range(first, first + command["count"])], [])
            elif do == "touch":
                cache.change([self.filler(command["id"], command["port"])], [])
            elif do == "send":
                for stream in list(self.streams):
                    topic = stream.topics.get(cache.url)
                    if topic and topic.wants is not None and not topic.outstanding:
                        stream.inject(topic, command["bad"])
            elif do == "insist":
                self.insists = str(command["id"]) if command["id"] else None
                if self.insists:
                    cache.change([(self.insists, b"\xff\xff\xff")], [])
            elif do == "repeat":
                self.repeated = (kind, command["bad"]) if command["bad"] else None
            self.changed.notify_all()
            counts = {**self.counts, "open": len(self.streams), "violations": self.violations}
        tell("done", version=cache.version, counts=counts)


def main():
    agent = Agent(message_classes(*sys.argv[1:]))
    for line in sys.stdin:
        agent.run(json.loads(line))


main()
