"""A WebSocket server and client for tests: the `websockets` package on both ends of the proxy.

    websocket_peer.py serve IP          prints its address; gives back every message
    websocket_peer.py call HOST:PORT    prints what it saw, as JSON
    websocket_peer.py hold HOST:PORT    prints "ready" once connected, and how the connection ended
"""

import json
import os
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

DEADLINE = 20


def echo(socket):
    for message in socket:
        socket.send(message)
        if message == "close":
            socket.close(4001, "as asked")


def run_server(ip):
    with serve(echo, ip, 0, max_size=None) as server:
        host, port = server.socket.getsockname()
        print(f"{host}:{port}", flush=True)
        server.serve_forever()


def call(address):
    seen = {}
    with connect(f"ws://{address}/allowed/ws", max_size=None, open_timeout=DEADLINE) as socket:
        seen["extensions"] = len(socket.protocol.extensions)
        seen["echoes"] = 0
        for message in ("text", b"\x00binary\xff", "", os.urandom(1 << 20)):
            socket.send(message)
            seen["echoes"] += socket.recv(timeout=DEADLINE) == message
        seen["pong"] = socket.ping().wait(DEADLINE)
        socket.send("close")
        socket.recv(timeout=DEADLINE)
        try:
            socket.recv(timeout=DEADLINE)
        except ConnectionClosed as closed:
            seen["closed"] = [closed.rcvd.code, closed.rcvd.reason]
    try:
        connect(f"ws://{address}/denied", open_timeout=DEADLINE)
    except InvalidStatus as refused:
        seen["denied"] = refused.response.status_code
    print(json.dumps(seen))


def hold(address):
    with connect(f"ws://{address}/allowed/ws", open_timeout=DEADLINE) as socket:
        print("ready", flush=True)
        try:
            socket.recv(timeout=DEADLINE)
        except ConnectionClosed as closed:
            # Without a closing handshake.
            print(json.dumps({"closed": closed.rcvd and closed.rcvd.code}))


{"serve": run_server, "call": call, "hold": hold}[sys.argv[1]](sys.argv[2])
