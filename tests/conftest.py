"""Fixtures that several files share; the longest tests first: the suite runs in several processes, and the last to
start should not be the longest; each failure when it happens: whoever cuts a run off has seen it."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from leap_rl.backends import prepare_environment
from leap_rl.cli import main
from leap_rl.config_files import load_config
from tests.helpers import MINIMAL, another_process

LONGEST_FIRST = (
    "test_faults", "test_system", "test_clusters", "test_hosts",  # one for each of four processes,
    "test_tasks", "test_leap", "test_docker", "test_rllib",  # which is given a second file from the start
    "test_soak",
)  # fmt: skip


@pytest.fixture
def one_torch_thread() -> None:
    """As in the process, so that no test depends on which ran before it."""
    torch.set_num_threads(1)


@pytest.fixture
def run_main(capsys):
    """The command line in this process: arguments → (exit code, stdout, stderr)."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:  # how argparse ends
            code = ending.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    signal.signal(signal.SIGTERM, handler)  # `train` sets its own


@pytest.fixture
def load(tmp_path):
    """load(*overrides, text=…) reads a configuration from a file."""

    def load(*overrides, text=MINIMAL):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return load_config(file, overrides)

    return load


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    with another_process() as pool:
        yield pool


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[None]:
    """One Ray cluster for all tests of a file. RLlib would join any that it finds, as that of another file's test."""
    prepare_environment("local")
    import ray

    from leap_rl.backends.cluster import ensure_ray

    ensure_ray("process = rllib")
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and config.pluginmanager.has_plugin("terminalreporter"):
        config.pluginmanager.register(ShowFailures(config.pluginmanager.getplugin("terminalreporter")))


class ShowFailures:
    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\n{report.nodeid} failed in {report.when} after {report.duration:.0f} s")
            self.terminal.write_line("\n".join(report.longreprtext.splitlines()[-25:]))
