"""Sends malformed HTTP/2, one row of the bad-input matrix per connection, and prints what became of each.

    h2_malformed.py HOST:PORT

Its last line is a JSON list of [row, what it is, outcome, after]. An outcome is a status, "reset CODE", "goaway CODE"
or "closed"; `after` tells whether a good request on a new connection was then answered.
"""

import json
import sys

from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame

from h2_client import Client as Good


class Client(Good):
    """Checks nothing that it sends."""

    def __init__(self, address):
        super().__init__(address, validate_outbound_headers=False, normalize_outbound_headers=False)

    def send_block(self, fields, end=True):
        """Sends a header block as it is, past the state machine's checks; bytes or text."""
        stream_id = self.h2.get_next_available_stream_id()
        self.streams[stream_id] = {"interim": [], "status": None, "body": b"", "trailers": None, "end": None}
        self.h2.send_headers(stream_id, self.headers("/x"), end_stream=False)
        self.h2.data_to_send()  # Only the machine's view of the stream is wanted.
        self.block(stream_id, fields, end)
        return stream_id

    def block(self, stream_id, fields, end):
        # Without an index, so that both sides' tables stay as they were.
        data = b""
        for name, value in fields:
            name, value = (part.encode("latin-1") if isinstance(part, str) else part for part in (name, value))
            data += b"\x00" + integer(len(name)) + name + integer(len(value)) + value
        flags = ["END_HEADERS"] + (["END_STREAM"] if end else [])
        self.raw(HeadersFrame(stream_id, data, flags=flags))

    def raw(self, frame):
        self.sock.sendall(frame.serialize())

    def what_came(self, stream_id):
        stream = self.streams[stream_id]
        while stream["end"] is None and self.pump():
            pass
        if self.goaway_code is not None:
            return f"goaway {self.goaway_code}"
        if stream["status"] is not None and stream["end"] == "end":
            return stream["status"]
        if stream["end"] is not None:
            return f"reset {stream['end']}"
        return self.closed


def integer(value):
    """A length with the 7-bit prefix of HPACK, not Huffman-coded."""
    if value < 127:
        return bytes([value])
    out, value = [127], value - 127
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def base(**changes):
    fields = {":method": "GET", ":scheme": "http", ":authority": "a", ":path": "/allowed/row"}
    for name, value in changes.items():
        name = ":" + name
        if value is None:
            del fields[name]
        else:
            fields[name] = value
    return list(fields.items())


def with_body(length, *pieces):
    def send(client):
        stream_id = client.send_block([*base(method="POST"), ("content-length", length)], end=False)
        for index, piece in enumerate(pieces):
            client.raw(DataFrame(stream_id, piece, flags=["END_STREAM"] if index + 1 == len(pieces) else []))
        return stream_id

    return send


def no_body_but_a_length(client):
    return client.send_block([*base(method="POST"), ("content-length", "30")], end=True)


def with_trailers(*fields, end=True):
    def send(client):
        stream_id = client.send_block(base(method="POST", path="/allowed/rest"), end=False)
        client.raw(DataFrame(stream_id, b"abc"))
        client.block(stream_id, fields, end)
        return stream_id

    return send


def continuation(client):
    stream_id = client.h2.get_next_available_stream_id()
    client.streams[stream_id] = {"interim": [], "status": None, "body": b"", "trailers": None, "end": None}
    client.h2.send_headers(stream_id, client.headers("/x"), end_stream=False)
    client.h2.data_to_send()
    data = b"".join(b"\x00\x01x" + integer(12_000) + b"a" * 12_000 for _ in range(6))
    client.raw(HeadersFrame(stream_id, data[:16_000], flags=["END_STREAM"]))
    pieces = [data[at : at + 16_000] for at in range(16_000, len(data), 16_000)]
    for piece in pieces[:-1]:
        client.raw(ContinuationFrame(stream_id, piece))
    client.raw(ContinuationFrame(stream_id, pieces[-1], flags=["END_HEADERS"]))
    return stream_id


ROWS = [
    (54, "method get", base(method="get", path="/get-only")),
    (55, "200 fields", [*base(), *[("x", "1")] * 200]),
    (58, "no authority, no host", base(authority=None)),
    (69, "dot segments", base(path="/allowed/../denied")),
    (70, "escaped slash", base(path="/allowed/..%2fdenied")),
    (78, "overlong", base(path="/allowed/%c0%ae")),
    (79, "escaped NUL", base(path="/allowed%00")),
    (81, "raw byte in path", base(path="/allowed/\xe9")),
    (95, "content-length 3, 10 bytes", with_body("3", b"x" * 10)),
    (95, "content-length 30, 3 bytes", with_body("30", b"abc")),
    (95, "content-length 0, 3 bytes", with_body("0", b"abc")),
    (95, "content-length 30, no body", no_body_but_a_length),
    (96, "transfer-encoding", [*base(), ("transfer-encoding", "chunked")]),
    (96, "connection", [*base(), ("connection", "close")]),
    (97, "value with CRLF", [*base(), ("x", "a\r\nX: 1")]),
    (97, "name with CRLF", [*base(), ("x: y\r\ninj", "1")]),
    (97, "name in upper case", [*base(), ("X-A", "1")]),
    (97, "name with colon", [*base(), ("x:y", "1")]),
    (97, "value with NUL", [*base(), ("x", "a\0b")]),
    (98, "value between blanks", [*base(), ("x", " \ta ")]),
    (99, "path with CRLF", base(path="/allowed/x\r\nX: 1")),
    (99, "path with space", base(path="/allowed/x y")),
    (99, "path empty", base(path="")),
    (99, "path without slash", base(path="allowed")),
    (99, "path absolute", base(path="http://a/allowed")),
    (100, "path with fragment", base(path="/allowed#/../denied")),
    (101, "path * with GET", base(path="*")),
    (102, "method with a request in it", base(method="GET /denied HTTP/1.1\r\nHost: a\r\n\r\n")),
    (103, "two paths", [*base(), (":path", "/denied")]),
    (103, "pseudo after regular", [("x", "1"), *base()]),
    (103, "status in a request", [*base(), (":status", "200")]),
    (103, "unknown pseudo", [*base(), (":foo", "1")]),
    (103, "no path", base(path=None)),
    (103, "no method", base(method=None)),
    (103, "no scheme", base(scheme=None)),
    (105, "two hosts", [*base(authority=None), ("host", "a"), ("host", "a")]),
    (106, "userinfo", base(authority="x@a")),
    (107, "scheme ftp", base(scheme="ftp")),
    (107, "scheme with an address", base(scheme="http://evil/x?")),
    (108, "CONNECT", [(":method", "CONNECT"), (":authority", "a:80")]),
    (108, "extended CONNECT", [*base(method="CONNECT"), (":protocol", "websocket")]),
    (109, "trailers with :path", with_trailers((":path", "/denied"))),
    (110, "HEADERS in mid-stream", with_trailers(("x", "1"), end=False)),
    (111, "72 KB of fields in CONTINUATION", continuation),
]


def note_goaway(client):
    """Keeps the code of the first GOAWAY, which `Client` takes out of the stream of frames."""
    client.goaway_code = None
    pump = client.pump

    def pumping():
        before = len(client.goaway)
        more = pump()
        if len(client.goaway) > before and client.goaway[0]:
            client.goaway_code = client.goaway[0]
        return more

    client.pump = pumping


def main():
    address = sys.argv[1]
    seen = []
    for number, name, row in ROWS:
        client = Client(address)
        note_goaway(client)
        try:
            outcome = client.what_came(row(client) if callable(row) else client.send_block(row))
        except (ConnectionResetError, BrokenPipeError):
            # Sent into a connection that had just been ended.
            outcome = f"goaway {client.goaway[0]}" if client.goaway else "closed"
        client.sock.close()
        after = Good(address).get("/allowed/good")["status"] == 200
        seen.append([number, name, outcome, after])
    print(json.dumps(seen))


main()
