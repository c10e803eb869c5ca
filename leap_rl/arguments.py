"""Defines the arguments of every command of ``leap-rl``: what each takes, and what its ``--help`` says."""

import argparse
import os
import sys
from typing import Any, NoReturn

from leap_rl import __version__, commands
from leap_rl.files.text import printable
from leap_rl.types import BadInputError

OWN_PROCESS = "process=MODULE:NAME after it where it has a process of your own"


def complain(message: str, code: int) -> int:
    """Prints a line on stderr, and returns the exit code."""
    print(("" if code == 130 else "error: ") + printable(" ".join(message.split())), file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(complain(f"{message} (see {self.prog} --help)", 2))


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="leap-rl", description="Leap meta-learning for reinforcement learning, distributed over Ray.")
    parser.add_argument("--version", action="version", version=f"leap-rl {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    train = subparsers.add_parser(
        "train",
        help="meta-train a configuration, or resume it",
        description=(
            "Meta-trains a configuration. The run directory is run.dir: a new one is created, one that holds the "
            "same configuration is resumed, a finished one is left as it is."
        ),
        epilog=(
            "examples: leap-rl train configs/atari.yaml run.dir=runs/mine meta.steps=20 workers.count=8\n"
            "          leap-rl train configs/atari.yaml 'tasks.games=[breakout:*]' 'tasks.held_out=[]' "
            "tasks.split.held_out=4\n          (all variants of Breakout, four of them held out: docs/variants.md)"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "config", metavar="CONFIG", type=_path,
        help="a YAML file, a preset by its name (see `leap-rl presets`), e.g. quickstart, or a run's directory",
    )  # fmt: skip
    train.add_argument("overrides", metavar="key=value", nargs="*", help="replaces a key of the file (see --keys)")
    train.add_argument("--keys", action=_PrintKeys, help="list every configuration key and exit")
    train.add_argument(
        "--copy", nargs=2, metavar=("PRESET", "FILE"), action=_Copy, help="write a preset to a new file and exit"
    )
    train.add_argument("--json", action="store_true", help="print the result as JSON")
    train.set_defaults(command=commands.train)

    sweep = subparsers.add_parser(
        "sweep",
        help="meta-train a grid of configurations, and keep the best",
        description=(
            "Meta-trains every combination of the values that keys are given, one run after another, each in a folder "
            "of its own below run.dir. Settings are compared on the same tasks; runs that differ in run.seed alone "
            "are one setting. The same command continues a sweep that was interrupted. Writes sweep.csv."
        ),
        epilog="example: leap-rl sweep quickstart run.dir=runs/rates meta.lr=0.1,0.3,1 run.seed=0..2 --halving 1",
    )
    sweep.add_argument("config", metavar="CONFIG", type=_path, help="a YAML file, or a preset by its name")
    sweep.add_argument(
        "overrides", metavar="key=value,…", nargs="*",
        help="the values of a key, or a range of whole numbers, 0..2; with one value, it is the same in all runs",
    )  # fmt: skip
    sweep.add_argument(
        "--by", choices=("area", "held_out"), default="area",
        help="what is compared: area, the mean score over the whole of a task (the default), or held_out, the score on "
             "the data that a task holds out (classification)",
    )  # fmt: skip
    sweep.add_argument(
        "--halving", metavar="N", type=int, default=0,
        help="give up the worse half of the settings N times: 2: after 1/4 and 1/2 of meta.steps (default 0)",
    )  # fmt: skip
    sweep.add_argument("--json", action="store_true", help="print a row for each run as JSON")
    sweep.set_defaults(command=commands.sweep)

    evaluate = subparsers.add_parser(
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
        "sources", metavar="RUN_OR_FILE", nargs="+", type=_path,
        help="run directories, initialization files, pretrained:NAME, or hub:OWNER/NAME; key=value after them replaces "
             "a key that says where it runs",
    )  # fmt: skip
    evaluate.set_defaults(overrides=[])
    evaluate.add_argument(
        "--games", metavar="GAME", nargs="+",
        help="or alphabets; patterns, quoted in a shell: 'breakout:*', 'breakout:mode=*'; or parts of the (first) "
             "run's tasks: training, validation, held_out (the default)",
    )  # fmt: skip
    evaluate.add_argument(
        "--arms", metavar="ARM,…",
        help="further arms: ceiling (starts where the random arm ended on the same game), frozen (each initialization, "
        "its encoder not trained), shrink-perturb=λ (λ × each initialization + (1 − λ) × a random one)",
    )  # fmt: skip
    evaluate.add_argument("--seeds", metavar="N", type=int, default=3, help="of each game and arm (default 3)")
    evaluate.add_argument("--agent-steps", metavar="K", type=int, help="of a task (default: task.agent_steps)")
    evaluate.add_argument(
        "--out", metavar="DIR", type=_path, help="the evaluation's directory (default: RUN-evaluation)"
    )
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")
    evaluate.set_defaults(command=commands.evaluate)

    play = subparsers.add_parser(
        "play",
        help="show play of an initialization and of a random one, side by side",
        description=(
            "Trains from each given initialization, and from a random one, on one game, as `leap-rl evaluate` does, "
            "then has each play, and writes a clip of all side by side, with their scores. The same command gives "
            "the same pictures."
        ),
        epilog="example: leap-rl play pretrained:variants --game breakout:mode=36 --out breakout.gif",
    )
    play.add_argument(
        "sources",
        metavar="RUN_OR_FILE",
        nargs="+",
        type=_path,
        help=f"run directories, initialization files, pretrained:NAME, or hub:OWNER/NAME; {OWN_PROCESS}",
    )
    play.add_argument("--game", metavar="GAME", help="to play (default: the first that the run holds out)")
    play.add_argument(
        "--agent-steps", metavar="K", type=int, default=20_000,
        help="of training before it is shown (default 20000; 0: as they start)",
    )  # fmt: skip
    play.add_argument("--seed", metavar="S", type=int, default=0, help="of training and play (default 0)")
    play.add_argument("--seconds", metavar="T", type=int, default=20, help="length of the clip (default 20)")
    play.add_argument(
        "--out",
        metavar="FILE",
        type=_path,
        required=True,
        help="a file to write or overwrite, whose name ends in .gif or .mp4",
    )
    play.set_defaults(command=commands.play, overrides=[])

    report = subparsers.add_parser(
        "report",
        help="write the report of an evaluation again",
        description="Writes report.md, report.html, figures and TensorBoard runs from what an evaluation has measured.",
        epilog="example: leap-rl report runs/quickstart-evaluation",
    )
    report.add_argument("evaluation", metavar="DIR", type=_path, help=f"the directory of an evaluation; {OWN_PROCESS}")
    report.add_argument("--json", action="store_true", help="print the result as JSON")
    report.set_defaults(command=commands.report, overrides=[])

    export = subparsers.add_parser(
        "export",
        help="write a run's encoder for another library",
        description=(
            "Writes the encoder of a run for RLlib's default networks, for plain PyTorch, for Stable-Baselines3, as an "
            "ONNX graph, or as a folder for the Hugging Face hub (docs/rllib.md). What is written is first compared "
            "with the run's own encoder on frames of a game: features agree to 1e-5."
        ),
        epilog="example: leap-rl export runs/quickstart --to rllib --out encoder",
    )
    export.add_argument("run", metavar="RUN", type=_path, help=f"a run directory, or its URL; {OWN_PROCESS}")
    export.add_argument(
        "--to",
        required=True,
        choices=("rllib", "torch", "sb3", "onnx", "hub"),
        help="the library, or the hub, that it is for",
    )
    export.add_argument(
        "--game", metavar="GAME", help="of a run with env.center = background, or with heads (onnx): the game it is for"
    )
    export.add_argument("--out", metavar="DIR", type=_path, help="a new directory (default: RUN-TO)")
    export.add_argument("--json", action="store_true", help="print the result as JSON")
    export.set_defaults(command=commands.export, overrides=[])

    push = subparsers.add_parser(
        "push",
        help="put a run's initialization on the Hugging Face hub",
        description=(
            "Puts what `leap-rl export RUN --to hub` writes (model.safetensors, config.json and a model card) on the "
            "Hugging Face hub, with the token of `hf auth login` or $HF_TOKEN. hub:OWNER/NAME is then taken wherever "
            "an initialization is."
        ),
        epilog="example: leap-rl push runs/atari me/leap-atari",
    )
    push.add_argument("run", metavar="RUN", type=_path, help=f"a run directory, or its URL; {OWN_PROCESS}")
    push.add_argument("repository", metavar="OWNER/NAME", help="a repository, which is made if there is none")
    push.add_argument("--private", action="store_true", help="if it is made: only for you to see")
    push.add_argument("--json", action="store_true", help="print the result as JSON")
    push.set_defaults(command=commands.push, overrides=[])

    presets = subparsers.add_parser(
        "presets",
        help="list the configurations that come with leap_rl",
        description="Lists the presets: what each is, and how many steps it trains in all.",
        epilog="example: leap-rl train quickstart",
    )
    presets.add_argument("--json", action="store_true", help="print as JSON")
    presets.set_defaults(command=commands.list_presets)

    games = subparsers.add_parser(
        "games",
        help="list the games",
        description=(
            "Lists every game that can be a task, or every variant: its modes in their difficulties. Patterns such as "
            "'breakout:*' leave out the variants that an agent alone cannot play; this says why."
        ),
        epilog="example: leap-rl games --variants breakout pong",
    )
    games.add_argument("--variants", metavar="GAME", nargs="*", help="list the variants of these games (default: all)")
    games.add_argument("--json", action="store_true", help="print as JSON")
    games.set_defaults(command=commands.games)

    resolve = subparsers.add_parser(
        "resolve",
        help="print a whole configuration",
        description="Checks a configuration and prints all of its keys as YAML, defaults and replaced keys included.",
        epilog="example: leap-rl resolve configs/quickstart.yaml meta.steps=20",
    )
    resolve.add_argument("config", metavar="CONFIG", type=_path, help="a YAML file, a preset, or a run's directory")
    resolve.add_argument("overrides", metavar="key=value", nargs="*", help="replaces a key of the file")
    resolve.add_argument("--only", metavar="KEY", help="print the value of this key alone, e.g. run.dir")
    resolve.set_defaults(command=commands.resolve)

    show = subparsers.add_parser(
        "show",
        help="show a run",
        description="Shows the state of a run: meta-step, fingerprint, configuration.",
        epilog="example: leap-rl show runs/quickstart --json",
    )
    show.add_argument("run", metavar="RUN", type=_path, help=f"a run directory, or its URL; {OWN_PROCESS}")
    show.add_argument("--json", action="store_true", help="print as JSON")
    show.set_defaults(command=commands.show, overrides=[])

    status = subparsers.add_parser(
        "status",
        help="show how far a run has got",
        description=(
            "Shows how a run stands, from its directory alone, so in another terminal or on another host as well: "
            "meta-steps, tasks under way, speed, faults, core-hours, and the time that is left."
        ),
        epilog="example: leap-rl status runs/atari --watch",
    )
    status.add_argument("run", metavar="RUN", type=_path, help=f"a run directory, or its URL; {OWN_PROCESS}")
    status.add_argument(
        "--watch", action="store_true", help="show it again every five seconds, until the run has ended"
    )
    status.add_argument("--html", metavar="FILE", help="also write it as a page, with the curves and the configuration")
    status.add_argument("--json", action="store_true", help="print as JSON, a line each time")
    status.set_defaults(command=commands.status, overrides=[])

    plan = subparsers.add_parser(
        "plan",
        help="say what a run will cost",
        description=(
            "Tries, for a few seconds each, the games that a run will draw. Says how long the whole run takes on this "
            "machine, and what it takes of memory, disk and network. Writes nothing."
        ),
        epilog="example: leap-rl plan configs/atari.yaml workers.count=8 --hours 3",
    )
    plan.add_argument("config", metavar="CONFIG", type=_path, help="a YAML file, a preset, or a run's directory")
    plan.add_argument("overrides", metavar="key=value", nargs="*", help="replaces a key of the file")
    plan.add_argument("--hours", metavar="H", type=float, help="also say which keys make it last so long")
    plan.add_argument("--json", action="store_true", help="print as JSON")
    plan.set_defaults(command=commands.plan)

    doctor = subparsers.add_parser(
        "doctor",
        help="look for what would stop or slow a run here",
        description=(
            "Looks at packages, games, the device, drawings, cores, memory, disk and Ray on this machine, and says for "
            "each problem what to do. The exit code is 1 if there is one."
        ),
        epilog="example: leap-rl doctor configs/atari.yaml ray.address=auto workers.count=8",
    )
    doctor.add_argument(
        "config", metavar="CONFIG", nargs="?", type=_path, default="quickstart",
        help="that is to be trained: a YAML file, a preset, or a run's directory (default: quickstart)",
    )  # fmt: skip
    doctor.add_argument("overrides", metavar="key=value", nargs="*", help="replaces a key of the file")
    doctor.set_defaults(command=commands.doctor)

    diff = subparsers.add_parser(
        "diff",
        help="compare two runs, initializations or evaluations",
        description=(
            "Shows what differs between two runs or initialization files: keys of their configurations, versions, the "
            "distance and the cosine of each tensor, and path length and energy at the last meta-step that both have. "
            "Of two evaluations: keys, versions, arms, and the scores of the arms and games that both have."
        ),
        epilog="example: leap-rl diff runs/leap runs/reptile",
    )
    for name in ("a", "b"):
        diff.add_argument(
            name, metavar=name.upper(), type=_path,
            help=f"a run directory, an initialization file, pretrained:NAME, hub:OWNER/NAME, or the directory of an "
            f"evaluation; {OWN_PROCESS}",
        )  # fmt: skip
    diff.add_argument("--json", action="store_true", help="print as JSON")
    diff.set_defaults(command=commands.diff, overrides=[])
    return parser


def _path(text: str) -> str:
    from leap_rl.files.storage import expand

    if not text:  # a variable of the shell that is not set; it would be the current directory
        raise argparse.ArgumentTypeError("is empty; it must be a path")
    try:
        # Made absolute, since a suffix may be appended to it.
        return os.path.abspath(text) if text.rstrip("/") in (".", "..") else expand(text)
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Copy(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: Any, values: Any, *__: Any) -> NoReturn:
        from leap_rl.presets import copy_preset

        copy_preset(*values)
        print(values[1])
        raise SystemExit(0)


class _PrintKeys(argparse.Action):
    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from leap_rl.config import FREE_ON_RESUME
        from leap_rl.config_files import describe_keys

        for key, text in describe_keys():
            print(f"{key:26} {text}")
        print(
            f"\nMay differ when a run is resumed: {', '.join(FREE_ON_RESUME)}; tasks.held_out and validation; "
            "alphabets.source, where the drawings are the same; and meta.steps, which may be raised at a constant rate"
        )
        raise SystemExit(0)
