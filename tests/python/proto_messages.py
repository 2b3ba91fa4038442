"""Message classes of the project's own `.proto` files, made in memory: nothing is left behind, whenever a test is killed."""

import importlib
import os
import pathlib
import sys

import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc


def classes(proto_dir, stubs_dir, files, names):
    """The class of each message, by its full name. What the files import comes from the environment: Envoy's own modules, not our
    stubs of them."""
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with os.fdopen(os.memfd_create("descriptors"), "rb") as out:
        arguments = ["protoc", f"-I{proto_dir}", f"-I{stubs_dir}", f"-I{well_known}"]
        if protoc.main([*arguments, f"--descriptor_set_out=/proc/self/fd/{out.fileno()}", *files]) != 0:
            sys.exit("protoc refused the .proto files")
        made = descriptor_pb2.FileDescriptorSet.FromString(out.read())
    pool = descriptor_pool.Default()
    own = {file.name for file in made.file}
    for file in made.file:
        for imported in set(file.dependency) - own:
            importlib.import_module(imported.removesuffix(".proto").replace("/", ".") + "_pb2")
        pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}
