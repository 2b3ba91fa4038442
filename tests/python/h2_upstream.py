"""An HTTP/2 upstream for tests (prior knowledge), independent of the Rust stack: the `h2` package on plain sockets.

    h2_upstream.py IP

Prints its address, then one JSON object per line: {"request": PATH} for each request head,
{"reset": CODE, "path": PATH} for each stream that the other side resets. The path says what happens:

    .../headers      200, the request's fields as JSON, in the order in which they came
    .../echo         200 at once, each piece of the body as it comes, the request's trailers as trailers
    .../interim      103 with a link, then 200
    .../big/N        200 and N bytes
    .../reset        200 and five bytes; once any of the body comes, RST_STREAM with INTERNAL_ERROR
    .../refuse       RST_STREAM with REFUSED_STREAM instead of an answer
    .../hang         200 and nothing more
    .../fail/N       503, "busy" to the first N requests for this path, then 200 and the body as it came; once the request has
                     ended, which is told as {"body": LENGTH, "path": PATH}
    .../early/N      the same, but 503 before the request has ended
    .../warned/N     the same, but 103 before the 503
    .../silent/N     no answer instead of the 503
    .../hangup/N     the connection ends instead of the 503
    .../goaway       200, "ok", then GOAWAY; this connection takes no more requests
    .../rest         takes no more of the body than the windows allow until a request for .../resume comes; counts it
    anything else    200, "ok"
"""

import collections
import json
import socket
import sys
import threading

import h2.config
import h2.connection
import h2.events
import h2.exceptions

FAILING = ("fail", "early", "warned", "silent", "hangup")
ASKED = collections.Counter()  # requests for each path
PIECE = bytes(range(256)) * 64


def say(event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Stream:
    """What one request is, and what is still to be sent for it."""

    def __init__(self, path):
        self.path = path.split("?")[0]
        self.received = 0
        self.held = 0  # received and not acknowledged
        self.pending = bytearray()
        self.pieces = 0  # bytes of PIECE, again and again, after `pending`
        self.ending = False
        self.trailers = None
        *_, kind, times = ["", *self.path.split("/")]
        self.kind = kind if kind in FAILING else None
        self.fails = False
        if self.kind:
            ASKED[self.path] += 1
            self.fails = ASKED[self.path] <= int(times)
        self.body = bytearray()


class Connection:
    def __init__(self, sock):
        self.sock = sock
        config = h2.config.H2Configuration(
            client_side=False, header_encoding="utf-8", normalize_inbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config=config)
        self.streams = {}
        self.resting = True

    def run(self):
        self.h2.initiate_connection()
        self.flush()
        while data := self.sock.recv(65536):
            for event in self.h2.receive_data(data):
                self.handle(event)
            self.flush()

    def handle(self, event):
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.RequestReceived):
            self.begin(event.stream_id, event.headers)
        elif isinstance(event, h2.events.DataReceived) and stream:
            self.data(event, stream)
        elif isinstance(event, h2.events.TrailersReceived) and stream:
            stream.trailers = event.headers
        elif isinstance(event, h2.events.StreamEnded) and stream:
            self.ended(event.stream_id, stream)
        elif isinstance(event, h2.events.StreamReset) and stream:
            say({"reset": int(event.error_code), "path": stream.path})
            del self.streams[event.stream_id]

    def answer(self, stream_id, status=200):
        self.h2.send_headers(stream_id, [(":status", str(status))])

    def begin(self, stream_id, headers):
        path = dict(headers)[":path"]
        say({"request": path})
        stream = self.streams[stream_id] = Stream(path)
        path = stream.path
        if stream.kind:
            if stream.fails and stream.kind == "early":
                self.whole(stream_id, stream, b"busy", 503)
        elif path.endswith("/refuse"):
            self.h2.reset_stream(stream_id, error_code=7)
            del self.streams[stream_id]
        elif path.endswith("/rest"):
            pass
        elif path.endswith("/interim"):
            self.h2.send_headers(stream_id, [(":status", "103"), ("link", "</a>")])
            self.whole(stream_id, stream, b"ok")
        elif path.endswith("/headers"):
            self.whole(stream_id, stream, json.dumps(headers).encode())
        elif path.endswith("/reset"):
            self.answer(stream_id)
            self.h2.send_data(stream_id, b"abcde")
        elif path.endswith(("/hang", "/echo")):
            self.answer(stream_id)
        elif path.endswith("/goaway"):
            self.whole(stream_id, stream, b"ok")
            self.send_pending(stream_id, stream)
            self.h2.close_connection()
        elif "/big/" in path:
            self.whole(stream_id, stream, b"")
            stream.pieces = int(path.rsplit("/", 1)[1])
        else:
            self.whole(stream_id, stream, b"ok")
        if path.endswith("/resume"):
            self.resting = False
            for other_id, other in self.streams.items():
                if other.held:
                    self.h2.acknowledge_received_data(other.held, other_id)
                    other.held = 0

    def whole(self, stream_id, stream, body, status=200):
        self.answer(stream_id, status)
        stream.pending += body
        stream.ending = True

    def data(self, event, stream):
        stream.received += len(event.data)
        if stream.path.endswith("/reset"):
            self.h2.reset_stream(event.stream_id, error_code=2)
            del self.streams[event.stream_id]
            return
        if stream.path.endswith("/rest") and self.resting:
            stream.held += event.flow_controlled_length
            return
        if stream.kind:
            stream.body += event.data
        if event.flow_controlled_length:
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if stream.path.endswith("/echo"):
            stream.pending += event.data

    def failing_ended(self, stream_id, stream):
        say({"body": len(stream.body), "path": stream.path})
        if not stream.fails:
            self.whole(stream_id, stream, bytes(stream.body))
        elif stream.kind == "hangup":
            raise ConnectionError("as asked")
        elif stream.kind in ("fail", "warned"):
            if stream.kind == "warned":
                self.h2.send_headers(stream_id, [(":status", "103")])
            self.whole(stream_id, stream, b"busy", 503)

    def ended(self, stream_id, stream):
        if stream.kind:
            self.failing_ended(stream_id, stream)
        elif stream.path.endswith("/echo"):
            stream.ending = True
        elif stream.path.endswith("/rest"):
            self.whole(stream_id, stream, str(stream.received).encode())

    def flush(self):
        for stream_id in list(self.streams):
            self.send_pending(stream_id, self.streams[stream_id])
        self.sock.sendall(self.h2.data_to_send())

    def send_pending(self, stream_id, stream):
        while stream.pending or stream.pieces:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if room <= 0:
                return
            if not stream.pending:
                piece = PIECE[: stream.pieces]
                stream.pieces -= len(piece)
                stream.pending += piece
            self.h2.send_data(stream_id, bytes(stream.pending[:room]))
            del stream.pending[:room]
        if stream.ending:
            if stream.trailers:
                self.h2.send_headers(stream_id, stream.trailers, end_stream=True)
            else:
                self.h2.end_stream(stream_id)
            del self.streams[stream_id]


def serve(sock):
    try:
        Connection(sock).run()
    except (OSError, h2.exceptions.ProtocolError) as error:
        say({"broken": repr(error)})
    finally:
        sock.close()


def main():
    listener = socket.create_server((sys.argv[1], 0), backlog=128)
    host, port = listener.getsockname()
    print(f"{host}:{port}", flush=True)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


main()
