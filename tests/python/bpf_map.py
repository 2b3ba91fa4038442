#!/usr/bin/env python3
"""Makes BPF maps as Cilium's datapath pins them, and writes entries. Shares no code with what reads them.

Commands, one per line of standard input; each is answered by a line, `ok` or `error: why`. An address is an IP address or
a prefix; numbers are decimal.

    create ipcache|ct4|ct6 PATH [VALUE_SIZE]    make a map and pin it; a pin that is there is replaced at once
    create-array PATH                           a map of another type
    put PATH ADDRESS IDENTITY                   an entry of an ipcache
    remove PATH ADDRESS
    track PATH SOURCE_IP SOURCE_PORT DESTINATION_IP DESTINATION_PORT in|out IDENTITY    an entry of a conntrack map
    untrack PATH SOURCE_IP SOURCE_PORT DESTINATION_IP DESTINATION_PORT in|out
"""

import ctypes
import ipaddress
import os
import platform
import struct
import sys

SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
MAP_CREATE, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, OBJ_PIN, OBJ_GET, OBJ_GET_INFO_BY_FD = 0, 2, 3, 6, 7, 15
HASH, ARRAY, LPM_TRIE = 1, 2, 11
NO_PREALLOC = 1
TCP = 6
LIBC = ctypes.CDLL(None, use_errno=True)


def bpf(command, attr):
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = LIBC.syscall(SYSCALL, command, buffer, len(attr))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def address_of(memory):
    return ctypes.addressof(memory)


def create(path, kind, key_size, value_size, flags=0):
    fd = bpf(MAP_CREATE, struct.pack("=IIIII", kind, key_size, value_size, 1024, flags))
    # Under another name first: `rename` then replaces a pin in one step, as an agent does.
    fresh = path + "_new"
    name = ctypes.create_string_buffer(fresh.encode())
    bpf(OBJ_PIN, struct.pack("=QII", address_of(name), fd, 0))
    os.rename(fresh, path)
    os.close(fd)


def update(path, key, value):
    fd = open_map(path)
    key, size = ctypes.create_string_buffer(key, len(key)), value_size(fd)
    value = ctypes.create_string_buffer(value.ljust(size, b"\xee"), size)
    bpf(MAP_UPDATE_ELEM, struct.pack("=IIQQQ", fd, 0, address_of(key), address_of(value), 0))
    os.close(fd)


def delete(path, key):
    fd = open_map(path)
    key = ctypes.create_string_buffer(key, len(key))
    bpf(MAP_DELETE_ELEM, struct.pack("=IIQ", fd, 0, address_of(key)))
    os.close(fd)


def open_map(path):
    name = ctypes.create_string_buffer(path.encode())
    return bpf(OBJ_GET, struct.pack("=QII", address_of(name), 0, 0))


def value_size(fd):
    info = ctypes.create_string_buffer(24)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, 24, address_of(info)))
    return struct.unpack_from("=I", info, 12)[0]


def ipcache_key(text):
    net = ipaddress.ip_network(text)
    family = {4: 1, 6: 2}[net.version]
    return struct.pack("=IHBB16s", 32 + net.prefixlen, 0, 0, family, net.network_address.packed)


def conntrack_key(source, source_port, destination, destination_port, direction):
    source, destination = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    ports = struct.pack("!HH", int(destination_port), int(source_port))
    return source.packed + destination.packed + ports + bytes([TCP, {"out": 0, "in": 1}[direction]])


def conntrack_value(identity):
    return b"\xee" * 44 + struct.pack("=I", identity) + b"\xee" * 8


SHAPES = {
    "ipcache": (LPM_TRIE, 24, 24, NO_PREALLOC),
    "ct4": (HASH, 14, 56, 0),
    "ct6": (HASH, 38, 56, 0),
}


def run(words):
    match words:
        case ["create", shape, path, *size]:
            kind, key, value, flags = SHAPES[shape]
            create(path, kind, key, int(size[0]) if size else value, flags)
        case ["create-array", path]:
            create(path, ARRAY, 4, 24)
        case ["put", path, address, identity]:
            update(path, ipcache_key(address), struct.pack("=I", int(identity)))
        case ["remove", path, address]:
            delete(path, ipcache_key(address))
        case ["track", path, *flow, identity]:
            update(path, conntrack_key(*flow), conntrack_value(int(identity)))
        case ["untrack", path, *flow]:
            delete(path, conntrack_key(*flow))
        case _:
            raise ValueError(f"unknown command {words}")


for line in sys.stdin:
    try:
        run(line.split())
        print("ok", flush=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", flush=True)
