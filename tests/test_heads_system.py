"""The whole network, with heads for each ROM and PopArt: the same bits in one process, on Ray, and after a kill."""

import pytest

from leap_rl.runs.run_files import read_initialization
from tests.cli_helpers import held, kill_workers, wait_for, write_config
from tests.results import assert_same_run, in_mid_task, read_result, train

pytestmark = pytest.mark.slow

WHOLE = {
    "meta.parameters": "all", "meta.rule": "leap", "agent.value_scale": "popart", "meta.steps": 2,
    "tasks.games": ["breakout:mode=4", "breakout", "pong", "space_invaders:mode=1"],
}  # fmt: skip


def test_heads_of_each_rom_end_in_the_same_bits_serial_on_ray_and_after_a_kill(tmp_path):
    alone, one, folder = tmp_path / "alone", tmp_path / "one", tmp_path / "two"
    for place in (alone, one, folder):
        place.mkdir()
    serial = train(alone, changes=WHOLE)
    assert_same_run(train(one, "backend=ray", "workers.count=1", changes=WHOLE), serial)
    run, command = folder / "run", ["train", write_config(folder, WHOLE), "backend=ray", "workers.count=2", "--json"]
    with held(folder, *command, meta_step=1, step=7) as (driver, steps):
        wait_for(lambda: in_mid_task(run), driver)
        kill_workers(driver)
        steps.let_go()
        assert driver.wait(timeout=600) == 0, (folder / "stderr").read_text()
    assert_same_run(read_result(folder, (folder / "stdout").read_text()), serial)

    tensors, _ = read_initialization(serial.path / "initialization.safetensors")
    owners = {name.split("/")[1] for name in tensors if name.startswith("heads/")}
    assert owners == {"breakout", "pong", "space_invaders"}  # one pair a ROM: its variants share it
