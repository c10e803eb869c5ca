"""Comparisons with other libraries: what becomes of processes when one dies, and what the learning curves train."""

import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as peers
from leap_rl.processes.rllib.config import RLlibConfig
from studies import learning_curve

DIES_UNLESS_FIRST = """
import os, sys, time

try:
    os.symlink(str(os.getpid()), {first!r})
except FileExistsError:
    sys.exit(3)
time.sleep(600)
"""


def test_a_peer_that_dies_takes_the_others_with_it(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(DIES_UNLESS_FIRST.format(first=str(tmp_path / "first")))
    monkeypatch.setitem(peers.PEERS, "leap_rl", peers.Peer(str(script), processes=2))
    options = Namespace(config="configs/atari.yaml", num_envs=2, unroll=5, warm_up=0, seconds=1)
    with pytest.raises(SystemExit, match="exit code 3"):
        peers.measure("leap_rl", "pong", options)
    assert not Path("/proc", os.readlink(tmp_path / "first")).exists()


def test_the_script_of_stable_baselines3_is_there():
    assert learning_curve.SB3_SCRIPT.is_file()


def test_a_learning_curve_of_rllib(tmp_path, monkeypatch):
    trained = []

    def rows(config, game):
        trained.append((config, game))
        yield dict.fromkeys(learning_curve.COLUMNS, 1.0)

    monkeypatch.setattr(learning_curve, "ours", rows)
    monkeypatch.setattr(sys, "argv", ["learning_curve", "--out", str(tmp_path), "run", "breakout", "--rllib"])
    learning_curve.main()
    [(config, game)] = trained
    assert isinstance(config, RLlibConfig)
    assert (config.rllib.algorithm, game) == ("A2C", "breakout")
    assert (tmp_path / "breakout_rllib_seed0.csv").read_text().split() == [
        "agent_steps,score,episodes,seconds",
        "1.0,1.0,1.0,1.0",
    ]
