"""The Python side of the wire tests: Google's protobuf with Envoy's own generated modules.

    interop.py COMMAND PROTO_DIR STUBS_DIR

Our `.proto` files are compiled by Google's compiler; what they import of Envoy is the real thing
out of `xds-protos`, not our restatement. Commands exchange one JSON object per line:

    samples      -> {message, fields: [names], set: [names], bytes}
    compare      <- {message, sent, returned}; fails if the two differ as messages
    decode       <- {message, bytes} -> {message, set: [names], value}
    definitions  -> one line for each difference between Envoy's messages and our restatement
"""

import importlib
import itertools
import json
import pathlib
import sys
import tempfile

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc
import grpc_tools

POOL = descriptor_pool.Default()

# Envoy messages that travel between us and others, in full.
DISCOVERY = [
    "envoy.service.discovery.v3.DiscoveryRequest",
    "envoy.service.discovery.v3.DiscoveryResponse",
    "envoy.service.discovery.v3.DeltaDiscoveryRequest",
    "envoy.service.discovery.v3.DeltaDiscoveryResponse",
]


def compile_ours(proto_dir, stubs_dir):
    """All `.proto` files below both directories, as FileDescriptorProtos by file name."""
    files = []
    for root in (proto_dir, stubs_dir):
        files += sorted(str(path.relative_to(root)) for path in pathlib.Path(root).rglob("*.proto"))
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as directory:
        out = pathlib.Path(directory) / "descriptors.bin"
        arguments = ["protoc", f"-I{proto_dir}", f"-I{stubs_dir}", f"-I{well_known}", f"--descriptor_set_out={out}"]
        if protoc.main(arguments + files) != 0:
            sys.exit("protoc refused our files")
        descriptors = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in descriptors.file}


def load(ours):
    """Registers our `cilium` files on top of Envoy's modules."""
    waiting = {name: file for name, file in ours.items() if file.package == "cilium"}
    for dependency in sorted({name for file in waiting.values() for name in file.dependency}):
        importlib.import_module(dependency.removesuffix(".proto").replace("/", ".") + "_pb2")
    for file in waiting.values():
        POOL.AddSerializedFile(file.SerializeToString())


def message_names(prefix, messages):
    """Full names of messages and the messages inside them, without map entries."""
    for message in messages:
        if message.options.map_entry:
            continue
        name = f"{prefix}.{message.name}"
        yield name
        yield from message_names(name, message.nested_type)


def new(descriptor):
    return message_factory.GetMessageClass(descriptor)()


class Filler:
    """Makes messages in which everything is set, each value different from all others."""

    def __init__(self):
        self.count = itertools.count(1)

    def scalar(self, field):
        number = next(self.count)
        kind = field.cpp_type
        if kind == field.CPPTYPE_STRING:
            text = f"{field.name} № {number}"
            return text.encode() + b"\xff" if field.type == field.TYPE_BYTES else text
        return {
            field.CPPTYPE_BOOL: True,
            field.CPPTYPE_UINT32: 2**32 - number,
            field.CPPTYPE_UINT64: 2**64 - number,
            field.CPPTYPE_INT32: -(2**31) + number,
            field.CPPTYPE_INT64: -(2**63) + number,
            field.CPPTYPE_DOUBLE: number + 0.1,
            field.CPPTYPE_FLOAT: number + 0.5,
        }[kind]

    def values(self, field, around):
        """Enough values of a field to have set everything below it."""
        if field.message_type:
            return self.samples(field.message_type, around)
        if field.enum_type:
            return [value.number for value in field.enum_type.values if value.number != 0] or [0]
        return [self.scalar(field)]

    def samples(self, descriptor, around=()):
        """Messages of one type that together have every field set."""
        if descriptor.full_name in around:
            return [new(descriptor)]
        if descriptor is any_pb2.Any.DESCRIPTOR:
            return [any_pb2.Any(type_url="type.googleapis.com/cilium.L7Policy", value=b"\x0a\x01x")]
        around = (*around, descriptor.full_name)
        everywhere, choices = [], {}
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof and len(oneof.fields) > 1:
                choices.setdefault(oneof.name, []).append(field)
            else:
                everywhere.append(field)
        # Each column is a list of (field, value) of which one sample holds one.
        columns = []
        for field in everywhere:
            if field.is_repeated:
                columns.append([(field, self.repeated(field, around))])
            else:
                columns.append([(field, value) for value in self.values(field, around)])
        for fields in choices.values():
            columns.append([(field, value) for field in fields for value in self.values(field, around)])
        made = []
        for index in range(max([len(column) for column in columns], default=1)):
            message = new(descriptor)
            for column in columns:
                put(message, *column[index % len(column)])
            made.append(message)
        return made

    def repeated(self, field, around):
        entry = field.message_type
        if entry and entry.GetOptions().map_entry:
            values = self.values(entry.fields_by_name["value"], around)
            return {self.scalar(entry.fields_by_name["key"]): value for value in values * 2}
        values = self.values(field, around)
        return values + self.values(field, around) if len(values) == 1 else values


def put(message, field, value):
    target = getattr(message, field.name)
    if isinstance(value, dict):
        for key, item in value.items():
            if hasattr(item, "CopyFrom"):
                target[key].CopyFrom(item)
            else:
                target[key] = item
    elif isinstance(value, list):
        target.extend(value)
    elif field.message_type:
        target.CopyFrom(value)
    else:
        setattr(message, field.name, value)


def set_fields(message):
    return sorted(field.name for field, _ in message.ListFields())


def samples(ours):
    names = [*DISCOVERY]
    for file in ours.values():
        if file.name.startswith("cilium/") or file.name.startswith(("envoy/type/", "envoy/config/route/", "xds/")):
            names += message_names(file.package, file.message_type)
    names += ["envoy.config.core.v3.SocketAddress", "envoy.config.core.v3.ConfigSource"]
    filler = Filler()
    for name in sorted(names):
        descriptor = POOL.FindMessageTypeByName(name)
        fields = [field.name for field in descriptor.fields]
        for message in filler.samples(descriptor):
            encoded = message.SerializeToString(deterministic=True).hex()
            yield {"message": name, "fields": fields, "set": set_fields(message), "bytes": encoded}


def parse(name, encoded):
    message = new(POOL.FindMessageTypeByName(name))
    message.ParseFromString(bytes.fromhex(encoded))
    return message


def compare(lines):
    failures = 0
    for line in lines:
        sent, returned = parse(line["message"], line["sent"]), parse(line["message"], line["returned"])
        if sent != returned:
            failures += 1
            print(f"--- {line['message']}: sent\n{sent}\n--- returned\n{returned}")
    if failures:
        sys.exit(f"{failures} messages came back different")


def decode(lines):
    for line in lines:
        message = parse(line["message"], line["bytes"])
        value = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=POOL)
        yield {"message": line["message"], "set": set_fields(message), "value": value}


def facts(message):
    """What matters on the wire and in JSON of a DescriptorProto, without comments and options."""
    oneofs = [oneof.name for oneof in message.oneof_decl]
    fields = {
        (field.name, field.number, field.type, field.label, field.type_name, field.proto3_optional,
         oneofs[field.oneof_index] if field.HasField("oneof_index") else None)
        for field in message.field
    }
    enums = {(enum.name, value.name, value.number) for enum in message.enum_type for value in enum.value}
    return fields | enums


def definitions(ours, stubs_dir):
    """Differences between Envoy's messages and ours; a stand-in only has to be a part of Envoy's."""
    for file in ours.values():
        # Cilium's and our own are not Envoy's.
        if file.package == "cilium" or file.package.startswith("tollgate."):
            continue
        stand_in = (pathlib.Path(stubs_dir) / file.name).exists()
        pending = [(f"{file.package}.{message.name}", message) for message in file.message_type]
        while pending:
            name, message = pending.pop()
            pending += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]
            envoys = descriptor_pb2.DescriptorProto()
            POOL.FindMessageTypeByName(name).CopyToProto(envoys)
            wrong = facts(message) - facts(envoys)
            missing = set() if stand_in else facts(envoys) - facts(message)
            yield {"message": name, "wrong": sorted(map(str, wrong)), "missing": sorted(map(str, missing))}


def main():
    command, proto_dir, stubs_dir = sys.argv[1:]
    ours = compile_ours(proto_dir, stubs_dir)
    load(ours)
    incoming = (json.loads(line) for line in sys.stdin)
    outgoing = {
        "samples": lambda: samples(ours),
        "compare": lambda: compare(incoming) or (),
        "decode": lambda: decode(incoming),
        "definitions": lambda: definitions(ours, stubs_dir),
    }[command]()
    for line in outgoing:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
