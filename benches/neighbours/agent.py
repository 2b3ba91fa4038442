"""An agent that sends a policy again at once when it is refused: the control plane of the tests, in their Python."""

import json
import os
import pathlib
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = "TOLLGATE_NEIGHBOURS_PYTHON"


def find_python():
    """Makes the tests' environment, which needs the network; called before there is none."""
    made = subprocess.run([ROOT / "tests" / "python" / "venv"], capture_output=True, text=True, check=False)
    os.environ[PYTHON] = made.stdout.strip() if made.returncode == 0 else ""


class Agent:
    """A running control plane, and how often it was refused."""

    def __init__(self, socket):
        proto = (ROOT / "proto").resolve()
        command = [os.environ[PYTHON], ROOT / "tests" / "python" / "control_plane.py", proto / "proto", proto / "stubs"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version, self.refusals, self.resources = 0, 0, []
        self.resend = False
        self.listening = threading.Event()
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()
        self.tell(do="listen", address=f"unix:{socket}")
        if not self.listening.wait(30):
            sys.exit("error: the control plane of the tests does not listen after 30 s; it says above why, or make its Python anew: tests/python/venv")

    def tell(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def send(self, texts):
        """Sends these policies as the state of the node."""
        self.resources = [json.loads(text) for text in texts]
        for resource in self.resources:
            del resource["@type"]  # It is in the envelope here.
        self.version += 1
        self.tell(do="set", version=str(self.version), resources=self.resources)

    def listen(self):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "listening":
                self.listening.set()
            elif event["event"] == "nack":
                self.refusals += 1
                if self.resend:
                    self.version += 1
                    self.tell(do="set", version=str(self.version), resources=self.resources)

    def stop(self):
        self.process.terminate()
        self.process.wait()

