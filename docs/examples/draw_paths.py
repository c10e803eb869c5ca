"""Draws how a network learns waves that meta-training has not seen, from a random start and from an initialization.

python draw_paths.py runs/sinusoids paths.png
"""

import sys

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from sinusoids import new_network
from torch import Tensor, nn

from leap_rl.leap import PathAccumulator

STEPS, UNSEEN, AXIS = 100, range(110, 120), torch.linspace(-5, 5, 200)[:, None]


def learn(start: dict[str, Tensor], seed: int) -> tuple[Tensor, list[float], PathAccumulator, list[Tensor]]:
    """Returns the points of the path, the losses at them, the path's measures, and the wave as drawn and as learned."""
    amplitude, phase = torch.rand(2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([4.9, torch.pi])
    network, path, generator = new_network(), PathAccumulator(), torch.Generator().manual_seed(seed)
    network.load_state_dict(start)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    points, losses, shown = [], [], [(0.1 + amplitude) * torch.sin(AXIS + phase)]
    for step in range(STEPS):
        points.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone())
        x = 10 * torch.rand(10, 1, generator=generator) - 5
        loss = nn.functional.mse_loss(network(x), (0.1 + amplitude) * torch.sin(x + phase))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        path.record(loss, network)
        optimizer.step()
        if step in (9, STEPS - 1):
            shown.append(network(AXIS).detach())
    return torch.stack(points), losses, path, shown


def main(run: str, file: str) -> None:
    torch.manual_seed(0)
    starts = {
        "random start": new_network().state_dict(),
        "initialization": load_file(f"{run}/initialization.safetensors"),
    }
    learned = {name: [learn(start, seed) for seed in UNSEEN] for name, start in starts.items()}
    # The two directions in which the parameters move most, from wherever a path starts.
    moves = torch.cat([points - points[0] for paths in learned.values() for points, *_ in paths])
    directions = torch.pca_lowrank(moves, q=6, center=False)[2][:, :2]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    plane, curves, waves = figure.subplots(1, 3)
    waves.plot(AXIS, learned["initialization"][0][3][0], color="black")
    for colour, (name, paths) in zip(("0.6", "tab:orange"), learned.items(), strict=True):
        for points, *_ in paths:
            plane.plot(*((points - points[0]) @ directions).T, color=colour, linewidth=1)
        length = sum(path.path_length for _, _, path, _ in paths) / len(paths)
        print(f"{name}: mean path length {length:.1f}")
        curves.plot(torch.tensor([losses for _, losses, *_ in paths]).mean(dim=0), color=colour, label=name)
        _, early, late = paths[0][3]
        waves.plot(AXIS, early, ":", color=colour)
        waves.plot(AXIS, late, color=colour)
    plane.plot(0, 0, "o", color="black")
    plane.set(title=f"Paths on {len(UNSEEN)} unseen waves", xlabel="move in a first direction", ylabel="in a second")
    curves.set(title="Loss, mean over the waves", xlabel="gradient step", yscale="log")
    waves.set(title=f"A wave: 10 (dotted) and {STEPS} steps")
    curves.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
