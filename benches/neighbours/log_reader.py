"""The other end of the socket to which Tollgate's access log goes: who reads all of it, nothing, or is not there."""

import socket
import subprocess
import sys

import world
from world import LOAD_CORE

READS = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
connection, packet = listener.accept()[0], bytearray(1 << 16)
while connection.recv_into(packet):
    pass
"""


class LogReader:
    """One socket and its reader, whose `manner` is `read`, `stalled` or `gone`."""

    def __init__(self, manner, path):
        self.listener = self.process = None
        if manner == "gone":
            return
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen(1)
        if manner == "read":
            command = [*world.pinned(LOAD_CORE), sys.executable, "-c", READS, str(self.listener.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[self.listener.fileno()])

    def stop(self):
        """To be called after the proxy has ended: a reader ends when nobody can write to it any more."""
        if self.process:
            world.stop(self.process)
        if self.listener:
            self.listener.close()
