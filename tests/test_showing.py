"""What only shows a run cannot stop it: pictures, event files and the terminal, whatever environment or names say."""

import io
import json
import os
import re
import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import leap_rl
from leap_rl.backends import open_backend
from leap_rl.evaluation import figures
from leap_rl.evaluation.report import write_report
from leap_rl.files.event_files import EventFile
from leap_rl.files.text import as_text
from leap_rl.runs import figures as runs_figures
from leap_rl.runs import monitoring
from leap_rl.runs.inspection import describe
from leap_rl.runs.monitoring import Monitor
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import read_metrics
from leap_rl.training import meta_train
from tests.cli_helpers import cli, make_config, write_config
from tests.test_evaluation import describe as describe_evaluation
from tests.test_evaluation import simulated
from tests.test_report import write_evaluation

SHORT = {"meta.steps": 2, "meta.batch_size": 2, "task.agent_steps": 40}


def train(folder, stream=None, changes=None, until=None):
    """Trains in this process; returns what was said, and the fingerprint."""
    said = io.StringIO() if stream is None else stream
    config = make_config(folder, SHORT | (changes or {}))
    with open_backend(config) as backend, open_run(config) as run, Monitor(config, run, said) as monitor:
        meta_train(config, backend, run, monitor, until)
    return said, describe(config.run.dir)["fingerprint"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return train(tmp_path_factory.mktemp("expected"))[1]


# Pictures, whatever the environment says


def hostile_environment(folder):
    """Everything from which matplotlib takes orders, two at a time."""
    (folder / "usetex").write_text("text.usetex: True\nbackend: nonsense\nfont.size: 40\n")
    (folder / "latin1").write_bytes("# é\nfont.size: 40\n".encode("latin-1"))
    return [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(folder / "usetex")},
        {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(folder / "latin1")},
    ]


@pytest.mark.slow
def test_figures_are_the_same_bytes_whatever_the_environment_says(tmp_path):
    description = describe_evaluation()
    write_evaluation(tmp_path, description, simulated(description))
    write_report(str(tmp_path))
    names = [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")]
    assert len(names) == 8
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for environment in hostile_environment(tmp_path):
        for name in names:
            (tmp_path / name).unlink()
        done = cli("report", tmp_path, extra=environment)
        assert (done.returncode, done.stderr) == (0, ""), environment
        assert {name: (tmp_path / name).read_bytes() for name in names} == before, environment


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_a_run_trains_on_and_draws_whatever_the_environment_says(tmp_path, expected, number):
    environment = hostile_environment(tmp_path)[number]
    done = cli("train", write_config(tmp_path, SHORT), "--json", extra=environment)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    assert json.loads(done.stdout)["fingerprint"] == expected
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "meta")).Reload()
    assert [image.step for image in events.Images("meta/increment_cosines")] == [1]


def test_figures_follow_no_style_that_is_set_in_this_process():
    import matplotlib as mpl

    entry = {"leap": {"games": ["pong", "qbert"], "matrix": [[1.0, 0.5], [0.5, 1.0]]}}
    before = figures.render(figures.heat_maps(entry))
    with mpl.rc_context({"text.usetex": True, "font.size": 30, "savefig.facecolor": "red"}):
        assert figures.render(figures.heat_maps(entry)) == before
        assert mpl.rcParams["font.size"] == 30, "nor is it changed"


NAMES = ["$USER_$SLURM_JOB_ID", r"\frac{", "a|b", "_mine", "100% <b>*x*", "`ls`", "{0}"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_run_is_shown_as_it_is(tmp_path, name, run_main):
    description = json.loads(json.dumps(describe_evaluation()).replace('"leap"', json.dumps(name)))
    curves = [curve if curve.arm == "random" else curve.__class__(**vars(curve) | {"arm": name})
              for curve in simulated(description)]  # fmt: skip
    write_evaluation(tmp_path, description, curves)
    probes = json.loads((tmp_path / "probes.json").read_text())
    probes = {kind: {name: content["leap"]} for kind, content in probes.items()}
    (tmp_path / "probes.json").write_text(json.dumps(probes))
    code, _, stderr = run_main("report", tmp_path)
    assert (code, stderr) == (0, "")
    lines = (tmp_path / "report.md").read_text().splitlines()
    rows = [line for line in lines if as_text(name) in line and line.startswith("|")]
    assert len(rows) >= 4
    for row in rows:
        until = lines[: lines.index(row) + 2]  # a header's rule is below it
        header = next(line for line in reversed(until) if line.startswith("|--"))
        assert row.replace(r"\|", "").count("|") == header.count("|"), row


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path):
    from leap_rl.evaluation.analysis import analyse

    description = json.loads(json.dumps(describe_evaluation()).replace('"leap"', '"_mine"'))
    curves = [curve if curve.arm == "random" else curve.__class__(**vars(curve) | {"arm": "_mine"})
              for curve in simulated(description)]  # fmt: skip
    analysis = analyse(description, curves)
    for draw in (figures.learning_curves, figures.paths):
        [legend] = draw(analysis).legends
        assert "_mine" in [text.get_text().strip() for text in legend.get_texts()]


def test_a_figure_that_cannot_be_drawn_is_said_and_left_out_of_the_report(tmp_path, run_main, monkeypatch):
    def fails(_):
        raise RuntimeError("no font")

    monkeypatch.setattr(figures, "over_games", fails)
    description = describe_evaluation()
    write_evaluation(tmp_path, description, simulated(description))
    code, _, stderr = run_main("report", tmp_path)
    assert code == 0
    assert stderr == f"{tmp_path}/over_games.png: no font; left out of the report\n"
    text = (tmp_path / "report.md").read_text()
    assert "(learning_curves.png)" in text
    assert "(over_games.png)" not in text
    assert "## Over all games" in text


# Sinks that fail


def test_a_picture_that_fails_is_said_once_and_the_run_goes_on(tmp_path, expected, monkeypatch):
    def fails(_):
        raise RuntimeError("no font")

    monkeypatch.setattr(runs_figures, "heat_maps", fails)
    monkeypatch.setattr(monitoring, "PICTURE_SECONDS", 0)
    said, fingerprint = train(tmp_path)
    assert fingerprint == expected
    assert said.getvalue().count("the heat map: no font; left out from here on, the run continues\n") == 1


def test_a_meta_step_is_committed_before_it_is_drawn(tmp_path, monkeypatch):
    seen = []

    def look(self, outcome):
        seen.append(describe(tmp_path / "run")["meta_step"] == outcome.meta_step + 1)

    monkeypatch.setattr(Monitor, "_draw_cosines", look)
    monkeypatch.setattr(monitoring, "PICTURE_SECONDS", 0)
    train(tmp_path)
    assert seen == [True, True]


@pytest.mark.parametrize(("steps", "until", "drawn"), [(2, None, [1]), (3, 2, [1])])
def test_a_short_session_draws_only_its_last_meta_step(tmp_path, monkeypatch, steps, until, drawn):
    seen = []
    monkeypatch.setattr(Monitor, "_draw_cosines", lambda self, outcome: seen.append(outcome.meta_step))
    train(tmp_path, until=until, changes={"meta.steps": steps})
    assert seen == drawn


def test_event_files_that_cannot_be_made_are_said_once_with_their_path(tmp_path, expected):
    (tmp_path / "run").mkdir()
    config = make_config(tmp_path, SHORT)
    with open_run(config):
        (tmp_path / "run" / "tensorboard").write_text("a file where the folder should be")
    said, fingerprint = train(tmp_path)
    assert fingerprint == expected
    assert said.getvalue().count("left out from here on") == 1
    assert f"{tmp_path}/run/tensorboard" in said.getvalue()


def test_event_files_on_a_disk_that_becomes_full_are_said_once_and_the_rows_are_whole(
    tmp_path, expected, monkeypatch, capfd
):
    open_file = EventFile.__init__

    def open_and_fill(self, *arguments):
        open_file(self, *arguments)
        self._records._writer.close()
        self._records._writer = open("/dev/full", "wb", buffering=0)  # noqa: SIM115, every write to it fails

    monkeypatch.setattr(EventFile, "__init__", open_and_fill)
    said, fingerprint = train(tmp_path)
    assert fingerprint == expected
    assert said.getvalue().count("left out from here on") == 1
    assert f"{tmp_path}/run/tensorboard: [Errno 28] No space left on device" in said.getvalue()
    assert [row["meta_step"] for row in read_metrics(tmp_path / "run") if row["kind"] == "meta_step"] == [0, 1]
    assert capfd.readouterr().err == "", "no thread's traceback"


class Gone(io.StringIO):
    """A terminal that went away: ssh that was cut off."""

    def write(self, text):
        raise OSError(5, "Input/output error")


class GoneTerminal(Gone):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Gone(), GoneTerminal()])
def test_a_terminal_that_is_gone_does_not_stop_the_run(tmp_path, expected, stream):
    assert train(tmp_path, stream)[1] == expected


@pytest.mark.parametrize("name", ["[/b]", "[red]run", ":warning:", "$5", "{run}"])
def test_the_directory_of_a_run_is_said_as_it_is(tmp_path, name):
    said, _ = train(tmp_path, changes={"run.dir": str(tmp_path / name), "meta.steps": 1})
    assert f"{tmp_path}/{name}: a run of 1 meta-steps\n" in said.getvalue()


def test_tensorboard_has_what_there_is_to_read_and_an_order_of_charts(tmp_path):
    train(tmp_path, io.StringIO(), {"meta.steps": 1, "task.agent_steps": 235})
    (folder,) = tmp_path.glob("**/tensorboard/meta")
    events = EventAccumulator(str(folder)).Reload()
    configuration, command, versions = (
        events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in ("configuration", "command", "versions")
    )
    assert "    meta:\n" in configuration
    assert command.startswith("    leap-rl")
    assert f"* leap-rl {leap_rl.__version__}\n" in versions
    (layout,) = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    assert [category.title for category in found.category] == ["Meta-training", "Learning curves of games", "System"]
    names = events.Tags()["scalars"]
    for chart in found.category[0].chart:
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, name) for name in names), f"{chart.title} shows nothing"


def test_an_event_file_is_what_tensorboard_reads(tmp_path):
    png = runs_figures.render_png(runs_figures.heat_maps({"leap": {"games": ["pong"], "matrix": [[1.0]]}}))
    for value, purge_step in ((1.0, None), (2.0, 2)):  # the second file takes back what the first has from step 2 on
        writer = EventFile(tmp_path, purge_step)
        for step in range(4):
            writer.add_scalar("lr", value, step)
        writer.add_png("map", png, 3)
        writer.close()
        os.utime(max(tmp_path.iterdir()), None)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lr")][:2] == [(0, 1.0), (1, 1.0)]
    assert events.Scalars("lr")[-1].value == 2.0
    image = events.Images("map")[-1]
    assert (image.width, image.height) == struct.unpack(">II", png[16:24])
    assert image.encoded_image_string == png


@pytest.mark.parametrize("later", [1000.0, 2000.0, 3000.0])  # behind, the same second, ahead
def test_a_session_follows_the_one_before_whatever_the_clock_says(tmp_path, monkeypatch, later):
    (tmp_path / "events.out.tfevents.note").touch()  # of another program
    for now, pid, purge_step in ((2000.0, 10, None), (later, 9, 2), (later, 8, 3)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        writer = EventFile(tmp_path, purge_step)
        for step in range(purge_step or 0, 4):
            writer.add_scalar("lr", pid, step)
        writer.close()
    monkeypatch.undo()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("lr")] == [(0, 10), (1, 10), (2, 9), (3, 8)]
