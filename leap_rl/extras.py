"""Names the extra of leap_rl that brings a package which is not installed."""

from importlib.util import find_spec

from leap_rl.types import BadInputError

# Extra → modules that it brings and that we, or RLlib, import. setup.cfg has the same extras, with versions.
MODULES = {
    "atari": ("ale_py", "cv2"),
    "gymnasium": ("gymnasium",),
    "minatar": ("minatar",),
    "ray": ("ray", "pyarrow"),
    "rllib": ("gymnasium", "pandas", "scipy", "tree"),
    "vision": ("cv2",),
    "report": ("markdown_it", "matplotlib", "PIL", "scipy", "tensorboard"),
    "onnx": ("onnx", "onnxruntime"),
    "hub": ("huggingface_hub",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}


def require_extra(extra: str, what: str) -> None:
    """Raises BadInputError, one line that begins with ``what``, where a module of an extra is not installed."""
    missing = [module for module in MODULES[extra] if find_spec(module) is None]
    if missing:
        raise BadInputError(f"{what}: {_line(missing, extra)}")


def explain(error: ModuleNotFoundError) -> str:
    """Returns a line that names the extra with the module that could not be imported, or "" where it is of none."""
    name = (error.name or "").partition(".")[0]
    return next((_line([name], extra) for extra, modules in MODULES.items() if name in modules), "")


def _line(modules: list[str], extra: str) -> str:
    *others, last = modules
    names = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    return f"{names} not installed; pip install 'leap-rl[{extra}]'"
