"""A gRPC service and its clients for tests: grpcio on both ends of the proxy.

    grpc_peer.py serve IP          prints its address
    grpc_peer.py call HOST:PORT    prints what each call came to, as JSON
    grpc_peer.py cancel HOST:PORT  gives up 3,000 calls after their first answer, pinging all the while; prints as JSON

`/test.Echo/Unary` and `/test.Echo/Stream` give back what they get; `/test.Echo/Fail` fails with ABORTED. All of it is
there under `/test.Hidden/`, too.
"""

import json
import sys
import threading
from concurrent import futures

import grpc

DEADLINE = 20


def fail(request, context):
    context.abort(grpc.StatusCode.ABORTED, "as asked")


def stream(requests, context):
    context.send_initial_metadata((("x-initial", "1"),))
    for request in requests:
        yield request
    context.set_trailing_metadata((("x-final", "2"),))


def serve(ip):
    server = grpc.server(futures.ThreadPoolExecutor(8))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    for service in ("test.Echo", "test.Hidden"):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port(f"{ip}:0")
    server.start()
    print(f"{ip}:{port}", flush=True)
    server.wait_for_termination()


def outcome(call):
    try:
        result = call()
        return ["OK", result if isinstance(result, str) else result.decode()]
    except grpc.RpcError as error:
        return [error.code().name, error.details()]


def call(address):
    with grpc.insecure_channel(address) as channel:
        unary = lambda path, text: channel.unary_unary(path)(text, timeout=DEADLINE)
        streaming = channel.stream_stream("/test.Echo/Stream")

        def conversation():
            """Each message is sent after the answer to the one before."""
            answers = []
            pending = iter([b"a", b"bb", b"c" * 100_000])
            responses = streaming(pending, timeout=DEADLINE)
            initial = dict(responses.initial_metadata()).get("x-initial")
            for answer in responses:
                answers.append(len(answer))
            return f"{initial} {answers} {dict(responses.trailing_metadata())['x-final']}"

        print(json.dumps({
            "unary": outcome(lambda: unary("/test.Echo/Unary", b"hello")),
            "stream": outcome(conversation),
            "fail": outcome(lambda: unary("/test.Echo/Fail", b"x")),
            "denied": outcome(lambda: unary("/test.Hidden/Unary", b"x")),
            "denied_stream": outcome(lambda: str(list(channel.stream_stream("/test.Hidden/Stream")(iter([b"x"]))))),
            "after": outcome(lambda: unary("/test.Echo/Unary", b"again")),
        }))


def cancel(address):
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    seen = {"cancelled": 0, "answered": 0}
    codes = set()
    lock = threading.Lock()
    with grpc.insecure_channel(address, options) as channel:
        streaming = channel.stream_stream("/test.Echo/Stream")

        def give_up(_):
            hold = threading.Event()
            responses = streaming(iter_then_wait(b"x", hold), timeout=DEADLINE)
            answer = next(responses)
            responses.cancel()
            hold.set()
            with lock:
                seen["answered"] += answer == b"x"
                seen["cancelled"] += responses.cancelled()
                codes.add(responses.code().name)

        with futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(give_up, range(3000)))
    print(json.dumps(seen | {"codes": sorted(codes)}))


def iter_then_wait(message, event):
    yield message
    event.wait(DEADLINE)


{"serve": serve, "call": call, "cancel": cancel}[sys.argv[1]](sys.argv[2])
