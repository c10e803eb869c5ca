"""leap_rl without its extras: what works all the same, and the line that says which extra is missing."""

import configparser
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from leap_rl.extras import MODULES
from leap_rl.runs.inspection import describe
from tests.cli_helpers import assert_one_line, environment, make_run, write_config

ROOT = Path(__file__).parents[1]
# Modules, by how their names begin, that may need an extra as they are imported. All others must not.
NEED = {
    "leap_rl.atari.emulators": "atari",
    "leap_rl.atari.screens": "atari",
    "leap_rl.atari.vector": "atari",
    "leap_rl.processes.a2c.process": "atari",
    "leap_rl.processes.a2c.watch": "atari",
    "leap_rl.processes.gymnasium.envs": "gymnasium",
    "leap_rl.processes.gymnasium.networks": "gymnasium",
    "leap_rl.processes.gymnasium.physics": "gymnasium",
    "leap_rl.processes.gymnasium.process": "gymnasium",
    "leap_rl.backends.actors": "ray",
    "leap_rl.backends.cluster": "ray",
    "leap_rl.backends.learner_handle": "ray",
    "leap_rl.backends.nodes": "ray",
    "leap_rl.backends.ray": "ray",
    "leap_rl.backends.work": "ray",
    "leap_rl.rllib": "rllib",
    "leap_rl.processes.rllib.": "rllib",
    "leap_rl.processes.classification.": "vision",
    "leap_rl.evaluation.clip": "report",
    "leap_rl.evaluation.figures": "report",
    "leap_rl.evaluation.tensorboard": "report",
    "leap_rl.files.event_files": "report",
    "leap_rl.runs.figures": "report",
    "leap_rl.runs.status_page": "report",
    "leap_rl.export.onnx_model": "onnx",
    "leap_rl.export.sb3_features": "none of ours",
}
SCRIPT = """
import importlib, pkgutil, sys
blocked, unable, commands = eval(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))  # importing one raises ModuleNotFoundError
import leap_rl
names = {info.name for info in pkgutil.walk_packages(leap_rl.__path__, "leap_rl.", onerror=lambda name: None)}
assert "leap_rl.training" in names
for name in names:
    if not name.startswith(unable) or name == "leap_rl.rllib_encoder":
        importlib.import_module(name)
from leap_rl.cli import main
for command in commands:
    try:
        assert main(command) == 0, command
    except SystemExit as ending:
        assert ending.code == 0, command
"""


def run_without(extras, commands, folder):
    """Imports all modules that do not need the extras, and runs commands, in a process in which they cannot be
    imported."""
    kept = {module for extra, modules in MODULES.items() if extra not in extras for module in modules}
    blocked = {module for extra in extras for module in MODULES[extra]} - kept
    unable = tuple(name for name, extra in NEED.items() if extra in {*extras, "none of ours"})
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, repr((blocked, unable, commands))], capture_output=True, text=True, timeout=600,
        cwd=folder, env=environment() | {"PYTHONPATH": f"{ROOT}:{ROOT}/docs/examples"},
    )  # fmt: skip


@pytest.mark.slow
def test_leap_rl_alone_trains_a_process_of_ones_own_and_lists_everything(tmp_path):
    tree = yaml.safe_load((ROOT / "docs/examples/sinusoids.yaml").read_text()) | {"backend": "serial"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    train = ["train", "own.yaml", "meta.steps=1", "task.agent_steps=20"]
    commands = [train, ["show", "runs/sinusoids", "process=sinusoids:PROCESS"], ["presets"], ["games", "--variants"],
                ["train", "--keys"], ["resolve", "atari"]]  # fmt: skip
    done = run_without(MODULES, commands, tmp_path)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "tensorboard" in line]
    assert "tensorboard: tensorboard is not installed; pip install 'leap-rl[report]'; left out from here on" in line


@pytest.mark.slow
def test_with_games_alone_a_run_trains_without_ray(tmp_path):
    command = ["train", str(write_config(tmp_path)), "meta.steps=1"]
    done = run_without(MODULES.keys() - {"atari"}, [command], tmp_path)
    assert done.returncode == 0, done.stderr
    assert describe(tmp_path / "run")["finished"]


@pytest.mark.parametrize(
    ("extra", "missing", "command", "what"),
    [
        ("atari", "ale_py", ["train", "quickstart"], "process = a2c"),
        ("ray", "ray", ["train", "quickstart"], "backend = ray (backend=serial trains without it)"),
        ("rllib", "tree", ["train", "quickstart", "process=rllib", "rllib.algorithm=A2C"], "process = rllib"),
        ("gymnasium", "gymnasium", ["train", "physics"], "process = gymnasium"),
        ("vision", "cv2", ["train", "glyphs_quickstart"], "process = classification"),
        ("ray", "pyarrow", ["train", "quickstart", "backend=serial", "run.dir=s3://bucket/run"],
         "run.dir = s3://bucket/run"),
        ("report", "scipy", ["evaluate", "RUN"], "the report of an evaluation"),
        ("report", "tensorboard", ["report", "RUN"], "a report"),
        ("atari", "ale_py", ["export", "RUN", "--to", "torch"], "--to torch"),
        ("rllib", "gymnasium", ["export", "RUN", "--to", "rllib"], "--to rllib"),
        ("onnx", "onnxruntime", ["export", "RUN", "--to", "onnx"], "--to onnx"),
    ],
)  # fmt: skip
def test_a_command_without_its_extra_names_it_in_one_line(
    tmp_path, monkeypatch, run_main, extra, missing, command, what
):
    run = make_run(tmp_path) if "RUN" in command else None
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setitem(sys.modules, missing, None)
    line = f"error: {what}: {missing} is not installed; pip install 'leap-rl[{extra}]'"
    assert_one_line(*run_main(*[str(run) if part == "RUN" else part for part in command]), line)
    assert list((tmp_path / "here").iterdir()) == []


def test_an_extra_that_only_an_import_misses_is_named_too(monkeypatch, run_main):
    monkeypatch.setattr("leap_rl.commands.games", lambda _: (_ for _ in ()).throw(ModuleNotFoundError(name="cv2.gapi")))
    assert_one_line(*run_main("games"), "error: cv2 is not installed", "'leap-rl[atari]'")


def test_setup_cfg_has_the_modules_of_every_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: text.lower().replace("_", "-") for name, text in setup["options.extras_require"].items()}
    providers = packages_distributions()
    assert extras.keys() - MODULES == {"all", "dev"}
    for extra, modules in MODULES.items():
        for module in modules:
            through_ray = extra == "rllib" and module in ("pandas", "scipy", "tree")  # ray[rllib] brings them
            assert through_ray or any(
                f"\n{name.lower().replace('_', '-')}" in extras[extra] for name in providers[module]
            ), module
