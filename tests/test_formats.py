"""A run of an earlier format is refused in one line, and left as it is."""

import pytest
import torch

from leap_rl.files.tensor_files import dump_tensors
from leap_rl.runs.formats import FORMAT_VERSION, check_format
from leap_rl.runs.run import RunDirectory, open_run
from leap_rl.types import BadInputError
from tests.cli_helpers import make_config, make_run

TENSORS = {"x": torch.zeros(2)}


@pytest.mark.parametrize("file", ["checkpoints/000002/learner.safetensors", "tasks/000002-00/000003.safetensors"])
def test_a_run_of_an_earlier_format_is_refused_and_left_as_it_is(tmp_path, file):
    path = make_run(tmp_path, last=2) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dump_tensors(TENSORS, {"ledger": "{}"}))
    before = {found: found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()}
    with pytest.raises(BadInputError, match=rf"^\S+{file}: is of format 1, which leap-rl 0\.1 reads;[^\n]*$"):
        RunDirectory.open(make_config(tmp_path))
    assert {found: found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()} == before


def test_a_run_of_this_format_and_damaged_files_are_no_reason_to_refuse(tmp_path):
    folder = make_run(tmp_path, last=2) / "tasks" / "000002-00"
    folder.mkdir(parents=True)
    (folder / "000003.safetensors").write_bytes(b"half")
    with open_run(make_config(tmp_path)) as run:
        assert run.latest()[1].meta_step == 2


def test_a_later_format_is_refused():
    check_format(FORMAT_VERSION, "here")
    with pytest.raises(BadInputError, match="here: is of format 9, which a later leap-rl reads"):
        check_format({"format_version": "9"}, "here")
