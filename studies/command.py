"""Runs ``leap-rl`` as the studies do: each command in a process of its own."""

import subprocess
import sys


def leap_rl(*arguments: str) -> str:
    """Runs ``leap-rl`` and returns what it prints. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "leap_rl.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
