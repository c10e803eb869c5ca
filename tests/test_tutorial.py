"""The tutorial and the notebook do what they say, on less work; files that are shown are those of docs/examples."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
LESS = {
    "META_STEPS, WAVES, STEPS = 60, 5, 50": "META_STEPS, WAVES, STEPS = 20, 1, 2",
    "steps: 50, batch_size: 10": "steps: 1, batch_size: 2",
    "agent_steps: 100": "agent_steps: 20",
    "UNSEEN, AXIS = 100, range(110, 120)": "UNSEEN, AXIS = 11, range(110, 112)",
    "evaluate runs/sinusoids process": "evaluate runs/sinusoids --games 110 111 --seeds 2 process",
}


def files_of(text):
    """The files that a page has in full: a line with the name, then a block."""
    return dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_files_of_the_tutorial_are_those_of_the_examples():
    files = files_of((DOCS / "tutorial.md").read_text())
    assert files.keys() == {"by_hand.py", "sinusoids.py", "sinusoids.yaml", "square.py"}
    for name in ("sinusoids.py", "sinusoids.yaml"):
        assert files[name] == (DOCS / "examples" / name).read_text()


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(tmp_path):
    text = (DOCS / "tutorial.md").read_text()
    files = files_of(text) | {"draw_paths.py": (DOCS / "examples" / "draw_paths.py").read_text()}
    install, *commands = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name, content in (files | {"commands": "".join(commands)}).items():
        for much, little in LESS.items():
            content = content.replace(much, little)
        (tmp_path / name).write_text(content)
    assert "pip install" in install
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-eu", "commands"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for said in (
        "to meta-step 20: loss after 2 gradient steps",
        "The shared initialization: runs/sinusoids/initialization.safetensors",
        "initialization: mean path length",
        "runs/sinusoids-evaluation/report.md",
        "meta-step 1 of 1, finished",
    ):
        assert said in done.stdout
    assert (tmp_path / "paths.png").stat().st_size > 10_000
    assert "**sinusoids:" in (tmp_path / "runs/sinusoids-evaluation/report.md").read_text()


def test_the_notebook_runs_and_paths_become_shorter(tmp_path):
    notebook = json.loads((DOCS / "leap_in_pictures.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = "\n".join(cells).replace("meta_steps=100", "meta_steps=3").replace("steps=60", "steps=10")
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.findall(r"[0-9.]+(?= at first| after 3 meta-steps)", done.stdout))
    assert last < first / 2
