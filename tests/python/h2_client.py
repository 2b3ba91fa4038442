"""HTTP/2 clients for tests (prior knowledge), independent of the Rust stack: `h2` on plain sockets, and `httpx`.

    h2_client.py SCENARIO HOST:PORT [SOURCE ADDRESS]

Prints what it saw as one JSON object in its last line. A scenario that waits for the test to do something prints
"ready" before.
"""

import json
import socket
import sys
import time

import h2.config
import h2.connection
import h2.events
import hyperframe.frame

DEADLINE = 20
GOAWAY = 7
REFUSED_STREAM = 7


class Client:
    """One connection. GOAWAY is noted but kept from `h2`, which would refuse to let open streams end."""

    def __init__(self, address, source=None, **config):
        host, port = address.rsplit(":", 1)
        source = (source, 0) if source else None
        self.sock = socket.create_connection((host, int(port)), timeout=DEADLINE, source_address=source)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", **config)
        self.h2 = h2.connection.H2Connection(config=config)
        self.h2.initiate_connection()
        self.acknowledge = True
        self.buffer = b""
        self.goaway = []
        self.closed = None
        self.streams = {}
        self.flush()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def headers(self, path, method="GET", more=()):
        return [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *more]

    def begin(self, path, method="GET", more=(), end=True):
        """Sends a request head and returns its stream's id."""
        return self.begin_with(self.headers(path, method, more), end)

    def begin_with(self, headers, end=True):
        stream_id = self.h2.get_next_available_stream_id()
        self.streams[stream_id] = {"interim": [], "status": None, "body": b"", "trailers": None, "end": None}
        self.h2.send_headers(stream_id, headers, end_stream=end)
        self.flush()
        return stream_id

    def pump(self):
        """Reads once and notes what came. False at the end of the connection."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            self.closed = "reset"
            return False
        if not data:
            self.closed = "closed"
            return False
        self.buffer += data
        while len(self.buffer) >= 9:
            frame, length = hyperframe.frame.Frame.parse_frame_header(memoryview(self.buffer[:9]))
            if len(self.buffer) < 9 + length:
                break
            whole, self.buffer = self.buffer[: 9 + length], self.buffer[9 + length :]
            if whole[3] == GOAWAY:
                self.goaway.append(int.from_bytes(whole[13:17], "big"))
                continue
            for event in self.h2.receive_data(whole):
                self.note(event)
        self.flush()
        return True

    def note(self, event):
        stream = self.streams.get(getattr(event, "stream_id", None))
        if stream is None:
            return
        if isinstance(event, h2.events.InformationalResponseReceived):
            stream["interim"].append(event.headers)
        elif isinstance(event, h2.events.ResponseReceived):
            stream["headers"] = event.headers
            stream["status"] = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream["body"] += event.data
            if self.acknowledge and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            stream["trailers"] = event.headers
        elif isinstance(event, h2.events.StreamEnded):
            stream["end"] = "end"
        elif isinstance(event, h2.events.StreamReset):
            stream["end"] = int(event.error_code)

    def until(self, condition):
        while not condition():
            if not self.pump():
                raise SystemExit(f"the connection is {self.closed}; streams: {self.streams}")

    def finish(self, stream_id):
        """Waits for the end of a stream, and returns what came on it, printable."""
        stream = self.streams[stream_id]
        self.until(lambda: stream["end"] is not None)
        return {**stream, "body": stream["body"].decode("latin-1")}

    def get(self, path, **more):
        return self.finish(self.begin(path, **more))

    def send(self, stream_id, data, end=False):
        self.h2.send_data(stream_id, data, end_stream=end)
        self.flush()


def verdicts(client):
    """Streams of one connection, each with its own verdict, one after the other and all at once."""
    paths = ["/allowed/x", "/denied", "/allowed/x", "/denied/x", "/allowed/../denied", "/%61llowed/x"]
    one_by_one = [client.get(path) for path in paths]
    at_once = [client.begin(path) for path in paths]
    at_once = [client.finish(stream_id) for stream_id in at_once]
    return {"one_by_one": one_by_one, "at_once": at_once, "goaway": client.goaway}


def fields(client):
    """All fields arrive, and no others."""
    more = [("x-b", "1"), ("x-a", "2"), ("x-b", "3"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]
    more.append(("x-empty", ""))
    answer = client.get("/allowed/headers?q=%2F", more=more)
    sent = client.headers("/allowed/headers?q=%2F", more=more)
    received = map(tuple, json.loads(answer["body"]))
    return {"sent": sorted(sent), "received": sorted(received), "answer": answer["headers"]}


def edited(client):
    """What rules make of the fields, and which trailers they leave."""
    cookies = [("cookie", "a=1"), ("cookie", "b=2")]
    more = [("authorization", "forged"), ("x-add", "1"), ("x-debug", "y"), *cookies, ("x-other", "o")]
    answer = client.get("/headers", more=more)
    stream_id = client.begin("/echo", "POST", more=cookies, end=False)
    client.h2.send_headers(stream_id, [("x-sum", "7"), ("x-new", "m"), ("x-debug", "y")], end_stream=True)
    client.flush()
    trailers = client.finish(stream_id)["trailers"]
    denied = client.get("/denied", more=cookies)["status"]
    other_cookie = client.get("/headers", more=[("cookie", "a=1")])["status"]
    received = sorted(map(tuple, json.loads(answer["body"])))
    return {"received": received, "trailers": trailers, "denied": denied, "other_cookie": other_cookie}


def streaming(client):
    """Each piece of a body comes back before the next is sent; trailers come back at the end."""
    stream_id = client.begin("/allowed/echo", "POST", end=False)
    stream = client.streams[stream_id]
    client.until(lambda: stream["status"])
    for piece in (b"one", b"two", b"x" * 1000):
        before = len(stream["body"])
        client.send(stream_id, piece)
        client.until(lambda: len(stream["body"]) == before + len(piece))
        assert stream["body"][before:] == piece
    trailers = [("x-sum", "7"), ("host", "evil"), ("authorization", "x"), ("content-length", "9"), ("x-other", "8")]
    client.h2.send_headers(stream_id, trailers, end_stream=True)
    client.flush()
    return client.finish(stream_id)


def interim(client):
    return client.get("/allowed/interim")


def resets(client):
    """Of the upstream: in the middle of an answer, and instead of one. Then of the client."""
    stream_id = client.begin("/allowed/reset", "POST", end=False)
    client.until(lambda: client.streams[stream_id]["body"] == b"abcde")
    client.send(stream_id, b"x")
    middle = client.finish(stream_id)
    instead = client.get("/allowed/refuse")
    stream_id = client.begin("/allowed/hang")
    client.until(lambda: client.streams[stream_id]["status"])
    client.h2.reset_stream(stream_id, error_code=8)
    client.flush()
    return {"middle": middle, "instead": instead, "after": client.get("/allowed/x")}


def upstream_goaway(client):
    """An upstream that wants no more requests on its connection gets them on a new one."""
    return [client.get(path) for path in ("/allowed/x", "/allowed/goaway", "/allowed/x", "/allowed/x")]


def early_answer(client):
    """The whole answer comes although the body has not ended, and the connection goes on."""
    stream_id = client.begin("/allowed/x", "POST", end=False)
    client.send(stream_id, b"part")
    early = client.finish(stream_id)
    return {"early": early, "after": client.get("/allowed/x")}


def retried(client):
    """Requests whose upstream fails at first. One that is whole when it does may be sent again."""

    def post(path, *pieces, more=()):
        stream_id = client.begin(path, "POST", more=more, end=False)
        for piece in pieces:
            client.send(stream_id, piece)
        client.h2.end_stream(stream_id)
        client.flush()
        return client.finish(stream_id)

    answers = {
        "bodiless": client.get("/allowed/fail/2"),
        "pieces": post("/allowed/pieces/fail/2", b"one", b"two"),
        "empty": post("/allowed/empty/fail/1"),
        "hangup": post("/allowed/hangup/1", b"body"),
        "refused": client.get("/allowed/refuse"),
        "large": post("/allowed/large/fail/1", b"x" * 10_000, b"x" * 10_000),
        "warned": client.get("/allowed/warned/1"),
        "last": post("/allowed/last/fail/9", b"body"),
    }
    stream_id = client.begin("/allowed/early/1", "POST", end=False)
    client.send(stream_id, b"part")
    answers["early"] = client.finish(stream_id)
    stream_id = client.begin("/allowed/trailers/fail/1", "POST", end=False)
    client.send(stream_id, b"body")
    client.h2.send_headers(stream_id, [("x-sum", "7")], end_stream=True)
    client.flush()
    answers["trailers"] = client.finish(stream_id)
    return answers


def waiting(client):
    """One stream goes on for ever, and another has a deadline."""
    first = client.begin("/allowed/first")
    client.until(lambda: client.streams[first]["status"])
    second = client.get("/allowed/second", more=[("grpc-timeout", "200m")])
    return {"second": second, "first": client.streams[first]["end"]}


def slow_reader(client):
    """A stream that is not read stops its upstream, and no other stream; then it comes whole."""
    total = 64 << 20
    client.acknowledge = False
    client.h2.increment_flow_control_window((1 << 31) - 1 - 65535)
    stream_id = client.begin(f"/allowed/big/{total}")
    stream = client.streams[stream_id]
    client.until(lambda: len(stream["body"]) == 65535)
    other = client.get("/allowed/x")
    stalled = len(stream["body"])
    received, stream["body"] = len(stream["body"]), b""
    client.h2.increment_flow_control_window(1 << 30, stream_id)
    client.flush()
    expected = bytes(range(256))
    while stream["end"] is None:
        client.until(lambda: stream["end"] is not None or len(stream["body"]) > 1 << 20)
        body, stream["body"] = stream["body"], b""
        start = received % 256
        assert body == (expected[start:] + expected * (len(body) // 256 + 1))[: len(body)]
        received += len(body)
    return {"stalled": stalled, "other": other["status"], "received": received, "end": stream["end"], "total": total}


def slow_upstream(client):
    """An upstream that does not read stops the client, and no other stream; then it gets all."""
    total = 16 << 20
    stream_id = client.begin("/allowed/rest", "POST", end=False)
    sent = 0

    def send_what_may_go():
        nonlocal sent
        while sent < total:
            room = min(client.h2.local_flow_control_window(stream_id), client.h2.max_outbound_frame_size, total - sent)
            if room == 0:
                return
            client.h2.send_data(stream_id, bytes(room))
            sent += room
        if sent == total:
            client.h2.end_stream(stream_id)
            sent += 1

    # Until nothing moves any more: no window opens although another stream makes its way there and back.
    before = -1
    while sent != before:
        before = sent
        send_what_may_go()
        client.flush()
        other = client.get("/allowed/x")
    stalled = sent
    client.begin("/allowed/resume")
    while client.streams[stream_id]["end"] is None:
        send_what_may_go()
        client.flush()
        assert client.pump()
    answer = client.finish(stream_id)
    return {"stalled": stalled, "other": other["status"], "received": int(answer["body"]), "total": total}


def drain(client):
    """Streams that are open when GOAWAY comes may end."""
    stream_id = client.begin("/allowed/echo", "POST", end=False)
    client.send(stream_id, b"before ")
    client.until(lambda: client.streams[stream_id]["body"] == b"before ")
    print("ready", flush=True)
    client.until(lambda: client.goaway)
    client.send(stream_id, b"after", end=True)
    answer = client.finish(stream_id)
    while client.pump():
        pass
    return {"answer": answer, "goaway": client.goaway, "closed": client.closed}


def revoked(client):
    """Policy ends one open stream, and not the other, nor the connection."""
    ended = client.begin("/allowed/ended/echo", "POST", end=False)
    kept = client.begin("/allowed/kept/echo", "POST", end=False)
    for stream_id in (ended, kept):
        client.send(stream_id, b"a")
        client.until(lambda: client.streams[stream_id]["body"] == b"a")
    print("ready", flush=True)
    ended = client.finish(ended)
    client.send(kept, b"b", end=True)
    kept = client.finish(kept)
    return {"ended": ended, "kept": kept, "next": client.get("/allowed/ended/x"), "goaway": client.goaway}


def bulk(client):
    """A long answer, and a long body that comes back, at the same time and at whatever pace."""
    size = 200_000
    down = client.begin(f"/allowed/big/{size}")
    echo = client.begin("/allowed/echo", "POST", end=False)
    left = size
    while left:
        room = min(left, client.h2.local_flow_control_window(echo), client.h2.max_outbound_frame_size)
        client.until(lambda: room > 0 or client.h2.local_flow_control_window(echo) > 0)
        client.send(echo, b"x" * room, end=room == left)
        left -= room
    answers = [client.finish(stream_id) for stream_id in (down, echo)]
    return [[answer["status"], len(answer["body"]), answer["end"]] for answer in answers]


GRPC = [("content-type", "application/grpc"), ("te", "trailers")]


def limited(client):
    """What comes while another request is under way, and then without it."""
    first = client.begin("/allowed/hang")
    client.until(lambda: client.streams[first]["status"])
    posted = client.begin("/allowed/x", "POST", end=False)
    seen = {"plain": client.get("/allowed/x"), "posted": client.finish(posted)}
    seen["grpc"] = client.get("/allowed/x", method="POST", more=GRPC)
    client.h2.reset_stream(first, error_code=8)
    client.flush()
    answer = client.get("/allowed/x")
    while answer["status"] != 200:
        answer = client.get("/allowed/x")
    return {**seen, "after": answer["status"], "goaway": client.goaway}


def refused(client):
    """Asks until its tenant was refused, with HTTP alone and with gRPC; the second comes before the first is answered."""
    seen = {}
    until = time.monotonic() + DEADLINE
    while len(seen) < 2 and time.monotonic() < until:
        plain, grpc = client.begin("/allowed/x"), client.begin("/allowed/x", "POST", more=GRPC)
        for name, stream_id in (("plain", plain), ("grpc", grpc)):
            answer = client.finish(stream_id)
            # What is admitted may fail, for another reason.
            reason = dict(answer.get("headers", ())).get("x-tollgate-reason", "")
            if answer["end"] == REFUSED_STREAM or reason.startswith("tenant_"):
                seen.setdefault(name, answer)
    return {**seen, "goaway": client.goaway}


def beyond_rate(client):
    """Asks until it was told to come back later, with HTTP alone and with gRPC."""
    seen = {}
    until = time.monotonic() + DEADLINE
    while len(seen) < 2 and time.monotonic() < until:
        plain = client.get("/allowed/x")
        if plain["status"] == 429:
            seen["plain"] = plain
        grpc = client.get("/allowed/x", method="POST", more=GRPC)
        if dict(grpc.get("headers", ())).get("grpc-status") == "8":
            seen["grpc"] = grpc
    return seen


def closed_port(client):
    """The connection's own permission goes: one last answer, then GOAWAY."""
    first = client.get("/allowed/x")
    print("ready", flush=True)
    last = client.get("/allowed/x")
    while last["status"] == 200:
        last = client.get("/allowed/x")
    while client.pump():
        pass
    return {"first": first, "last": last, "goaway": client.goaway, "closed": client.closed}


def main():
    scenario, address, *source = sys.argv[1:]
    if scenario == "httpx":
        import httpx

        with httpx.Client(http1=False, http2=True, base_url=f"http://{address}", timeout=DEADLINE) as client:
            answers = [client.get(path) for path in ("/allowed/x", "/denied", "/allowed/x")]
            answers.append(client.post("/allowed/echo", content=bytes(100_000)))
        reasons = [answer.headers.get("x-tollgate-reason") for answer in answers]
        seen = [[a.http_version, a.status_code, len(a.content), reason] for a, reason in zip(answers, reasons)]
        print(json.dumps(seen))
        return
    print(json.dumps(globals()[scenario](Client(address, *source))))


if __name__ == "__main__":
    main()
