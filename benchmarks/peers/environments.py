"""Environments of the peers that our lock does not have, in .venv-peers."""

import subprocess
import sys
import venv
from pathlib import Path

ENVIRONMENTS = Path(".venv-peers")
SB3 = ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium[atari]==1.2.2", "ale-py==0.12.1",
       "opencv-python-headless==5.0.0.93")  # fmt: skip
ENVPOOL = ("envpool==1.2.5", "torch==2.13.0")
# Sample Factory holds gymnasium below 1.0, whose games newer versions of ale-py do not register.
SAMPLE_FACTORY = ("sample-factory==2.1.1", "torch==2.13.0", "ale-py==0.9.1")


def make_environment(name: str, requirements: tuple[str, ...]) -> Path:
    """Its interpreter."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        print(f"making {python.parent.parent}", file=sys.stderr)
        venv.create(ENVIRONMENTS / name, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python
