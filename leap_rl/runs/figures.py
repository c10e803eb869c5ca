"""Draws figures, as PNG and SVG bytes, in one style. Only this module imports matplotlib.

The same data give the same figure: it contains no date, and neither the environment nor a matplotlibrc changes it.
Names are shown literally, and never read as mathematics.
"""

import functools
import importlib.util
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np


@contextmanager
def _own_environment() -> Iterator[None]:
    """Makes matplotlib, which reads the environment when it is imported, use its own defaults and no window system."""
    found = importlib.util.find_spec("matplotlib")
    folder = Path(found.origin).parent if found and found.origin else Path()
    changed = {"MPLBACKEND": "agg", "MATPLOTLIBRC": str(folder / "mpl-data" / "matplotlibrc")}
    try:
        Path.home()
    except RuntimeError:  # no HOME and no entry in passwd
        changed["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR") or tempfile.gettempdir()
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


with _own_environment():
    import matplotlib as mpl
    from matplotlib.figure import Figure as Figure
    from matplotlib.ticker import MaxNLocator as MaxNLocator

    mpl.get_configdir()  # which is kept: before matplotlib 3.11 the first figure asks for it

STYLE = {"svg.hashsalt": "leap_rl", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
         "text.parse_math": False}  # fmt: skip
Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(draw: Drawing) -> Drawing:
    """Makes a function that draws or renders use matplotlib's defaults and our own style, whatever is set otherwise."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Any:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            return draw(*arguments, **options)

    return cast(Drawing, drawn)


@styled
def render(figure: Figure) -> dict[str, bytes]:
    """Returns the figure as PNG and SVG: suffix → bytes."""
    return {"png": render_png(figure), "svg": _saved(figure, "svg", {"Date": None})}


@styled
def render_png(figure: Figure) -> bytes:
    """Returns the figure as PNG."""
    return _saved(figure, "png", {"Software": None})


def _saved(figure: Figure, suffix: str, metadata: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=130, metadata=metadata)
    return buffer.getvalue()


def label(name: str) -> str:
    """Returns a name as a label. matplotlib would leave a label that begins with an underscore out of the legend."""
    return f" {name}" if name.startswith("_") else name


@styled
def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure in our style; width and height are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


MAX_NUMBERED = 24  # games whose heat map has numbers in its cells


@styled
def heat_maps(matrices: Mapping[str, Any]) -> Figure:
    """Draws cosines between the increments of games, a panel for each of ``matrices`` (name → games, matrix). The cells
    of a large matrix have no numbers, which would be too many to read and slow to draw."""
    num_games = max(len(entry["games"]) for entry in matrices.values())
    numbered = num_games <= MAX_NUMBERED
    columns = min(3, len(matrices))
    rows, side = math.ceil(len(matrices) / columns), 1.6 + (0.55 if numbered else 0.16) * num_games
    figure = Figure(figsize=(side * columns + 1.2, side * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, entry) in zip(axes, matrices.items(), strict=False):
        matrix = np.array([[np.nan if value is None else value for value in row] for row in entry["matrix"]])
        image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        for (row, column), value in np.ndenumerate(matrix) if numbered else ():
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
            color = "white" if abs(value) > 0.6 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        size = None if numbered else 6
        axis.set_xticks(
            range(len(entry["games"])), entry["games"], rotation=35, ha="right", rotation_mode="anchor", fontsize=size
        )
        axis.set_yticks(range(len(entry["games"])), entry["games"], fontsize=size)
        axis.set_title(name)
    for axis in axes[len(matrices) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure
