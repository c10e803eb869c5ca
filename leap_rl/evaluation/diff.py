"""Compares two evaluations (``leap-rl diff``): keys, versions, arms, and the scores of what both have trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leap_rl.config import flatten
from leap_rl.evaluation.analysis import measures_of
from leap_rl.evaluation.evaluate import read_description
from leap_rl.evaluation.markdown import shown
from leap_rl.evaluation.results import Curve, read_curves
from leap_rl.evaluation.statistics import Estimate, paired_difference
from leap_rl.files.interface import MAX_TEXT, Storage
from leap_rl.files.storage import open_storage
from leap_rl.files.text import printable
from leap_rl.files.yaml_files import parse_yaml
from leap_rl.runs.diff import describe_keys, differing
from leap_rl.runs.run_files import CONFIG, EVALUATION, read_versions
from leap_rl.types import BadInputError

SCORES = {"mean": "area", "final": "final_score"}  # over a whole task, and at its end


def is_evaluation(path: str) -> bool:
    """Returns whether a path names the directory of an evaluation."""
    return ("://" in path or Path(path).is_dir()) and EVALUATION in open_storage(path).names()


def diff_evaluations(a: str, b: str) -> dict[str, Any]:
    """Returns what differs between two evaluations, as `leap-rl diff --json` prints it: for each of ``config``,
    ``versions`` and ``arms`` (their initializations' fingerprints) a mapping of key to both values, and the ``scores``
    of each arm and game that both have, over the seeds that both have finished. Raises BadInputError where one cannot
    be read, or where the two trained different processes."""
    storages = open_storage(a), open_storage(b)
    descriptions = [read_description(storage) for storage in storages]
    measures = [measures_of(description) for description in descriptions]
    if measures[0] != measures[1]:
        raise BadInputError(f"{b}: is of process {descriptions[1]['process']}, and {a} of {descriptions[0]['process']}")
    curves = [read_curves(storage, measure) for storage, measure in zip(storages, measures, strict=True)]
    return {
        "sources": [a, b],
        "evaluations": [
            {"games": len(each["games"]), "num_seeds": each["num_seeds"], "arms": [arm["name"] for arm in each["arms"]]}
            for each in descriptions
        ],
        "config": differing(*(_keys(storage) for storage in storages)),
        "versions": differing(*(read_versions(storage) for storage in storages)),
        "arms": differing(*({arm["name"]: arm["fingerprint"] for arm in each["arms"]} for each in descriptions)),
        "score": measures[0].score_text,
        "scores": compare_scores(*curves),
    }


def _keys(storage: Storage) -> dict[str, Any]:
    """Returns the keys of an evaluation's configuration as they are written: those of another version may differ."""
    if CONFIG not in storage.names():
        return {}
    where = f"{storage.url}/{CONFIG}"
    try:
        tree = parse_yaml(storage.read(CONFIG, MAX_TEXT).decode(), where)
    except UnicodeDecodeError:
        tree = None
    if not isinstance(tree, dict):
        raise BadInputError(f"{where}: cannot be read: not a run's configuration")
    return dict(flatten(tree))


def compare_scores(a: list[Curve], b: list[Curve]) -> list[dict[str, Any]]:
    """Returns a row for each arm and game that both have, in the order of ``a``: the number of seeds, and for each of
    SCORES its mean over seeds in a and in b and the difference b − a with its 95 % interval (Student's t, by seed)."""
    ours, theirs = ({(each.arm, each.game, each.seed): each for each in curves if not np.isnan(each.area)}
                    for curves in (a, b))  # fmt: skip
    pairs: dict[tuple[str, str], list[tuple[Curve, Curve]]] = {}
    for key, curve in ours.items():
        if key in theirs:
            pairs.setdefault(key[:2], []).append((curve, theirs[key]))
    rows: list[dict[str, Any]] = []
    for (arm, game), both in pairs.items():
        row: dict[str, Any] = {"arm": arm, "game": game, "num_seeds": len(both)}
        for name, measure in SCORES.items():
            values = np.array([[getattr(curve, measure) for curve in pair] for pair in both])
            difference = paired_difference(values[:, 1], values[:, 0])
            row[name] = {"values": values.mean(axis=0).tolist(), "difference": difference._asdict()}
        rows.append(row)
    return rows


def describe_evaluations(found: Mapping[str, Any]) -> str:
    """Returns what `leap-rl diff` prints of what :func:`diff_evaluations` returns."""
    lines = [
        f"{label}  {source}: {each['games']} game(s), {each['num_seeds']} seed(s), arms {', '.join(each['arms'])}"
        for label, source, each in zip("ab", found["sources"], found["evaluations"], strict=True)
    ]
    lines += describe_keys(found)
    lines += ["", f"arms: {'differ' if found['arms'] else 'the same'}"]
    for name, prints in found["arms"].items():
        only = [label for label, print_ in zip("ab", prints, strict=True) if print_ is not None]
        other = " → ".join((print_ or "")[:12] for print_ in prints)
        lines.append(f"  {name}: {f'initialization {other}' if len(only) == 2 else f'only in {only[0]}'}")
    if not found["scores"]:
        return printable(
            "\n".join([*lines, "", "scores: no arm has finished the same game with the same seed in both"])
        )
    lines += [
        "",
        f"{found['score']}, mean over the task and at its end: a → b, and b − a with its 95 % interval by seed",
    ]
    texts = [[row["arm"], row["game"], *(_both(row[name]) for name in SCORES)] for row in found["scores"]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row, text in zip(found["scores"], texts, strict=True):
        columns = "  ".join(f"{value:{width}}" for value, width in zip(text, widths, strict=True))
        lines.append(f"  {columns}  {row['num_seeds']} seed(s)")
    return printable("\n".join(lines))


def _both(score: Mapping[str, Any]) -> str:
    ours, theirs = (f"{value:.4g}" for value in score["values"])
    return f"{ours} → {theirs}  {shown(Estimate(**score['difference']))}"
