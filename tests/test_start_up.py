"""What is imported before a command does something."""

import subprocess
import sys

import pytest

from tests.cli_helpers import environment, make_run, write_config

# Start-up


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], ["ray", "torch", "ale_py"]),
        (["train", "--help"], ["ray", "torch", "ale_py"]),
        (["train", "--keys"], ["ray", "torch"]),
        (["evaluate", "--help"], ["ray", "torch", "ale_py", "matplotlib"]),
        (["games"], ["ray", "torch"]),
        (["show", "RUN"], ["ray"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_quick_command_does_not_wait_for_heavy_imports(tmp_path, arguments, unwanted):
    arguments = [str(make_run(tmp_path)) if argument == "RUN" else argument for argument in arguments]
    script = (
        "import sys\n"
        "from leap_rl.cli import main\n"
        "try:\n"
        f"    code = main({arguments!r})\n"
        "except SystemExit as ending:\n"
        "    code = ending.code\n"
        f"heavy = [name for name in {unwanted!r} if name in sys.modules]\n"
        "print(heavy, file=sys.stderr)\n"
        "raise SystemExit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_training_does_not_wait_for_the_compiler_of_torch(tmp_path):
    """Its import takes as long as torch's own, and the first object of torch.optim causes it."""
    script = (
        "import sys\n"
        "from leap_rl.cli import main\n"
        f"code = main(['train', {str(write_config(tmp_path, {'meta.steps': 1, 'tasks.held_out': []}))!r}])\n"
        "raise SystemExit(code or 'torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=environment()
    )
    assert done.returncode == 0, done.stderr
