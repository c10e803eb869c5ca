"""A cluster of one's own, on this machine alone: all workers that were asked for have room in it."""

import os

import pytest

from leap_rl.backends import cluster
from leap_rl.types import BadInputError
from tests.helpers import tiny_config

CORES = os.cpu_count() or 1


@pytest.mark.parametrize("key", ["workers.count", "workers.per_node"])
def test_it_has_cores_for_all_workers(monkeypatch, key):
    """By either key; where there are fewer cores than workers, these take turns, and none waits for ever."""
    asked = []
    monkeypatch.setattr(cluster, "_start", lambda num_cpus, _: asked.append(num_cpus))
    cluster._connect(tiny_config(**{"backend": "ray", key: CORES + 3, "workers.cpus": 2}))
    cluster._connect(tiny_config(**{"backend": "ray", key: 1}))
    assert asked == [2 * (CORES + 3), CORES]


@pytest.mark.parametrize("key", ["workers.count", "workers.per_node"])
def test_gpus_for_fewer_workers_than_were_asked_for_are_one_line(monkeypatch, key):
    def config(number):
        return tiny_config(**{"backend": "ray", "device": "cuda", key: number, "workers.gpus": 0.5})

    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [node])
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: node["Resources"])
    cluster._check_resources(config(2))
    with pytest.raises(BadInputError, match=rf"^{key} = 3: with .* = 0\.5 needs 1\.5 GPUs; this machine has 1$"):
        cluster._check_resources(config(3))
