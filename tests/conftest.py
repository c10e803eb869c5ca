"""Fixtures that several files share; the longest tests first: the suite runs in several processes, and the last to
start should not be the longest; each failure when it happens: whoever cuts a run off has seen it."""

import fcntl
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from leap_rl.backends import prepare_environment
from leap_rl.cli import main
from leap_rl.config_files import load_config
from tests.cli_helpers import cli, write_config
from tests.helpers import MINIMAL, another_process
from tests.results import Result, read_result

LONGEST_FIRST = (
    "test_faults", "test_docker", "test_hosts", "test_clusters",  # one for each of four processes,
    "test_tasks", "test_leap", "test_config", "test_config_keys",  # which is given a second file from the start
    "test_rllib", "test_mutation", "test_installations", "test_soak", "test_system", "test_storage",
    "test_evaluate_system", "test_continual", "test_own_process", "test_rllib_learner", "test_classification_system",
    "test_launch", "test_quorum", "test_heads_system", "test_trackers",
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


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The serial run of ``cli_helpers.TINY``, which all others must equal. Whichever of the test processes asks first
    trains it; it is not to be changed."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    folder = folder / "tiny run"
    folder.mkdir(exist_ok=True)
    said = folder / "stdout"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            done = cli("train", write_config(folder), "--json")
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout)
    return read_result(folder, said.read_text())


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
