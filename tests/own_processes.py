"""Learning processes that strangers might write: each has one fault that ``check_process`` finds."""

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


class Forgetful(Sinusoids):
    def initial_parameters(self, config, seed):
        return {name: value.detach() for name, value in new_network().named_parameters()}


class Older(Sinusoids):
    interface = 0


FORGETFUL, OLDER, CLASS, NUMBER = Forgetful(), Older(), Sinusoids, 3
