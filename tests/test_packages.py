"""What is built for people who do not clone: an sdist, and a wheel from it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_sdist_has_what_the_wheel_is_built_from_and_the_wheel_has_presets_and_data(tmp_path):
    source, dist = tmp_path / "source", tmp_path / "dist"
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, listed):  # building leaves files behind
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            copy.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            shutil.copyfile(ROOT / name, copy)
    subprocess.run([sys.executable, "-m", "build", "-q", "--no-isolation", "-o", dist, source], check=True)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    ours = {name for name in listed if name.startswith("leap_rl/") and not (ROOT / name).is_symlink()}
    ours |= {f"leap_rl/{name}" for name in listed if name.startswith("configs/")}
    assert len(ours) > 100
    assert {name for name in in_wheel if name.startswith("leap_rl/")} == ours
    assert ours | {"CHANGELOG.md", "CITATION.cff", "LICENSE"} <= in_sdist
    assert not [name for name in in_sdist if name.startswith("tests")], "a part of them would be no use"
    subprocess.run([sys.executable, "-m", "check_wheel_contents", wheel], check=True)
