"""Text from outside is shown as text: no escape sequence, no markup, no HTML."""

import io
import json
import re

import pytest
import torch

from leap_rl.cli import main
from leap_rl.export.export import export_run
from leap_rl.files.tensor_files import dump_tensors
from leap_rl.files.text import as_text, one_line, printable
from leap_rl.runs.monitoring import Monitor
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import FORMAT, INITIALIZATION, Progress
from leap_rl.types import Checkpoint
from tests.cli_helpers import make_checkpoint, make_config, make_run


@pytest.mark.parametrize("name", ["m[bold]x", "[/]", "[red", "a [link=http://x]b[/link]"])
def test_brackets_in_a_path_are_brackets(tmp_path, capsys, name):
    folder = tmp_path / name.replace("/", "")
    make_run(tmp_path, changes={"run.dir": str(folder), "meta.steps": 2})
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    assert str(folder) in capsys.readouterr().out
    config, stream = make_config(tmp_path, {"run.dir": str(folder), "meta.steps": 2}), io.StringIO()
    with open_run(config) as run, Monitor(config, run, stream) as monitor:
        monitor.start(make_checkpoint(1), Progress(1), [f"{folder}: ignored"])
    assert f"{folder}: ignored" in stream.getvalue()
    assert f"{folder}: resuming" in stream.getvalue()


HOSTILE_NAMES = ["encoder.\x1b]0;title\x07", "a\nb", "x\u202ey", "\x9b31m", "", "n" * 501]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_parameters_name_that_cannot_be_shown_is_refused(tmp_path, capsys, name):
    run = make_run(tmp_path)
    data = dump_tensors({name: torch.ones(2)}, {"format": FORMAT, "meta_step": "2"})
    (run / INITIALIZATION).write_bytes(data)
    assert main(["show", str(run)]) == 2
    shown = capsys.readouterr().err
    assert "not the name of a parameter" in shown
    assert all(character.isprintable() for character in shown[:-1])
    assert main(["evaluate", str(run / INITIALIZATION)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(character.isprintable() for character in error[:-1])


def test_an_error_line_has_no_escape_sequences(capsys):
    assert main(["show", "no\x1b[31msuch"]) == 2
    assert capsys.readouterr().err == "error: no\\x1b[31msuch: not a run directory: does not exist\n"


def test_printable_keeps_what_can_be_shown():
    assert printable("é 語 [x]\n") == "é 語 [x]\n"
    assert printable("\x00\x7f\u202e\ud800") == "\\x00\\x7f\\u202e\\ud800"


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "<img src=x onerror=y>", "a|b", "`<b>`", "[click](http://x)"]
)
def test_a_model_card_takes_no_markup_from_names(tmp_path, name):
    config = make_config(tmp_path)
    with open_run(config) as run:
        run.commit(Checkpoint(1, {name: torch.ones(2)}, {}), Progress(1))
    export_run(config.run.dir, "hub", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    [line] = [line for line in card.splitlines() if line.endswith("| 2 |")]
    assert not re.search(r"(?<!\\)[<|`]", line.removeprefix("| ").removesuffix(" | 2 |"))
    assert "](" not in line
    assert json.loads((tmp_path / "out" / "config.json").read_text())["parameters"] == {name: [2]}


def test_markdown_leaves_plain_names_as_they_are():
    assert as_text("breakout:mode=4 [0.1, 0.2] – space_invaders") == "breakout:mode=4 [0.1, 0.2] – space_invaders"


def test_an_error_is_one_line_with_its_type():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(KeyError()) == "KeyError:"
    assert one_line("a\nb" * 200, 500) == "a b" + "a b" * 165 + "a "
