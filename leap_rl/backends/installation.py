"""Tells which copy of leap_rl a process imports.

This module must import nothing else of the project: its function is sent to processes that may have another copy, and
must run there whatever that copy lacks.
"""

import hashlib
from importlib import import_module
from pathlib import Path

Installation = tuple[str, str, str]


def installation() -> Installation:
    """Returns the folder of the package, its version, and the SHA-256 of its source files."""
    package = import_module("leap_rl")
    folder = Path(str(package.__file__)).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".py", ".json"):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return str(folder), str(package.__version__), digest.hexdigest()
