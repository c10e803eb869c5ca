"""Initializations on a stand-in of the Hugging Face hub, with the real client."""

import json
from importlib.util import find_spec

import pytest

from leap_rl.runs.run_files import fingerprint
from leap_rl.runs.sources import read_source
from tests.cli_helpers import assert_one_line, cli, make_run
from tests.hub_server import hub_server


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    """What huggingface_hub reads when it is imported, so in a process of its own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_good", "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_pushed_is_taken_from_the_hub_at_its_commit(tmp_path, hub, environment):
    run = make_run(tmp_path)
    done = cli("push", run, "me/leap", "--json", extra=environment)
    assert done.returncode == 0, done.stderr
    pushed = json.loads(done.stdout)
    assert pushed["repository"] == "me/leap"
    name = f"hub:me/leap@{pushed['commit']}"
    hub.repositories["me/leap"].append({"model.safetensors": b"changed since", "config.json": b"{}", "x.py": b""})
    shown = cli("diff", name, run, "--json", extra=environment)
    assert shown.returncode == 0, shown.stderr
    first, second = json.loads(shown.stdout)["fingerprints"]
    assert first == second == fingerprint(read_source(str(run)).tensors)
    assert set(hub.downloaded) == {"model.safetensors", "config.json"}, "nothing else is downloaded"
    newest = cli("show", "hub:me/leap", extra=environment)
    assert newest.returncode == 2, "show takes runs alone"
    refused = cli("diff", "hub:me/leap", run, extra=environment)
    assert_one_line(*output(refused), "config.json", "not what `leap-rl export --to hub` writes")


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(tmp_path, hub, environment):
    run = make_run(tmp_path)
    stranger = environment | {"HF_TOKEN": "hf_bad"}
    assert_one_line(*output(cli("push", run, "me/leap", extra=stranger)), "hub:me/leap", "401")
    assert not hub.repositories
    assert_one_line(*output(cli("diff", "hub:me/none", run, extra=environment)), "hub:me/none", "404")
    nobody = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert_one_line(*output(cli("diff", "hub:me/leap", run, extra=nobody)), "hub:me/leap")


def test_names_that_are_none_and_the_extra_that_is_missing(tmp_path, run_main, monkeypatch):
    run = make_run(tmp_path)
    for name in ("hub:", "hub:leap", "hub:me/leap@", "hub:me/le ap", "hub:../x/y"):
        assert_one_line(*run_main("diff", name, run), name, "must be hub:OWNER/NAME")
    assert_one_line(*run_main("push", run, "leap"), "hub:leap", "must be hub:OWNER/NAME")
    monkeypatch.setattr("leap_rl.extras.find_spec", lambda name: None if name == "huggingface_hub" else find_spec(name))
    assert_one_line(*run_main("push", run, "me/leap"), "huggingface_hub is not installed", "leap-rl[hub]")


def output(done):
    return done.returncode, done.stdout, done.stderr
