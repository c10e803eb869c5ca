"""Snapshots of games go on as the games themselves: in mid-play, right after a reset, in emulators that are kept.

    python -m tests.snapshots --snapshots 300            every game; a game's name, or several: those alone

Nothing is played between a reset and a snapshot (env.noop_max = 0): the hardest case, since ALE's snapshot leaves out
whether a frame is half drawn.
"""

import argparse
from collections.abc import Sequence
from multiprocessing import Pool

import numpy as np
import torch

from leap_rl.atari.config import EnvConfig
from leap_rl.atari.games import catalogue, parse_game
from leap_rl.atari.vector import AtariVector

NUM_ENVS = 4
STEPS_AFTER = 5  # that a game and its snapshot are compared for
NOT_IN_PLAY = {"pitfall2"}  # its cartridge's counters of music differ, which nothing in the game reads


def differing(name: str, snapshots: int, seed: int = 0) -> tuple[int, int, int]:
    """How many snapshots went on otherwise, how many were taken, and how many of those right after a reset.

    Half of the rounds have episodes of a few frames, so that many snapshots are of games just reset; the other vector
    is in a state of its own each time, and is now and then replaced by one with kept emulators.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    game, bad, taken, resets = parse_game(name), 0, 0, 0
    while taken < snapshots:
        short = taken // (4 * NUM_ENVS) % 2 == 0
        config = EnvConfig(noop_max=0, screen_size=36, max_episode_frames=12 if short else 108_000)
        ours, theirs = (AtariVector(game, NUM_ENVS, config, seed=int(rng.integers(2**31))) for _ in range(2))

        def play(*vectors: AtariVector) -> list[tuple[bytes, ...]]:
            actions = rng.integers(vectors[0].num_actions, size=NUM_ENVS)
            steps = [vector.step(actions) for vector in vectors]
            return [(s.observations.tobytes(), s.rewards.tobytes(), s.terminated.tobytes()) for s in steps]

        for _ in range(int(rng.integers(1, 120))):
            play(ours)
        for _ in range(4):
            for vector in (ours, theirs):
                for _ in range(int(rng.integers(1, 12))):
                    play(vector)
            while short and not ours._just_reset.any():
                play(ours)
            resets += int((ours._just_reset).sum())
            theirs.load_state({key: value.clone() for key, value in ours.state().items()})
            equal = np.ones(NUM_ENVS, bool)
            for _ in range(STEPS_AFTER):
                seen = play(ours, theirs)
                equal &= seen[0] == seen[1]
            if name not in NOT_IN_PLAY:
                here, there = ours.state(), theirs.state()
                for env in range(NUM_ENVS):
                    equal[env] &= torch.equal(here[f"emulator/{env:04d}"], there[f"emulator/{env:04d}"])
            bad += int((~equal).sum())
            taken += NUM_ENVS
    return bad, taken, resets


def _line(arguments: tuple[str, int]) -> tuple[str, tuple[int, int, int]]:
    return arguments[0], differing(*arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("games", nargs="*", default=sorted(catalogue()))
    parser.add_argument("--snapshots", type=int, default=300, help="of each game")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    total = np.zeros(3, int)
    with Pool(options.processes) as pool:
        for name, counts in pool.imap_unordered(_line, [(game, options.snapshots) for game in options.games]):
            total += counts
            if counts[0]:
                print(f"{name}: {counts[0]} of {counts[1]} go on otherwise", flush=True)
    print(
        f"{len(options.games)} games, {total[1]} snapshots, {total[2]} right after a reset: {total[0]} go on otherwise"
    )


if __name__ == "__main__":
    main()
