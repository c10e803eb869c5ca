"""What an update frees is there for the next one. In processes of their own: it cannot be undone."""

import platform
import subprocess
import sys

import pytest

UPDATES = """
import resource
from leap_rl.processes import initial_parameters, start_process
from leap_rl.types import Task
from tests.{module} import tiny_config

config = tiny_config({arguments})
process = start_process(config, Task(0, 0, "{task}", seed=0), initial_parameters(config, 0))
for _ in range(5):
    process.update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    process.update()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""
CASES = {
    "a2c": UPDATES.format(module="helpers", task="pong", arguments="**{'agent.num_envs': 16}"),
    "classification": UPDATES.format(
        module="alphabets", task="hebrew", arguments="'glyphs', **{'classifier.filters': 64, 'task.agent_steps': 25}"
    ),
}
WITHOUT_GLIBC = """
import ctypes
ctypes.CDLL = lambda name: object()
from leap_rl.processes.memory import keep_freed_memory
keep_freed_memory()
"""


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what is freed")
@pytest.mark.parametrize("process", CASES)
def test_an_update_takes_no_fresh_pages_from_the_kernel(process: str) -> None:
    assert float(run(CASES[process])) < 20, "hundreds to thousands where freed memory is given back"


def test_without_glibc_nothing_happens() -> None:
    run(WITHOUT_GLIBC)
