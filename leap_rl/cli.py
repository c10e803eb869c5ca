"""The command line: ``leap-rl train | evaluate | …``. Bad input is one line and exit code 2."""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from typing import Any, NoReturn

from leap_rl import __version__
from leap_rl.types import BadInputError, LeapRLError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 failed, 2 bad input, 130 interrupted."""
    options = _parse(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except LeapRLError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues where it stopped", 130)
    except BrokenPipeError:  # e.g. `leap-rl games | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        return _complain(f"{error.filename or 'writing'}: {error.strerror}", 1)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Takes key=value behind options too, where argparse expects no more of them."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more and ("overrides" not in options or any(argument.startswith("-") for argument in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        options.overrides += more
    return options


def _complain(message: str, code: int) -> int:
    print(("" if code == 130 else "error: ") + " ".join(message.split()), file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_complain(f"{message} (see {self.prog} --help)", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="leap-rl", description="Leap meta-learning for reinforcement learning, distributed over Ray.")
    parser.add_argument("--version", action="version", version=f"leap-rl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="meta-train a configuration, or resume it",
        description=(
            "Meta-trains a configuration. The run directory is run.dir: a new one is created, one that holds the "
            "same configuration is resumed, a finished one is left as it is."
        ),
        epilog="example: leap-rl train configs/atari.yaml run.dir=runs/mine meta.steps=20 workers.count=8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG", help="a YAML file, e.g. configs/quickstart.yaml")
    train.add_argument("overrides", metavar="key=value", nargs="*", help="replaces a key of the file (see --keys)")
    train.add_argument("--keys", action=_PrintKeys, help="list every configuration key and exit")
    train.add_argument("--json", action="store_true", help="print the result as JSON")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="train from initializations on other games, and from a random one",
        description=(
            "Trains from each given initialization, and from a random one, on held-out games, then writes a report. "
            "The arms differ in the initial weights that are meta-learned and in nothing else. The same command "
            "continues an evaluation that was interrupted, and leaves what is done as it is."
        ),
        epilog="example: leap-rl evaluate runs/quickstart --games breakout alien --seeds 5 --agent-steps 100000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "sources", metavar="RUN_OR_FILE", nargs="+",
        help="run directories and initialization files; key=value after them replaces a key that says where it runs",
    )  # fmt: skip
    evaluate.set_defaults(overrides=[])
    evaluate.add_argument(
        "--games", metavar="GAME", nargs="+", help="or alphabets; default: those that the (first) run held out"
    )
    evaluate.add_argument("--seeds", metavar="N", type=int, default=3, help="of each game and arm (default 3)")
    evaluate.add_argument("--agent-steps", metavar="K", type=int, help="of a task (default: task.agent_steps)")
    evaluate.add_argument("--out", metavar="DIR", help="the evaluation's directory (default: RUN-evaluation)")
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")
    evaluate.set_defaults(command=_evaluate)

    report = commands.add_parser(
        "report",
        help="write the report of an evaluation again",
        description="Writes report.md, its figures and TensorBoard runs from what an evaluation has measured.",
        epilog="example: leap-rl report runs/quickstart-evaluation",
    )
    report.add_argument("evaluation", metavar="DIR", help="the directory of an evaluation")
    report.add_argument("--json", action="store_true", help="print the result as JSON")
    report.set_defaults(command=_report)

    export = commands.add_parser(
        "export",
        help="write a run's encoder for another library",
        description=(
            "Writes the encoder of a run for RLlib's default networks, for plain PyTorch, for Stable-Baselines3, or as "
            "a folder for the Hugging Face hub (docs/rllib.md). What is written is first compared with the run's own "
            "encoder on frames of a game: features agree to 1e-5."
        ),
        epilog="example: leap-rl export runs/quickstart --to rllib --out encoder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("run", metavar="RUN", help="a run directory, or its URL")
    export.add_argument("--to", required=True, choices=("rllib", "torch", "sb3", "hub"), help="for whom")
    export.add_argument("--game", metavar="GAME", help="of a run with env.center = background: the game it is for")
    export.add_argument("--out", metavar="DIR", help="a new directory (default: RUN-TO)")
    export.add_argument("--json", action="store_true", help="print the result as JSON")
    export.set_defaults(command=_export)

    games = commands.add_parser(
        "games",
        help="list the games",
        description="Lists every game that can be a task.",
        epilog="example: leap-rl games --json",
    )
    games.add_argument("--json", action="store_true", help="print as JSON")
    games.set_defaults(command=_games)

    show = commands.add_parser(
        "show",
        help="show a run",
        description="Shows the state of a run: meta-step, fingerprint, configuration.",
        epilog="example: leap-rl show runs/quickstart --json",
    )
    show.add_argument("run", metavar="RUN", help="a run directory, or its URL")
    show.add_argument("--json", action="store_true", help="print as JSON")
    show.set_defaults(command=_show)
    return parser


class _PrintKeys(argparse.Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from leap_rl.config import FREE_ON_RESUME, describe_keys

        for key, text in describe_keys():
            print(f"{key:26} {text}")
        print(f"\nMay differ when a run is resumed: {', '.join(FREE_ON_RESUME)}")
        raise SystemExit(0)


def _train(options: argparse.Namespace) -> int:
    from leap_rl.config import load_config

    config = load_config(options.config, options.overrides)

    from leap_rl.backends import open_backend
    from leap_rl.measures import MEASURES
    from leap_rl.monitoring import Monitor, summary_table
    from leap_rl.processes import resolve
    from leap_rl.run import adopt_precision, describe, is_finished, open_run, read_metrics
    from leap_rl.training import meta_train

    signal.signal(signal.SIGTERM, lambda *_: _raise_interrupt())  # what a scheduler or container sends
    config = resolve(adopt_precision(config))
    path = config.run.dir
    if is_finished(config):
        print(f"{path}: finished, all {config.meta.steps} meta-steps are done", file=sys.stderr)
    else:
        # The backend first: where it cannot start, nothing is written.
        with (
            contextlib.redirect_stdout(sys.stderr),  # Ray prints to stdout when an actor dies
            open_backend(config) as backend,
            open_run(config) as run,
            Monitor(config, run) as monitor,
        ):
            meta_train(config, backend, run, monitor)
    state = describe(path)
    if options.json:
        print(json.dumps(state))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    measures = MEASURES[config.process]
    console.print(summary_table(read_metrics(path), measures))
    steps = " Agent steps are actions, each of several emulator frames." if config.process == "a2c" else ""
    console.print(
        f"Path length and energy: how far the {measures.tasks}' parameters and losses had to travel, means over the\n"
        f"{measures.tasks}; a shorter path is what Leap trains for.{steps}\n\n"
        f"The shared initialization: {path}/initialization.safetensors\n"
        f"fingerprint {state['fingerprint']}\n\n"
        f"Look at the curves:   tensorboard --logdir {path}\n"
        f"Look at the run:      leap-rl show {path}\n"
        + (
            "The games there are:  leap-rl games\n"
            "The paper's recipe:   leap-rl train configs/atari_paper.yaml   (see README.md for what it costs)"
            if config.process == "a2c"
            else f"Does it help:         leap-rl evaluate {path}"
        ),
        soft_wrap=True,
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from leap_rl.evaluation.plan import make_plan
    from leap_rl.evaluation.report import check_figures

    named = [*options.sources, *options.overrides]
    overrides = [text for text in [*named, *(options.games or [])] if re.match(r"[a-z_.]+=", text)]
    sources = [text for text in named if text not in overrides]
    games = options.games and [game for game in options.games if game not in overrides]
    if not sources:
        raise BadInputError("name a run directory or an initialization file")
    check_figures()
    plan = make_plan(sources, overrides, games, options.seeds, options.agent_steps, options.out)

    from leap_rl.backends import open_backend
    from leap_rl.evaluation.evaluate import check_directory, open_directory, run_evaluation
    from leap_rl.evaluation.results import collect

    check_directory(plan)
    signal.signal(signal.SIGTERM, lambda *_: _raise_interrupt())
    with (
        contextlib.redirect_stdout(sys.stderr),
        open_backend(plan.config) as backend,
        open_directory(plan) as storage,
    ):
        run_evaluation(plan, backend, storage)
        collect(plan, storage)
    return _write_report(plan.config.run.dir, options.json)


def _report(options: argparse.Namespace) -> int:
    return _write_report(options.evaluation, options.json)


def _write_report(url: str, as_json: bool) -> int:
    from leap_rl.evaluation.report import REPORT, write_report

    analysis = write_report(url)
    print(json.dumps({"evaluation": url} | analysis.to_json()) if as_json else f"{url}/{REPORT}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from leap_rl.backends import prepare_environment
    from leap_rl.export import export_run

    prepare_environment("local")
    written = export_run(options.run, options.to, options.out, options.game)
    if options.json:
        print(json.dumps(written))
        return 0
    checked = written["largest_difference"]
    print(f"{written['out']}: {', '.join(written['files'])}")
    if checked is not None:
        print(f"features of real frames differ from the run's own by at most {checked:.1e}")
    return 0


def _raise_interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _games(options: argparse.Namespace) -> int:
    from leap_rl.tasks import TWO_PLAYER_ROMS, catalogue, ranges

    games = list(catalogue().values())
    if options.json:
        print(json.dumps([
            {"name": game.name, "num_actions": game.num_actions, "modes": game.modes,
             "difficulties": game.difficulties, "default_mode": game.default_mode,
             "default_difficulty": game.default_difficulty, "pool": game.pool}
            for game in games
        ]))  # fmt: skip
        return 0
    print(f"{'game':24}{'actions':>8}  {'modes':24}{'difficulties':14}{'pool'}")
    for game in games:
        print(f"{game.name:24}{game.num_actions:8}  {ranges(game.modes):24}{ranges(game.difficulties):14}{game.pool}")
    print(
        f"\n{len(games)} games. Pools are the paper's. As a task: breakout, or breakout:mode=4,difficulty=1. "
        f"Not listed, since they need two players: {', '.join(sorted(TWO_PLAYER_ROMS))}."
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    from leap_rl.measures import MEASURES
    from leap_rl.run import describe

    state = describe(options.run)
    if options.json:
        print(json.dumps(state))
        return 0
    import yaml

    status = "finished" if state["finished"] else "not finished: the same `leap-rl train` command continues"
    print(f"{state['run']}: meta-step {state['meta_step']} of {state['meta_steps']}, {status}")
    print(f"fingerprint  {state['fingerprint']}")
    print(f"config hash  {state['config_hash']}")
    measures = MEASURES[state["config"]["process"]]
    amounts = f"{state['agent_steps']:,} {measures.step}, {state['frames']:,} {measures.frame}"
    print(f"trained      {amounts}, {state['seconds']:,.0f} s")
    print(f"versions     {', '.join(f'{name} {value}' for name, value in sorted(state['versions'].items()))}")
    for name, shape in state["parameters"].items():
        print(f"parameter    {name} {'×'.join(map(str, shape))}")
    for line in state["ignored"]:
        print(f"note         {line}")
    print("\n" + yaml.safe_dump(state["config"], sort_keys=False, width=100).rstrip())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
