"""The longest tests first: the suite runs in several processes, and the last to start should not be the longest."""

import pytest
import torch

LONGEST_FIRST = (
    "test_faults", "test_system", "test_clusters", "test_hosts",  # one for each of four processes,
    "test_tasks", "test_leap", "test_docker", "test_rllib",  # which is given a second file from the start
    "test_soak",
)  # fmt: skip


@pytest.fixture
def one_torch_thread() -> None:
    """As in the process, so that no test depends on which ran before it."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)
