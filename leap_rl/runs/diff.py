"""Compares two runs or initializations (``leap-rl diff``): keys, versions, weights, and how meta-training went."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from leap_rl.config import flatten
from leap_rl.files.text import printable
from leap_rl.runs.run_files import fingerprint, read_metrics
from leap_rl.runs.sources import Source, read_source
from leap_rl.types import Tensors

CURVES = ("path_length", "energy")


class Layer(NamedTuple):
    """Compares one tensor of two initializations. Numbers are None where the shapes differ, or one lacks it."""

    name: str
    shapes: tuple[str, str]  # "32×16×4×4"; "" where there is none
    distance: float | None = None  # ‖b − a‖
    relative: float | None = None  # ‖b − a‖ / ‖a‖, None where a is zero
    cosine: float | None = None  # between a and b, None where either is zero


def diff(a: str, b: str) -> dict[str, Any]:
    """Returns what differs between two sources, as `leap-rl diff --json` prints it: for each of ``config`` and
    ``versions`` a mapping of key to both values, the ``layers``, and the ``curves`` at the last meta-step that both
    have logged. Raises BadInputError where one cannot be read."""
    sources = read_source(a), read_source(b)
    tensors = [source.tensors for source in sources]
    return {
        "sources": [a, b],
        "meta_steps": [source.meta_step for source in sources],
        "fingerprints": [fingerprint(values) for values in tensors],
        "config": differing(*(_keys(source) for source in sources)),
        "versions": differing(*(source.versions for source in sources)),
        "layers": [layer._asdict() for layer in compare(*tensors)],
        "curves": _curves(a, b),
    }


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the keys whose values differ, with both values; None where there is none."""
    keys = sorted({*ours, *theirs})
    return {key: [ours.get(key), theirs.get(key)] for key in keys if ours.get(key) != theirs.get(key)}


def compare(a: Tensors, b: Tensors) -> list[Layer]:
    """Compares two initializations tensor by tensor, in the order of their names."""
    layers = []
    for name in sorted({*a, *b}):
        shapes = tuple("×".join(map(str, each[name].shape)) if name in each else "" for each in (a, b))
        if shapes[0] != shapes[1]:
            layers.append(Layer(name, shapes))  # type: ignore[arg-type]
            continue
        ours, theirs = a[name].double().flatten(), b[name].double().flatten()
        norm, distance, other = (float(torch.linalg.vector_norm(x)) for x in (ours, theirs - ours, theirs))
        cosine = float(ours @ theirs) / (norm * other) if norm and other else None
        layers.append(Layer(name, shapes, distance, distance / norm if norm else None, cosine))  # type: ignore[arg-type]
    return layers


def _keys(source: Source) -> dict[str, Any]:
    return dict(flatten(source.config.model_dump())) if source.config else {}


def _curves(a: str, b: str) -> dict[str, Any]:
    logged = [[] if Path(source).is_file() else read_metrics(source) for source in (a, b)]
    rows = [{row["meta_step"]: row for row in each if row["kind"] == "meta_step"} for each in logged]
    common = rows[0].keys() & rows[1].keys()
    if not common:
        return {}
    last = max(common)
    return {"meta_step": last, **{name: [each[last].get(name) for each in rows] for name in CURVES}}


def describe_diff(found: Mapping[str, Any]) -> str:
    """Returns what `leap-rl diff` prints of what :func:`diff` returns."""
    same = found["fingerprints"][0] == found["fingerprints"][1]
    lines = [
        f"{label}  {source}: meta-step {meta_step}, fingerprint {print_[:12]}"
        for label, source, meta_step, print_ in zip(
            "ab", found["sources"], found["meta_steps"], found["fingerprints"], strict=True
        )
    ]
    lines += describe_keys(found)
    lines += ["", "initialization: the same bits" if same else "initialization: ‖b − a‖, its share of ‖a‖, cosine"]
    if not same:
        width = max(len(layer["name"]) for layer in found["layers"])
        lines += [f"  {layer['name']:{width}}  {_layer(layer)}" for layer in found["layers"]]
    if found["curves"]:
        lines += ["", f"meta-step {found['curves']['meta_step'] + 1}, the last that both have:"]
        lines += [f"  {name}: {' → '.join(map(_value, found['curves'][name]))}" for name in CURVES]
    return printable("\n".join(lines))


def describe_keys(found: Mapping[str, Any]) -> list[str]:
    """Returns the lines about the keys and versions that differ."""
    lines = []
    for title, key in (("configuration", "config"), ("versions", "versions")):
        lines += ["", f"{title}: {'differs' if found[key] else 'the same, or not known'}"]
        lines += [f"  {name}: {_value(ours)} → {_value(theirs)}" for name, (ours, theirs) in found[key].items()]
    return lines


def _layer(layer: Mapping[str, Any]) -> str:
    if layer["distance"] is None:
        ours, theirs = (shape or "none" for shape in layer["shapes"])
        return f"{ours} → {theirs}"
    return f"{layer['distance']:10.4g} {_value(layer['relative']):>10} {_value(layer['cosine']):>10}"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
