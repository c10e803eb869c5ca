"""Learning processes that strangers might write: each has one fault that ``check_process`` finds."""

import dataclasses

import numpy as np
import torch

from docs.examples.sinusoids import Sinusoid, Sinusoids, new_network


class Lossless(Sinusoid):
    """Momentum that its state leaves out."""

    def setup(self):
        super().setup()
        self.kept = torch.zeros(1)

    def loss(self, step):
        loss, statistics = super().loss(step)
        self.kept = 0.9 * self.kept + loss.detach()
        return loss * (1 + self.kept.squeeze() / 1000), statistics


class Dice(Sinusoid):
    def loss(self, step):
        loss, statistics = super().loss(step)
        return loss * (1 + torch.rand(()) / 10), statistics


class Silent(Sinusoid):
    def loss(self, step):
        loss, statistics = super().loss(step)
        return loss, {name: value for name, value in statistics.items() if name != "frames"}


class Tiring(Sinusoid):
    """Counts frames in its first segment alone."""

    def walk(self):
        for number, increment in enumerate(super().walk()):
            if number:
                increment.statistics.pop("frames")
            yield increment


class Unwrapped(Sinusoid):
    """Hands out a statistic that only looks like a number."""

    def walk(self):
        for increment in super().walk():
            increment.statistics["frames"] = torch.tensor(increment.statistics["frames"])
            yield increment


class Listed(Sinusoid):
    def walk(self):
        for increment in super().walk():
            increment.meta_gradient.update({key: value.tolist() for key, value in increment.meta_gradient.items()})
            yield increment


class Counted(Sinusoid):
    """Has no fault: a loop may count in tensors and in NumPy's numbers."""

    def loss(self, step):
        loss, statistics = super().loss(step)
        counted = {"frames": torch.tensor(10), "steps": np.int64(1), "negative_loss_sum": -loss}
        return loss, statistics | counted | {"exact_sum": np.float32(0.5)}


class Renamed(Sinusoid):
    def walk(self):
        for increment in super().walk():
            increment.meta_gradient["theirs"] = increment.meta_gradient.pop("0.weight")
            yield increment


class Endless(Sinusoid):
    def walk(self):
        for increment in super().walk():
            yield type(increment)(**{**vars(increment), "last": False})


class Doubled(Sinusoid):
    """Counts the move across a cut twice."""

    def walk(self):
        for increment in super().walk():
            for value in increment.meta_gradient.values():
                value.mul_(1 + (self.step - 1) // self.config.stream.segment_updates)
            yield increment


def record(process):
    class Record(Sinusoids):
        def build(self, config, task):
            return process(config, task)

    return Record()


LOSSLESS, DICE, SILENT, RENAMED, ENDLESS, DOUBLED = map(record, (Lossless, Dice, Silent, Renamed, Endless, Doubled))
TIRING, UNWRAPPED, LISTED, COUNTED = map(record, (Tiring, Unwrapped, Listed, Counted))


class Forgetful(Sinusoids):
    def initial_parameters(self, config, seed):
        return {name: value.detach() for name, value in new_network().named_parameters()}


class Plain(Sinusoids):
    """Shows nothing but its score."""

    measures = dataclasses.replace(Sinusoids.measures, means={})


class Older(Sinusoids):
    interface = 0


FORGETFUL, PLAIN, OLDER, CLASS, NUMBER = Forgetful(), Plain(), Older(), Sinusoids, 3
