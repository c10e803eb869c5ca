"""The study on Omniglot: what its arms are, and the means that it reports."""

import csv
import json
from argparse import Namespace

import pytest

from leap_rl.config_files import load_config
from studies.omniglot_study import ARMS, CONFIG, RESULT, keys_of, report

STEPS = {"maml": 5, "fomaml": 5, "joint": 500, "none": 100}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_a_configuration_at_the_authors_rates(arm):
    options = Namespace(source="somewhere.zip", overrides=["classifier.filters=8"])
    config = load_config(CONFIG, keys_of(arm, 10, 3, options))
    assert config.num_updates == STEPS.get(arm, 100)
    assert (config.run.seed, config.alphabets.split, config.alphabets.train) == (3, 3, 10)
    assert config.classifier.filters == 8
    assert config.meta.lr == {"maml": 0.5, "fomaml": 0.5, "joint": 1.0}.get(arm, 0.1)
    assert config.meta.batch_size * config.alphabets.per_task == (1 if arm == "none" else 5)
    assert load_config(CONFIG, keys_of(f"{arm}@0.3", 10, 3, options)).meta.lr == 0.3


def test_a_row_is_a_mean_over_alphabets_and_the_random_arm_comes_once_a_seed(tmp_path, capsys):
    for seed in (0, 1):
        for arm in ("none", "leap@0.3"):
            entries = [
                {"arm": name, "area": {"value": area + seed}, "final": {"value": 0.5}}
                for name, area in (("random", 0.1), ("random", 0.3), ("run", 0.2), ("run", 0.6))
            ]
            folder = tmp_path / f"seed{seed}" / f"{arm}-25"
            folder.mkdir(parents=True)
            (folder / RESULT).write_text(json.dumps({"results": entries}))
    report(Namespace(out=str(tmp_path)))
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    found = {(row["arm"], row["seed"]): float(row["area"]) for row in rows}
    assert len(rows) == len(found) == 6
    assert found["random", "1"] == pytest.approx(1.2)
    assert found["leap@0.3", "0"] == pytest.approx(0.4)
    assert "| leap@0.3 | 25 | 0.900 [" in capsys.readouterr().out
