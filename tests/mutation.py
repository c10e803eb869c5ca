"""Files that were damaged or made by an enemy, and configurations that nobody meant: no traceback and no hang.

    python -m tests.mutation files --count 2000             each through show, export, evaluate, report and train
    python -m tests.mutation configurations --count 10000   through the parser of files and of overrides

Every case is drawn from its number, so ``--first N --count 1`` tries one again. A case fails where a command ends
otherwise than with exit code 0, 1 or 2, writes more than one line for 1 or 2, takes longer than ``SECONDS``, or where
something is accepted that is no configuration, or whose file is other than what was written.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from leap_rl.cli import main as leap_rl
from leap_rl.config_files import all_keys, apply_overrides, load_config, parse_config
from leap_rl.files.yaml_files import dump_yaml, parse_yaml
from leap_rl.processes import initial_parameters
from leap_rl.runs.run import open_run
from leap_rl.runs.run_files import Progress
from leap_rl.types import Checkpoint, LeapRLError
from tests.cli_helpers import TINY, make_config
from tests.helpers import nest

SECONDS = 60  # that a command may take
CHANGES = {"meta.steps": 1, "meta.batch_size": 1, "task.agent_steps": 20, "tasks.held_out": ["breakout"]}
ARM = {"source": "s", "fingerprint": "", "meta_steps": None, "trained_on": [], "trained_with": [], "fresh_heads": []}
COLUMNS = "arm,game,seed,agent_steps,frames,episodes,episodic_return,path_length,energy,moves,loss_rises"
TOKENS = [
    b"null", b"true", b"-1", b"0", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"{", b"}", b"]", b'"',
    b"\0", b"\xff\xfe", b"\x1b[2J", b"../..", b"/dev/zero", b"os.system", b"F64", b"BF16", b"F8_E4M3",
    b"1099511627776", b"\n", b"ray://10.0.0.1:1", b"!!python/object:os.system", b"&a [*a]", b"010", b"1:30",
    b"<script>", b"|", b",", b":",
]  # fmt: skip


class HangError(Exception):
    """A command took too long."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make_files(folder: Path) -> dict[str, list[list[str]]]:
    """A finished run and an evaluation; each of their files, and the commands that read it."""
    config = make_config(folder, CHANGES)
    with open_run(config) as run:
        for meta_step in range(2):
            first = initial_parameters(config, meta_step)
            run.append_metrics([
                {"kind": "task", "meta_step": meta_step, "slot": 0, "game": "pong", "agent_steps": 10, "frames": 40,
                 "episodic_return": 1.5},
                {"kind": "meta_step", "meta_step": meta_step, "path_length": 1.0, "energy": 2.0,
                 "agent_steps_per_second": 3.0},
            ])  # fmt: skip
            run.commit(Checkpoint(meta_step, first, {}), Progress(meta_step, 10, 40, 1.0))
    evaluation = folder / "run-evaluation"
    evaluation.mkdir()
    description = {"format": "leap_rl evaluation", "process": "a2c", "games": ["breakout"], "num_seeds": 1,
                   "arms": [{"name": name} | ARM for name in ("random", "run")]}  # fmt: skip
    (evaluation / "evaluation.json").write_text(json.dumps(description, indent=1))
    rows = [
        f"{arm},breakout,0,{step},{4 * step},1,{step / 9},1.5,2.5,3,1" for arm in ("random", "run") for step in (9, 18)
    ]
    (evaluation / "curves.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    probes = {"cosines": {"run": {"games": ["breakout"], "matrix": [[None]]}}, "drift": {"run": {"encoder": 0.5}}}
    (evaluation / "probes.json").write_text(json.dumps(probes))
    run_dir, out = str(folder / "run"), str(folder / "out")
    show, train = ["show", run_dir], ["train", str(folder / "config.yaml")]
    to_torch, hub = ["export", run_dir, "--to", "torch", "--out", out], ["export", run_dir, "--to", "hub", "--out", out]
    # An evaluation that would begin is not: its directory holds another one.
    evaluate = ["evaluate", run_dir, "backend=serial", "--seeds", "7", "--out", str(folder / "run-evaluation")]
    report = ["report", str(evaluation)]
    return {
        "config.yaml": [train],
        "run/config.yaml": [show, train, hub, evaluate],
        "run/initialization.safetensors": [show, to_torch, hub, evaluate, train],
        "run/metrics.jsonl": [train],
        "run/checkpoints/000001/learner.safetensors": [show, train],
        "run/checkpoints/000001/state.json": [show, train],
        "run/checkpoints/000001/done": [show, train],
        "run-evaluation/evaluation.json": [report, evaluate, hub],
        "run-evaluation/curves.csv": [report, hub],
        "run-evaluation/probes.json": [report],
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Some of: bits flipped, a piece cut out, doubled or moved, the end cut off, a hostile token put in or in place."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        end = min(len(changed), rng.choice([200, 2000, len(changed)]) or 1)  # headers are at the beginning
        at = rng.randrange(max(1, end))
        length = rng.choice([1, 4, 30, 400])
        match rng.randrange(7):
            case 0:
                for _ in range(rng.choice([1, 8])):
                    if changed:
                        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                del changed[at:]
            case 4:
                changed[at:at] = rng.choice(TOKENS)
            case 5:
                token = rng.choice(TOKENS)
                changed[at : at + len(token)] = token
            case 6:  # a whole value of JSON or YAML
                start = changed.find(b":", at)
                ends = [place for place in (changed.find(mark, start + 1) for mark in (b",", b"\n", b"}")) if place > 0]
                if start > 0 and ends:
                    changed[start + 1 : min(ends)] = b" " + rng.choice(TOKENS)
    return bytes(changed)


def run_command(arguments: list[str]) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with limited(SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = leap_rl(arguments)
    except HangError:
        return "hangs"
    except SystemExit as ending:
        code = int(ending.code or 0)
    except BaseException:
        return traceback.format_exc()
    lines = [line for line in err.getvalue().splitlines() if not line.startswith(("note: ", "Ray "))]
    if code in (1, 2) and (len(lines) != 1 or len(lines[0]) > 2000 or not lines[0].isprintable()):
        return f"exit {code}, and not one line: {err.getvalue()[:2000]!r}"
    return "" if code in (0, 1, 2) else f"exit {code}"


def try_files(first: int, count: int, say: Callable[[str], None]) -> Counter[str]:
    """Mutates one file at a time and gives it to what reads it."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="leap_rl-mutation-") as name:
        folder = Path(name)
        commands = make_files(folder)
        kept = Path(name + "-kept")
        shutil.copytree(folder, kept)
        try:
            for number in range(first, first + count):
                rng = random.Random(number)
                file = list(commands)[number % len(commands)]
                original = (folder / file).read_bytes()
                mutated = mutate(original, rng)
                for command in commands[file]:
                    (folder / file).write_bytes(mutated)
                    if file == "config.yaml" and b"run" not in mutated:
                        continue
                    wrong = _try_config(folder / file) if file == "config.yaml" else run_command(command)
                    counts[f"{command[0]} of {file}"] += 1
                    if wrong:
                        counts["failures"] += 1
                        say(f"{number}: {command[0]} of {file}: {wrong}")
                    for entry in folder.iterdir():
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                    shutil.copytree(kept, folder, dirs_exist_ok=True)
                counts["mutated files"] += 1
        finally:
            shutil.rmtree(kept)
    return counts


def _try_config(file: Path) -> str:
    """A configuration that happens to be sound would train: it is only read."""
    try:
        with limited(SECONDS):
            config = load_config(file)
            return "" if parse_config(parse_yaml(dump_yaml(config.model_dump()), "again")) == config else "changes"
    except LeapRLError as error:
        return "" if len(str(error).splitlines()) == 1 else f"not one line: {error}"
    except HangError:
        return "hangs"
    except Exception:
        return traceback.format_exc()


VALUES = [
    "010", "008", "1:30", "1:00:00", "0x_", "0x1F", "0o17", "1_000", "1__0", "1e6", "1e308", "1e999", "-1", "0", ".5",
    "5.", ".inf", "-.inf", ".nan", "yes", "no", "on", "true", "True", "null", "~", "", "None", "2001-99-99",
    "!!int x", "!!float 3", "!!python/name:os.system", "&a [*a]", "*a", "<<: 1", "[", "[" * 2000, "{" * 2000,
    "{a: 1, a: 2}", "{1: 2}", "[1, 2]", '"\\U00110000"', '"\\ud800"', '"\\0"', '"\\e[2J"', "'", '"', "|", ">", "- a",
    "a: b", "%YAML 1.1", "---", "...", "\t", "9" * 5000, "-" + "9" * 30, "9223372036854775808", "x" * 400, "../..",
    "/dev/zero", "ray://1.2.3.4:5", "os.system", "pong", "[pong]", "[pong, pong]", "['x:y-v0']", "\x1b[0m", "\u202e",
    "é", "\ud800", "=", "a=b", "#", "? x", "@x", "`x`",
]  # fmt: skip


def draw_override(rng: random.Random) -> str:
    """A key, mostly one that there is, and a value, mostly one that was wrong somewhere."""
    key = rng.choice(all_keys())
    if rng.random() < 0.15:
        key = rng.choice(
            [key + "x", key.upper(), "", ".", key + ".y", key.partition(".")[0], "." + key, key + " ", "\0"]
        )
    value = rng.choice(VALUES)
    if rng.random() < 0.4:
        value = mutate(rng.choice(VALUES).encode(errors="surrogatepass")[:400], rng).decode(errors="replace")
    return f"{key}={value}" if rng.random() < 0.98 else key


def try_configurations(first: int, count: int, say: Callable[[str], None]) -> Counter[str]:
    """Parses overrides on a sound configuration. What is accepted must be read again as the same configuration."""
    counts: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(number)
        tree = nest({"run.dir": "run", **TINY})
        overrides = [draw_override(rng) for _ in range(rng.choice([1, 1, 1, 2]))]
        try:
            with limited(SECONDS):
                apply_overrides(tree, overrides)
                config = parse_config(tree)
                accepted = parse_yaml(dump_yaml(config.model_dump()), "again")
                wrong = "" if parse_config(accepted) == config else "is read again as another"
            counts["accepted"] += 1
        except LeapRLError as error:
            wrong = (
                "" if "\n" not in str(error) and len(str(error)) < 2000 else f"not one short line: {str(error)[:300]}"
            )
            counts["refused"] += 1
        except HangError:
            wrong = "hangs"
        except Exception:
            wrong = traceback.format_exc()
        if wrong:
            counts["failures"] += 1
            say(f"{number}: {str(overrides)[:300]}: {wrong}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("files", "configurations"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    attempt = try_files if options.what == "files" else try_configurations
    counts = attempt(options.first, options.count, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(dict(sorted(counts.items())), indent=1))
    return int(counts["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
