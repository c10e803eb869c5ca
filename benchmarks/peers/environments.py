"""Makes virtual environments in .venv-peers for the libraries that requirements.lock does not have."""

import subprocess
import sys
import venv
from pathlib import Path

ENVIRONMENTS = Path(".venv-peers")
SB3 = ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium[atari]==1.2.2", "ale-py==0.12.1",
       "opencv-python-headless==5.0.0.93")  # fmt: skip
ENVPOOL = ("envpool==1.2.5", "torch==2.13.0")
# Sample Factory needs gymnasium below 1.0, in which newer versions of ale-py do not register their games.
SAMPLE_FACTORY = ("sample-factory==2.1.1", "torch==2.13.0", "ale-py==0.9.1")


def make_environment(name: str, requirements: tuple[str, ...]) -> Path:
    """Returns the Python interpreter of an environment, which is made if it does not exist."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        print(f"making {python.parent.parent}", file=sys.stderr)
        venv.create(ENVIRONMENTS / name, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python
