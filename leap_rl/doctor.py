"""Looks for what would stop or slow a run on this machine, before it starts (``leap-rl doctor``)."""

import os
import resource
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from leap_rl.backends import try_cluster
from leap_rl.config import Config
from leap_rl.extras import MODULES
from leap_rl.processes import resolve
from leap_rl.runs.admission import check_directory
from leap_rl.types import BadInputError, LeapRLError

GIGABYTE = 1 << 30
SHARED_MEMORY, FREE_DISK, OPEN_FILES = GIGABYTE // 2, GIGABYTE, 4096  # the least that is no problem
WORKER_MEMORY = GIGABYTE // 2  # of a worker's libraries (docs/performance.md)
CGROUP_MEMORY = (  # limit and use of the group of processes, in both versions of the kernel's interface
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class Finding(NamedTuple):
    """Says one thing about this machine, and what to do about it if it is a problem."""

    is_problem: bool
    text: str


def examine(config: Config, root: Path = Path("/")) -> Iterator[Finding]:
    """Yields what there is to say of this machine, and of training ``config`` on it. The kernel's files are below
    ``root``."""
    yield from packages()
    yield from lock(Path(__file__).parent.parent / "requirements.lock")
    yield from games()
    yield from needs(config)
    yield from cores(root, config)
    yield from memory(root, config)
    yield from speed(root)
    yield from limits()
    yield from disk(config)
    if config.backend == "ray" and find_spec("ray") is not None:
        yield from shared_memory(root / "dev/shm")
        yield from cluster_answers(config)


def packages() -> Iterator[Finding]:
    """Says which extras are installed, and how to install the others."""
    missing = [extra for extra, modules in MODULES.items() if not all(map(find_spec, modules))]
    yield Finding(False, f"extras: {', '.join(extra for extra in MODULES if extra not in missing) or 'none'}")
    if missing:
        yield Finding(False, f"not installed, if you need it: pip install 'leap-rl[{','.join(missing)}]'")


def lock(file: Path) -> Iterator[Finding]:
    """Compares what is installed with the versions that leap_rl is tested with, where they are beside it."""
    if not file.is_file():
        return
    wanted = dict(
        line.split()[0].split("==") for line in file.read_text().splitlines() if "==" in line and line[0] != "#"
    )
    other = []
    for name, pinned in wanted.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed
        if found.partition("+")[0] != pinned.partition("+")[0]:  # either build of torch
            other.append(f"{name} {found} (tested: {pinned})")
    if other:
        yield Finding(True, f"not the versions of requirements.lock: {', '.join(other)}: install from the lock")
    else:
        yield Finding(False, "versions are those of requirements.lock")


def games() -> Iterator[Finding]:
    """Loads a game."""
    if find_spec("ale_py") is None:
        return
    from leap_rl.atari.emulators import give_back, take
    from leap_rl.atari.games import parse_game

    try:
        pong = parse_game("pong")
        give_back(pong, take(pong, 1))
    except Exception as error:  # whatever ALE raises
        yield Finding(True, f"Pong cannot be loaded: {error}: install ale-py again, which has the games")
        return
    yield Finding(False, "games can be loaded")


def needs(config: Config) -> Iterator[Finding]:
    """Looks for what the configuration asks for: the device, if workers are on this machine, and data."""
    try:
        resolve(config)
    except LeapRLError as error:
        yield Finding(True, str(error))
    else:
        yield Finding(False, f"device = {config.device}, and the data that process = {config.process} needs")


def cores(root: Path, config: Config) -> Iterator[Finding]:
    """Compares the cores that may be used with those that the workers of a cluster of our own want."""
    allowed = float(len(os.sched_getaffinity(0)))
    for quota in (_quota(root / "sys/fs/cgroup/cpu.max"), _quota_v1(root / "sys/fs/cgroup/cpu")):
        allowed = min(allowed, quota or allowed)
    wanted = _local_workers(config) * config.workers.cpus
    if wanted > allowed:
        fitting = max(1, int(allowed // config.workers.cpus))
        yield Finding(
            True,
            f"workers.count × workers.cpus = {wanted}, and {allowed:g} cores may be used: set workers.count={fitting}",
        )
    else:
        yield Finding(False, f"{allowed:g} cores may be used")


def memory(root: Path, config: Config) -> Iterator[Finding]:
    """Compares the memory that is left with what the workers on this machine take."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    available = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}["MemAvailable"]
    for limit, used in CGROUP_MEMORY:
        most, taken = (_number(root / "sys/fs/cgroup" / name) for name in (limit, used))
        if most is not None:
            available = min(available, most - (taken or 0))
    workers = _local_workers(config)
    needed = workers * (WORKER_MEMORY + config.memory()[0])
    text = f"{available / GIGABYTE:,.1f} GiB of memory are left"
    if needed > available:
        yield Finding(True, f"{text}, and {workers} workers take {needed / GIGABYTE:,.1f}: set a lower workers.count")
    else:
        yield Finding(False, text)


def speed(root: Path) -> Iterator[Finding]:
    """Says what the processor and the kernel have that makes training faster."""
    flags = set()
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
    found = [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags]
    yield Finding(False, f"vector instructions: {', '.join(found) or 'none that are known'}")
    pages = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if pages.is_file() and "[never]" in pages.read_text():
        yield Finding(True, f"huge pages are off, which costs about a tenth of the speed: echo madvise > {pages}")


def limits() -> Iterator[Finding]:
    """Looks at how many files may be open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        yield Finding(True, f"only {hard} files may be open, and Ray needs {OPEN_FILES}: raise the limit (ulimit -Hn)")


def disk(config: Config) -> Iterator[Finding]:
    """Looks at where the run directory is to be."""
    if "://" in config.run.dir:
        return
    folder = Path(config.run.dir).absolute()
    try:
        check_directory(folder)
    except BadInputError as error:
        yield Finding(True, str(error))
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < FREE_DISK:
        yield Finding(True, f"run.dir = {config.run.dir}: {free / GIGABYTE:.1f} GiB are free: make room")
    else:
        yield Finding(False, f"run.dir = {config.run.dir}: {free / GIGABYTE:,.0f} GiB are free")


def shared_memory(folder: Path) -> Iterator[Finding]:
    """Looks at /dev/shm, where Ray keeps what its processes share."""
    size = shutil.disk_usage(folder).total if folder.is_dir() else 0
    if size < SHARED_MEMORY:
        yield Finding(
            True, f"{folder} has {size >> 20} MiB, and Ray would use the disk instead: docker run --shm-size=1g"
        )
    else:
        yield Finding(False, f"{folder} has {size / GIGABYTE:,.1f} GiB")


def cluster_answers(config: Config) -> Iterator[Finding]:
    """Joins the cluster of ``ray.address``, or starts one, as a run would, and leaves it again."""
    try:
        try_cluster(config)
    except LeapRLError as error:
        yield Finding(True, str(error))
    else:
        yield Finding(False, f"ray.address = {config.ray.address}: Ray answers, and has room for a worker")


def _local_workers(config: Config) -> int:
    """Returns how many workers will run on this machine, as far as the configuration says so."""
    if config.backend == "serial":
        return 1
    return config.workers.per_node or (config.workers.count if config.ray.address == "local" else 1)


def _number(file: Path) -> int | None:
    """Returns the number in a file of the kernel's; None where there is no such file, or no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _quota(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max 100000"
        return None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_number(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return quota / period if quota and period and quota > 0 else None
