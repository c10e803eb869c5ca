"""Files that no program of ours wrote: one line and exit code 2, no traceback, no hang, nothing shipped."""

import itertools
import json
import os

import pytest
import torch
from safetensors.torch import save

from leap_rl.cli import main
from leap_rl.evaluation.schemas import Description
from leap_rl.export.export import export_run
from leap_rl.files.schemas import parse_json
from leap_rl.files.storage import LocalStorage, open_storage, read_file
from leap_rl.processes import initial_parameters
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import CONFIG, FORMAT, INITIALIZATION, METRICS, Progress, metrics_of, parse_initialization
from leap_rl.types import BadInputError, Checkpoint, StorageError
from tests.cli_helpers import make_config, make_run

META = {"format": FORMAT, "meta_step": "2"}


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1000
    return captured.err


# Initializations


def header(metadata):
    """A safetensors file without tensors, whose header says what it likes."""
    text = json.dumps({"__metadata__": metadata, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        header(None), header({}), header({"format": FORMAT}), header(META | {"meta_step": "x"}),
        header(META | {"meta_step": "9" * 5000}), header(META | {"meta_step": "-1"}), header(META | {"meta_step": 3}),
        header([]), header("text"), header(META | {"version.torch": "a\x1b[0m"}), b"", b"\xff" * 8, b"\xff" * 100,
        save({"w": torch.ones(2, dtype=torch.bfloat16)}, META), save({"w": torch.ones(2, dtype=torch.int32)}, META),
        save({"w": torch.ones(2).to(torch.float8_e4m3fn)}, META), save({"w": torch.ones(2).double()}, META),
        save({"w": torch.ones(2, dtype=torch.complex64)}, META), save({"w": torch.ones(0, 2**40)}, META),
        save({"w": torch.ones(3, 0)}, META), save({"w": torch.ones(2, dtype=torch.bool)}, META),
    ],
    ids=itertools.count(),  # safetensors writes metadata in any order: the bytes are no names that workers agree on
)  # fmt: skip
def test_an_initialization_that_cannot_be_one_is_one_line(tmp_path, capsys, data):
    with pytest.raises(BadInputError):
        parse_initialization(data, "file")
    run = make_run(tmp_path)
    (run / INITIALIZATION).write_bytes(data)
    assert "Traceback" not in refused(capsys, "export", run, "--to", "torch", "--out", tmp_path / "out")
    refused(capsys, "evaluate", run / INITIALIZATION)
    assert "the same `leap-rl train` command repairs it" in refused(capsys, "show", run)
    assert not (tmp_path / "out").exists()


def commit(folder, tensors):
    config = make_config(folder)
    with open_run(config) as run:
        run.commit(Checkpoint(1, tensors, {}), Progress(1))
    return config.run.dir


@pytest.mark.parametrize("target", ["torch", "hub"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_not_exported(tmp_path, number, target):
    tensors = initial_parameters(make_config(tmp_path), 3)
    tensors["encoder.linear.bias"][7] = number
    run = commit(tmp_path, tensors)
    with pytest.raises(BadInputError, match=r"encoder\.linear\.bias holds numbers that are not finite"):
        export_run(run, target, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("conv1.weight", (64,)), ("conv1.weight", (16, 10**6, 1, 1)), ("linear.weight", (256,)),
     ("linear.weight", (256, 1)), ("linear.weight", (256, 33)), ("linear.weight", (1, 32 * 10**6))],
)  # fmt: skip
def test_an_encoder_of_another_shape_takes_no_memory_and_is_one_line(tmp_path, name, shape):
    tensors = initial_parameters(make_config(tmp_path), 3) | {f"encoder.{name}": torch.zeros(shape)}
    run = commit(tmp_path, tensors)
    with pytest.raises(BadInputError, match=name):
        export_run(run, "torch", str(tmp_path / "out"))


# Other files of a run


@pytest.mark.parametrize(
    "state", [b"1", b"null", b"[]", b"{}", b'{"meta_step": "x"}', b"9" * 5000, b"[" * 10**5, b"\xff"]
)
def test_a_checkpoint_with_another_state_is_passed_over(tmp_path, capsys, state):
    run = make_run(tmp_path, last=1)
    (run / "checkpoints" / "000001" / "state.json").write_bytes(state)
    (run / "checkpoints" / "000001" / "done").write_bytes(b"")
    assert main(["show", str(run)]) == 0
    assert "000001: cannot be read, ignored" in capsys.readouterr().out


def test_rows_that_are_none_are_left_out(tmp_path):
    lines = ['{"kind": "meta_step", "meta_step": 0}', "1", "null", "[]", "{}", '{"kind": "task"}', "9" * 5000,
             '{"kind": "task", "meta_step": "1"}', '{"kind": "elsewhere", "meta_step": 1}', "[" * 10**5,
             '{"kind": "meta_step", "meta_step": -1}', '{"kind": "fault", "meta_step": 0, "game": null}']  # fmt: skip
    (tmp_path / METRICS).write_text("\n".join(lines))
    assert [row["kind"] for row in metrics_of(open_storage(str(tmp_path)))] == ["meta_step", "fault"]


@pytest.mark.parametrize("name", [CONFIG, METRICS, INITIALIZATION])
@pytest.mark.parametrize("kind", ["fifo", "endless", "folder", "huge"])
def test_only_regular_files_of_a_sensible_size_are_read(tmp_path, name, kind):
    file = tmp_path / name
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "endless":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
        case "huge":
            with file.open("wb") as opened:
                opened.truncate(1 << 40)
    with pytest.raises(BadInputError, match=r"is not a regular file|Is a directory|at most [\d,]+ are read"):
        read_file(file)
    with pytest.raises(BadInputError):
        LocalStorage(str(tmp_path)).read(name)


@pytest.mark.parametrize("kind", ["fifo", "endless"])
@pytest.mark.parametrize("command", ["show", "train", "evaluate", "export"])
def test_a_configuration_that_is_no_file_is_one_line(tmp_path, capsys, command, kind):
    run = make_run(tmp_path)
    (run / CONFIG).unlink()
    os.mkfifo(run / CONFIG) if kind == "fifo" else (run / CONFIG).symlink_to("/dev/zero")
    more = {"export": ["--to", "torch"], "train": []}.get(command, [])
    assert "not a regular file" in refused(capsys, command, run / CONFIG if command == "train" else run, *more)


def test_a_file_is_no_link_to_another_file(tmp_path):
    """Others may write where a run directory lies: nothing is written, or removed, through their links."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    (mine / "000000-00").write_text("precious")
    run.mkdir()
    (run / "tasks").symlink_to(mine)
    (run / METRICS).symlink_to(mine / "000000-00")
    storage = LocalStorage(str(run))
    for harm in (
        lambda: storage.remove("tasks/000000-00"),
        lambda: storage.write("tasks/000000-00", b""),
        lambda: storage.append(METRICS, b"row"),
    ):
        with pytest.raises(StorageError):
            harm()
    assert (mine / "000000-00").read_text() == "precious"
    storage.write(METRICS, b"row")  # replaces the link
    assert (mine / "000000-00").read_text() == "precious"
    assert not (run / METRICS).is_symlink()


# Evaluations

ARM = {"name": "random", "source": "s", "fingerprint": "", "meta_steps": None, "trained_on": [], "trained_with": []}
DESCRIPTION = {"format": "leap_rl evaluation", "process": "a2c", "arms": [ARM], "games": ["pong"], "num_seeds": 1}


def test_a_description_is_read():
    assert parse_json(Description, json.dumps(DESCRIPTION), "x").model_dump()["arms"][0]["fresh_heads"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": [1]}, {"arms": []}, {"arms": {"a": 1}}, {"arms": [ARM, ARM]}, {"arms": [ARM | {"name": "run"}]},
        {"arms": [ARM, ARM | {"name": "../../up"}]}, {"arms": [ARM, ARM | {"name": "/etc"}]},
        {"games": [1]}, {"games": ["../x"]}, {"num_seeds": 10**9}, {"num_seeds": "3"}, {"process": "os.system"},
        {"arms": [ARM | {"trained_on": None}]}, {"format": 1}, {"arms": [ARM, ARM | {"name": "a\x1bb"}]},
    ],
)  # fmt: skip
def test_a_description_that_is_none_is_one_line(tmp_path, capsys, changes):
    (tmp_path / "evaluation.json").write_text(json.dumps(DESCRIPTION | changes))
    assert "not the description of an evaluation" in refused(capsys, "report", tmp_path)


HEADER = "arm,game,seed,agent_steps,frames,episodes,episodic_return,path_length,energy,moves,loss_rises"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("curves.csv", ""), ("curves.csv", "a,b\n1,2\n"),
        ("curves.csv", f"{HEADER}\nrandom,pong,0,nan,1,1,1,1,1,1,1\n"),
        ("curves.csv", f"{HEADER}\nrandom,pong,0,inf,1,1,1,1,1,1,1\n"), ("curves.csv", f"{HEADER}\nrandom,pong\n"),
        ("curves.csv", f"{HEADER}\nrandom,pong,{'9' * 5000},1,1,1,1,1,1,1,1\n"), ("curves.csv", "\0"),
        ("curves.csv", f"{HEADER}\nrandom,pong,0,5,1,-1,1,1,1,1,1\n"), ("curves.csv", "x" * 200_000 + ",\n1,2\n"),
        ("curves.csv", f"{HEADER}\nrandom,pong,0,5,1,1,1,1,1,1,1\nrandom,pong,0,4,1,1,1,1,1,1,1\n"),
        ("probes.json", "1"), ("probes.json", '{"cosines": {"run": 1}}'), ("probes.json", "[" * 10**5),
        ("probes.json", '{"cosines": {"run": {"games": ["a"], "matrix": []}}}'), ("probes.json", '{"drift": [1]}'),
    ],
)  # fmt: skip
def test_curves_and_probes_that_are_none_are_one_line(tmp_path, capsys, name, text):
    (tmp_path / "evaluation.json").write_text(json.dumps(DESCRIPTION))
    (tmp_path / "curves.csv").write_text(f"{HEADER}\nrandom,pong,0,5,20,1,1,1,1,1,1\n")
    (tmp_path / name).write_text(text)
    assert name in refused(capsys, "report", tmp_path)
