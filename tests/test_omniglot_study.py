"""The study on Omniglot: what its arms are, and what its report keeps."""

import csv
import json
from argparse import Namespace

import pytest

from leap_rl.config_files import load_config
from studies.omniglot_study import ARMS, CONFIG, KEYS, QUESTIONS, RESULT, keys_of, report

STEPS = {"maml": 5, "fomaml_5": 5, "joint": 500, "maml_batch": 5, "maml_adam": 5, "maml_20": 20}
RATES = {"joint": 1.0, "maml_adam": 0.003}


@pytest.mark.parametrize("arm", ARMS | QUESTIONS)
def test_an_arm_is_a_configuration_at_the_authors_rates(arm):
    options = Namespace(source="somewhere.zip", overrides=["classifier.filters=8"])
    config = load_config(CONFIG, keys_of(arm, 10, 3, options))
    assert config.num_updates == STEPS.get(arm, 100)
    assert (config.run.seed, config.alphabets.split, config.alphabets.train) == (3, 3, 10)
    assert config.classifier.filters == 8
    assert config.meta.lr == RATES.get(arm, 0.5 if "maml" in arm else 0.1)
    assert config.meta.batch_size * config.alphabets.per_task == (1 if arm == "none" else 5)
    assert load_config(CONFIG, keys_of(f"{arm}@0.3", 10, 3, options)).meta.lr == 0.3


def finish(out, arm, seed, scores, lr=0.1, validation=False):
    """Writes what a run of an arm and its evaluation leave: two alphabets with the scores of each of its arms."""
    folder = out / f"seed{seed}" / f"{arm}-25"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "run").mkdir()
    entries = [
        {"arm": name, "game": alphabet, "area": {"value": value / 2}, "final": {"value": value}}
        for name, values in scores.items()
        for alphabet, value in zip(("Greek", "Korean"), values, strict=True)
    ]
    (folder / RESULT).write_text(json.dumps({"results": entries}))
    (folder / KEYS).write_text(json.dumps([f"meta.lr={lr}", "alphabets.source=/here", validation]))
    rows = [f"{e['arm']},{e['game']},{step},{step / 10}" for e in entries for step in (2, 4)]
    rows += [f"{e['arm']},{e['game']},4," for e in entries]  # the held-out drawings' row
    (folder / "evaluation" / "curves.csv").write_text("\n".join(["arm,game,agent_steps,accuracy", *rows]))
    lines = [
        {"kind": "task", "meta_step": step, "accuracy": step + slot, "path_length": 1}
        for step in (0, 1)
        for slot in (0, 1)
    ]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"kind": "meta_step"}])))
    (folder / "run" / "initialization.safetensors").write_text(arm)


def rows_of(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_report_keeps_every_alphabet_and_adds_to_what_was_kept_before(tmp_path, capsys):
    results = tmp_path / "results"
    options = Namespace(out=str(tmp_path / "first"), results=str(results))
    finish(tmp_path / "first", "none", 0, {"random": (0.1, 0.3), "run": (0.2, 0.2)})
    finish(tmp_path / "first", "leap", 0, {"random": (0.1, 0.3), "run": (0.4, 0.6)})
    report(options)
    table = capsys.readouterr().out
    assert "| random | 25 | 0.100 [" in table  # one seed: the interval is over alphabets
    assert "| -0.300 [-0.300, -0.300] | – | 1 |" in table  # 0.1 − 0.4 and 0.3 − 0.6
    assert len(rows_of(results / "scores.csv")) == 6

    options.out = str(tmp_path / "later")  # other runs: those of before are not at hand
    finish(tmp_path / "later", "leap", 0, {"run": (0.5, 0.5)})
    finish(tmp_path / "later", "leap", 1, {"run": (0.7, 0.9)})
    report(options)
    leap = [row for row in rows_of(results / "scores.csv") if row["arm"] == "leap"]
    assert [(row["seed"], row["alphabet"], row["held_out_accuracy"]) for row in leap] == [
        ("0", "Greek", "0.5"), ("0", "Korean", "0.5"), ("1", "Greek", "0.7"), ("1", "Korean", "0.9"),
    ]  # fmt: skip
    assert "| leap | 25 | 0.325 [" in capsys.readouterr().out
    curve = [row for row in rows_of(results / "curves.csv") if (row["arm"], row["seed"]) == ("leap", "1")]
    assert [(row["gradient_steps"], row["accuracy"]) for row in curve] == [("2", "0.2"), ("4", "0.4")]
    training = [row for row in rows_of(results / "training.csv") if row["seed"] == "1"]
    assert [(row["meta_step"], row["accuracy"]) for row in training] == [("1", "0.5"), ("2", "1.5")]
    assert (results / "leap-25-seed1.safetensors").read_text() == "leap"
    assert not list(results.glob("none*.safetensors"))
    assert (results / "learning_curves.png").stat().st_size > 1000


@pytest.mark.parametrize("other", [{"lr": 9}, {"validation": True}])
def test_results_of_other_keys_do_not_replace_what_was_kept(tmp_path, other):
    results = tmp_path / "results"
    finish(tmp_path / "first", "leap", 0, {"run": (0.4, 0.6)})
    report(Namespace(out=str(tmp_path / "first"), results=str(results)))
    before = {file.name: file.read_bytes() for file in results.iterdir()}
    finish(tmp_path / "later", "leap", 0, {"run": (0.9, 0.9)}, **other)
    with pytest.raises(SystemExit, match="has results of other keys than seed0/leap-25's"):
        report(Namespace(out=str(tmp_path / "later"), results=str(results)))
    assert {file.name: file.read_bytes() for file in results.iterdir()} == before


def test_a_difference_that_has_fewer_seeds_than_its_row_says_so(tmp_path, capsys):
    finish(tmp_path / "out", "leap", 0, {"run": (0.4, 0.6)})
    for seed in (0, 1):
        finish(tmp_path / "out", "reptile", seed, {"run": (0.3, 0.3)})
    report(Namespace(out=str(tmp_path / "out"), results=str(tmp_path / "results")))
    assert ", 1 of the seeds | 0.708 | 2 |" in capsys.readouterr().out
