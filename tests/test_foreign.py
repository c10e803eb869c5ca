"""A run that came from elsewhere: it does not decide where it runs, whom it joins, or what is read and imported."""

import socket
import threading

import pytest

from leap_rl.cli import main
from leap_rl.config_files import parse_config
from leap_rl.evaluation.plan import make_plan
from leap_rl.export.export import export_run
from leap_rl.processes import initial_parameters
from leap_rl.runs.foreign import of_this_machine
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress
from leap_rl.types import BadInputError, Checkpoint
from tests.cli_helpers import cli, here, make_config
from tests.helpers import tiny_config, tiny_tree

HOSTILE = {
    "backend": "ray",
    "ray.address": "ray://127.0.0.1:1",
    "workers.count": 500,
    "workers.per_node": 64,
    "faults.segment_timeout": 1e6,
    "run.keep_checkpoints": 10**6,
    "log.segments": False,
}


def make_run(folder, changes):
    """A run directory whose file says what its author wrote into it."""
    config = make_config(folder, {"tasks.held_out": ["breakout"]} | changes)
    with open_run(config) as run:
        run.commit(Checkpoint(1, initial_parameters(config, 3), {}), Progress(1))
    return config.run.dir


@pytest.mark.parametrize("key", HOSTILE)
def test_where_and_how_to_run_is_the_readers(tmp_path, key):
    run = make_run(tmp_path, HOSTILE)
    plan = make_plan([run], [], None, 1, None, None)
    section, _, leaf = key.partition(".")

    def value_of(config):
        value = getattr(config, section)
        return getattr(value, leaf) if leaf else value

    default = value_of(tiny_config(backend="ray"))
    assert value_of(plan.config) == default
    if key != "backend":  # it is the default
        assert f"{key} = {HOSTILE[key]}" in plan.ignored[0], "it is shown"


def test_the_readers_own_word_is_taken(tmp_path):
    run = make_run(tmp_path, HOSTILE)
    config = make_plan([run], ["backend=serial", "workers.count=3"], None, 1, None, None).config
    assert (config.backend, config.workers.count, config.ray.address) == ("serial", 3, "local")


def test_what_decides_the_result_is_still_the_runs(tmp_path):
    plan = make_plan([make_run(tmp_path, HOSTILE | {"agent.lr": 3e-4})], [], None, 1, None, None)
    assert plan.config.agent.lr == 3e-4
    assert plan.games == ("breakout",)


@pytest.mark.slow
def test_no_command_connects_where_a_run_says(tmp_path):
    """The token would be sent to whoever listens there, and what comes back unpickled."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                came.append(connection.recv(1000))
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        where = f"ray://127.0.0.1:{server.getsockname()[1]}"
        run = make_run(tmp_path, {"backend": "ray", "ray.address": where})
        out = tmp_path / "evaluation"
        done = cli("evaluate", run, "--seeds", "1", "--agent-steps", "60", "--out", out, timeout=600)
        assert done.returncode == 0, done.stderr
        assert f"ray.address = {where}" in done.stderr
        assert here("report", out).returncode == 0
        assert here("show", run).returncode == 0
        assert here("export", run, "--to", "torch").returncode == 0
    assert came == []


def classification(source):
    tree = tiny_tree()
    tree |= {"process": "classification", "alphabets": {"source": source, "checksum": "0" * 64}}
    return parse_config({key: tree[key] for key in tree if key not in ("tasks", "agent", "env")})


def test_no_wrapper_is_imported_because_a_run_names_it():
    tree = {"process": "gymnasium", "run": {"dir": "runs/test"}, "meta": {"steps": 1, "batch_size": 1, "lr": 0.1},
            "tasks": {"environments": ["CartPole-v1"]}, "task": {"agent_steps": 99}, "agent": {"lr": 0.1}}  # fmt: skip
    for key, theirs in (("modules", "evil"), ("wrappers", "evil:wrapper")):
        config = parse_config(tree | {"env": {key: [theirs]}})
        with pytest.raises(BadInputError, match=rf"env\.{key} = \['{theirs}'\]: names what is on the machine where"):
            of_this_machine(config, [], "there/config.yaml")
        of_this_machine(config, [f"env.{key}=[{theirs}]"], "there/config.yaml")
    plain = parse_config(tree | {"env": {"wrappers": ["gymnasium.wrappers:FlattenObservation"]}})
    assert of_this_machine(plain, [], "there/config.yaml")[0].env == plain.env


def test_no_file_is_read_because_a_run_names_it(tmp_path):
    secret = tmp_path / "of this machine"
    with pytest.raises(BadInputError, match=r"alphabets\.source = .*names what is on the machine where the run"):
        of_this_machine(classification(str(secret)), [], "there/config.yaml")
    mine = [f"alphabets.source={tmp_path}"]
    config, _ = of_this_machine(classification(str(secret)), mine, "there/config.yaml")
    assert config.alphabets.source == str(tmp_path)
    assert of_this_machine(classification("glyphs"), [], "there/config.yaml")[0].alphabets.source == "glyphs"


def test_the_model_card_reads_no_drawings(tmp_path, monkeypatch):
    config = classification("/there/omniglot.zip")
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path / "run")})})
    with open_run(config) as run:
        run.commit(Checkpoint(1, initial_parameters(config, 3), {}), Progress(1))
    export_run(str(tmp_path / "run"), "hub", str(tmp_path / "out"))
    assert "25 alphabets of drawings with SHA-256 000" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["os:Foo-v0", "evil.module:Pong-v1", "./here:X-v3"])
def test_no_module_is_imported_because_a_task_names_it(tmp_path, capsys, name):
    config = make_config(tmp_path)
    tree = config.model_dump() | {"process": "rllib", "precision": "fp32"}
    tree["tasks"] = {"games": [name, "pong", "asterix"], "held_out": []}
    with pytest.raises(BadInputError, match="names a module to import"):
        parse_config(tree)
    assert main(["train", str(tmp_path / "config.yaml"), "process=rllib", f"tasks.held_out=['{name}']"]) == 2
    assert "names a module to import" in capsys.readouterr().err
