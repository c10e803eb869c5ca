"""Carries out the commands of ``leap-rl``: each takes its options and returns the exit code.

Libraries are imported where they are needed, so that ``--help`` does not wait for torch.
"""

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from leap_rl.files.text import printable
from leap_rl.types import BadInputError


def train(options: argparse.Namespace) -> int:
    from leap_rl.presets import configuration_of

    config = configuration_of(options.config, options.overrides)

    from leap_rl.processes import process_of, resolve
    from leap_rl.runs.inspection import adopt_precision, describe, is_finished
    from leap_rl.runs.run import open_run
    from leap_rl.runs.run_files import read_metrics
    from leap_rl.runs.terminal import PlainConsole, summary_table
    from leap_rl.training import train_run

    config = resolve(adopt_precision(config))
    path = config.run.dir
    if is_finished(config):
        with open_run(config) as run:
            for line in run.notes:
                print(line, file=sys.stderr)
        print(f"{path}: finished, all {config.meta.steps} meta-steps are done", file=sys.stderr)
    else:
        train_run(config)
    state = describe(path)
    if options.json:
        print(json.dumps(state))
        return 0
    console = PlainConsole()
    if not console.is_terminal:
        console = PlainConsole(width=140)
    process, (named, paths) = process_of(config), _given_again(config)
    measures = process.measures
    console.print(summary_table(read_metrics(path), measures))
    end = (
        f"Path length and energy: how far the {measures.tasks}' parameters and losses had to travel, means over the\n"
        f"{measures.tasks}; a shorter path is what Leap trains for. {process.note}\n\n"
        f"The shared initialization: {path}/initialization.safetensors\n"
        f"fingerprint {state['fingerprint']}\n\n"
        f"Look at the curves:   tensorboard --logdir {shlex.quote(path)}\n"
        f"Look at the run:      leap-rl show {shlex.quote(path)}{named}\n"
        + (process.look_next or f"Does it help:         leap-rl evaluate {shlex.quote(path)}{named}{paths}")
    )
    print(printable(end))
    return 0


def sweep(options: argparse.Namespace) -> int:
    from leap_rl.runs.terminal import PlainConsole
    from leap_rl.sweep.grid import make_sweep
    from leap_rl.sweep.train import TABLE, rows, table, train_sweep

    sweep = make_sweep(options.config, options.overrides, options.halving, options.by)
    settings = train_sweep(sweep)
    if options.json:
        print(json.dumps(rows(sweep, settings)))
    else:
        console = PlainConsole()
        (console if console.is_terminal else PlainConsole(width=140)).print(table(sweep, settings))
        named, paths = _given_again(sweep.runs[0].config)
        best = f"{sweep.url}/{settings[0].runs[0].name}"
        print(printable(
            f"Better: the share of comparisons with the others, on the same tasks, that a setting wins.\n\n"
            f"Each run:             {sweep.url}/{TABLE}\n"
            f"Look at the curves:   tensorboard --logdir {shlex.quote(sweep.url)}\n"
            f"Does the best help:   leap-rl evaluate {shlex.quote(best)}{named}{paths}"
        ))  # fmt: skip
    return 0 if settings[0].state == "trained" else 1


def _given_again(config: Any) -> tuple[str, str]:
    """Returns the overrides without which a run's code is not imported, and its files are not read: of the process, and
    of the keys that name them."""
    from leap_rl.config import flatten
    from leap_rl.config_files import as_value

    values = dict(flatten(config.model_dump()))
    texts = {key: as_value(values[key]) for key in config.paths()}
    named = f" process={config.process}" if ":" in config.process else ""
    return named, "".join(f" {shlex.quote(f'{key}={text}')}" for key, text in texts.items())


def list_presets(options: argparse.Namespace) -> int:
    from leap_rl.config_files import load_config
    from leap_rl.presets import presets
    from leap_rl.processes import process_of

    rows = []
    for preset in presets():
        config = load_config(preset.path)
        steps = config.meta.steps * config.meta.batch_size * config.task_steps
        rows.append({"name": preset.name, "steps": steps, "unit": process_of(config).measures.step,
                     "summary": preset.summary, "path": str(preset.path)})  # fmt: skip
    if options.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['name']:20} {row['steps']:>13,} {row['unit']:15} {row['summary']}")
    print("\nTo train one: leap-rl train NAME. To change it: leap-rl train --copy NAME my.yaml")
    return 0


def resolve(options: argparse.Namespace) -> int:
    from leap_rl.config import flatten
    from leap_rl.config_files import as_value
    from leap_rl.files.yaml_files import dump_yaml
    from leap_rl.presets import configuration_of

    tree = configuration_of(options.config, options.overrides).model_dump()
    if options.only is None:
        print(dump_yaml(tree), end="")
        return 0
    values = dict(flatten(tree))
    if options.only not in values:
        raise BadInputError(
            f"--only {options.only}: not a key of this configuration (`leap-rl train --keys` lists all)"
        )
    print(as_value(values[options.only]))
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from leap_rl.evaluation.plan import make_plan
    from leap_rl.extras import require_extra
    from leap_rl.hub import pinned

    require_extra("report", "the report of an evaluation")
    given = (options.seeds, options.agent_steps, options.out, options.arms)
    plan = make_plan([pinned(source) for source in options.sources], options.overrides, options.games, *given)

    from leap_rl.backends import open_backend
    from leap_rl.evaluation.evaluate import check_directory, open_directory, run_evaluation, stages
    from leap_rl.evaluation.results import collect

    check_directory(plan)
    notes = list(plan.ignored)
    for tasks in stages(plan):
        with (
            contextlib.redirect_stdout(sys.stderr),
            open_backend(plan.config) as backend,
            open_directory(plan) as storage,
        ):
            while notes:
                print(f"note: {printable(notes.pop(0))}", file=sys.stderr)
            run_evaluation(plan, tasks, backend, storage)
            collect(plan, storage)
    return _write_report(plan.config.run.dir, options.json)


def play(options: argparse.Namespace) -> int:
    from leap_rl.extras import require_extra

    require_extra("report", "a clip")

    from leap_rl.evaluation.clip import FRAMES_A_SECOND, check_out, pictures, write_clip
    from leap_rl.evaluation.plan import make_plan

    _give(options.overrides)
    out = Path(options.out)
    check_out(out)
    for name, value, least in (("agent-steps", options.agent_steps, 0), ("seed", options.seed, 0),
                               ("seconds", options.seconds, 1)):  # fmt: skip
        if value < least:
            raise BadInputError(f"--{name} {value}: must be at least {least}")
    games = options.game and [options.game]
    seeds = options.seed + 1  # the clip shows the last of them, whose number is --seed
    plan = make_plan(options.sources, [], games, seeds, options.agent_steps or None, None)
    if options.game and len(plan.games) > 1:
        raise BadInputError(f"--game {options.game}: names {len(plan.games)} games; name one")
    plan = replace(plan, games=plan.games[:1])
    write_clip(pictures(plan, options.agent_steps, options.seconds * FRAMES_A_SECOND), out)
    print(out)
    return 0


def report(options: argparse.Namespace) -> int:
    _give(options.overrides)
    return _write_report(options.evaluation, options.json)


def _give(overrides: list[str]) -> None:
    """Imports the user's own process, so that the files of a run or an evaluation may name it. Refuses other
    overrides."""
    from leap_rl.processes.registry import import_named_process

    for override in overrides:
        if not override.startswith("process="):
            raise BadInputError(f"override {override!r}: only process=NAME can be given here")
    import_named_process(overrides)


def _write_report(url: str, as_json: bool) -> int:
    from leap_rl.evaluation.report import REPORT, write_report

    analysis = write_report(url)
    print(json.dumps({"evaluation": url} | analysis.to_json()) if as_json else f"{url}/{REPORT}")
    return 0


def push(options: argparse.Namespace) -> int:
    from leap_rl.backends import prepare_environment
    from leap_rl.export.push import push

    _give(options.overrides)
    prepare_environment("local")
    pushed = push(options.run, options.repository, options.private)
    print(json.dumps(pushed) if options.json else f"hub:{pushed['repository']}@{pushed['commit']}")
    return 0


def export(options: argparse.Namespace) -> int:
    from leap_rl.backends import prepare_environment
    from leap_rl.export.export import export_run

    _give(options.overrides)
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


def games(options: argparse.Namespace) -> int:
    from leap_rl.atari import games, variants

    if options.variants is not None:
        listed = variants.listed(options.variants)
        print(json.dumps(variants.to_json(listed)) if options.json else variants.describe_variants(listed))
    else:
        print(json.dumps(games.to_json()) if options.json else games.describe_games())
    return 0


def show(options: argparse.Namespace) -> int:
    from leap_rl.processes import process_type
    from leap_rl.runs.inspection import describe

    _give(options.overrides)
    state = describe(options.run)
    if options.json:
        print(json.dumps(state))
        return 0
    from leap_rl.files.yaml_files import dump_yaml

    measures = process_type(state["config"]["process"]).measures
    status = "finished" if state["finished"] else "not finished: the same `leap-rl train` command continues"
    amounts = f"{state['agent_steps']:,} {measures.step}, {state['frames']:,} {measures.frame}"
    lines = [
        f"{state['run']}: meta-step {state['meta_step']} of {state['meta_steps']}, {status}",
        f"fingerprint  {state['fingerprint']}",
        f"config hash  {state['config_hash']}",
        f"trained      {amounts}, {state['seconds']:,.0f} s",
        f"versions     {', '.join(f'{name} {value}' for name, value in sorted(state['versions'].items()))}",
        *(f"parameter    {name} {'×'.join(map(str, shape))}" for name, shape in state["parameters"].items()),
        *(f"note         {line}" for line in state["ignored"]),
        "",
        dump_yaml(state["config"]).rstrip(),
    ]
    print(printable("\n".join(lines)))
    return 0


def diff(options: argparse.Namespace) -> int:
    from leap_rl.evaluation.diff import describe_evaluations, diff_evaluations, is_evaluation
    from leap_rl.runs.diff import describe_diff
    from leap_rl.runs.diff import diff as diff_sources

    _give(options.overrides)
    evaluated = [is_evaluation(path) for path in (options.a, options.b)]
    if any(evaluated) and not all(evaluated):
        one, other = (options.a, options.b) if evaluated[0] else (options.b, options.a)
        raise BadInputError(f"{one}: is an evaluation, and {other} is not: two of a kind are compared")
    compare, describe = (diff_evaluations, describe_evaluations) if all(evaluated) else (diff_sources, describe_diff)
    found = compare(options.a, options.b)
    print(json.dumps(found) if options.json else describe(found))
    return 0


def status(options: argparse.Namespace) -> int:
    import time
    from dataclasses import asdict

    from leap_rl.extras import require_extra
    from leap_rl.files.storage import open_storage
    from leap_rl.runs.run_files import read_config
    from leap_rl.runs.status import describe_status, status_of

    _give(options.overrides)
    if options.html is not None:
        require_extra("report", f"--html {options.html}")
    while True:
        found = status_of(options.run)
        config = read_config(open_storage(options.run))
        if options.html is not None:
            from leap_rl.runs.status_page import status_page

            try:
                Path(options.html).write_text(status_page(found, config, options.watch), encoding="utf-8")
            except OSError as error:
                raise BadInputError(f"--html {options.html}: cannot be written: {error.strerror}") from None
        text = json.dumps(asdict(found)) if options.json else describe_status(found, config)
        clear = "\033[2J\033[H" if options.watch and sys.stdout.isatty() and not options.json else ""
        print(f"{clear}{text}", flush=True)
        if not options.watch or found.meta_step >= found.meta_steps:
            return 0
        time.sleep(5)


def plan(options: argparse.Namespace) -> int:
    from leap_rl.presets import configuration_of

    config = configuration_of(options.config, options.overrides)
    if options.hours is not None and not 0 < options.hours < 1e6:
        raise BadInputError(f"--hours {options.hours}: must be above 0 and below a million")

    from leap_rl.processes import resolve
    from leap_rl.runs import costs

    config = resolve(config)
    kinds = sorted({costs.kind_of(config, task.name) for tasks in costs.drawn(config) for task in tasks})
    trials = {}
    for kind in kinds:
        print(f"trying {printable(kind)} for {costs.TRIAL_SECONDS:g} s", file=sys.stderr)
        trials[kind] = costs.try_kind(config, kind, costs.TRIAL_SECONDS)
    found = costs.estimate(config, trials)
    if options.json:
        print(json.dumps(costs.to_json(found, trials)))
        return 0
    print(costs.describe_costs(config, found, trials, options.hours))
    return 0


def doctor(options: argparse.Namespace) -> int:
    from leap_rl.doctor import examine
    from leap_rl.presets import configuration_of

    problems = 0
    for finding in examine(configuration_of(options.config, options.overrides)):
        problems += finding.is_problem
        print(f"{'problem' if finding.is_problem else 'ok':8} {printable(' '.join(finding.text.split()))}", flush=True)
    print(f"\n{problems or 'no'} problem{'s' if problems != 1 else ''}")
    return 1 if problems else 0
