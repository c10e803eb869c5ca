"""The longest tests first: the suite runs in several processes, and the last to start should not be the longest."""

import pytest

LONGEST_FIRST = ("test_docker", "test_clusters", "test_hosts", "test_rllib", "test_faults", "test_soak", "test_system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)
