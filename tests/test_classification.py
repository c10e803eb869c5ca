"""The learning process of classification: beside torch's own modules, by identities, and to the same bits elsewhere."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leap_rl.config_files import load_config
from leap_rl.meta.ledger import Ledger
from leap_rl.processes import continue_process, initial_parameters, process_type, resolve, start_process
from leap_rl.processes.classification import maml
from leap_rl.processes.classification.data import held_out_batch, split
from leap_rl.processes.classification.network import draw_parameters, logits
from leap_rl.types import Start, Task, TaskError
from tests.alphabets import tiny_config, training_batch, write_zip
from tests.helpers import another_process, parcels

TASK = Task(0, 0, "Script_2", seed=11)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_zip(tmp_path_factory.mktemp("omniglot") / "images.zip")


@pytest.fixture
def start(archive):
    def start(task=TASK, **changes):
        config = tiny_config(archive, **changes)
        return start_process(config, task, initial_parameters(config, seed=0))

    return start


def assert_bits_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def total(increments):
    """The meta-gradient of a whole task, as a learner sums it."""
    ledger = Ledger(TASK, 0)
    for parcel in parcels(TASK, increments):
        ledger.receive(parcel)
    return ledger.total


# The network


class Reference(nn.Module):
    """The network as torch's modules have it, block by block in the paper's order."""

    def __init__(self, filters):
        super().__init__()
        self.encoder = nn.ModuleDict()
        for block in range(1, 5):
            self.encoder[f"conv{block}"] = nn.Conv2d(1 if block == 1 else filters, filters, 3, padding=1, bias=False)
            self.encoder[f"norm{block}"] = nn.BatchNorm2d(filters)
        self.head = nn.Linear(filters, 20)

    def forward(self, x):
        for block in range(1, 5):
            x = self.encoder[f"norm{block}"](self.encoder[f"conv{block}"](x))
            x = nn.functional.max_pool2d(nn.functional.relu(x), 2)
        return self.head(x.flatten(1))


def reference(parameters):
    network = Reference(len(parameters["encoder.norm1.weight"])).to(parameters["head.bias"].dtype)
    network.load_state_dict({**network.state_dict(), **parameters})
    return network.train()


def test_the_network_is_that_of_torchs_modules(archive):
    config = tiny_config(archive, **{"classifier.filters": 64})
    parameters = draw_parameters(config, seed=1)
    assert sum(value.numel() for value in parameters.values()) == 64 * 9 * (1 + 3 * 64) + 4 * 128 + 64 * 20 + 20
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20)
    leaves = {name: value.requires_grad_() for name, value in parameters.items()}
    ours = logits(leaves, images)
    network = reference({name: value.detach() for name, value in parameters.items()})
    theirs = network(images)
    assert torch.allclose(ours, theirs, atol=1e-5)
    gradients = torch.autograd.grad(F.cross_entropy(ours, labels), list(leaves.values()))
    F.cross_entropy(theirs, labels).backward()
    for name, gradient in zip(leaves, gradients, strict=True):
        assert torch.allclose(gradient, network.get_parameter(name).grad, atol=1e-5), name


def test_the_initial_parameters_are_drawn_as_torch_draws_them(archive):
    """The same ranges: of weights the uniform bound 1/√(inputs), which a large tensor nearly reaches."""
    for name, value in draw_parameters(tiny_config(archive, **{"classifier.filters": 64}), seed=1).items():
        theirs = Reference(64).get_parameter(name)
        assert value.shape == theirs.shape
        if theirs.ndim > 1:
            assert float(value.abs().max()) == pytest.approx(float(theirs.detach().abs().max()), rel=0.05)


def test_an_encoder_alone_is_meta_learned_where_that_is_asked_for(archive, start):
    config = tiny_config(archive, **{"meta.parameters": "encoder"})
    assert {name.partition(".")[0] for name in initial_parameters(config, 0)} == {"encoder"}
    one, other = (start(Task(0, 0, "Script_2", seed), **{"meta.parameters": "encoder"}) for seed in (1, 2))
    assert not torch.equal(one.parameters["head.weight"], other.parameters["head.weight"])
    assert torch.equal(one.parameters["encoder.conv1.weight"], other.parameters["encoder.conv1.weight"])
    assert {name.partition(".")[0] for name in next(one.walk()).meta_gradient} == {"encoder"}


def test_an_initialization_of_another_network_is_refused(archive):
    config, wide = tiny_config(archive), tiny_config(archive, **{"classifier.filters": 5})
    with pytest.raises(ValueError, match="does not fit the network"):
        start_process(config, TASK, initial_parameters(wide, 0))


# The inner loop


def test_the_inner_loop_is_sgd(start):
    """The same path with torch's modules and optimizer, step by step."""
    process = start()
    network = reference({name: value.clone() for name, value in process.parameters.items()})
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    increments = list(process.walk())
    losses, correct = [], 0
    for step in range(12):
        batch = training_batch(process.courses[0].problem, 8, process.courses[0].data_seed, step)
        outputs = network(batch.images)
        loss = F.cross_entropy(outputs, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct += int((outputs.argmax(1) == batch.labels).sum())
    for name, value in process.parameters.items():
        assert torch.allclose(value, network.get_parameter(name), atol=1e-4), name
    ledger = Ledger(TASK, 0)
    for parcel in parcels(TASK, increments):
        ledger.receive(parcel)
    statistics = ledger.reports[-1].statistics
    assert statistics["loss_sum"] == pytest.approx(sum(losses), rel=1e-4)
    assert (statistics["agent_steps"], statistics["frames"], statistics["images"]) == (12, 96, 96)
    assert statistics["correct"] == correct
    held_out = held_out_batch(process.courses[0].problem, process.courses[0].data_seed)
    with torch.no_grad():
        right = int((network(held_out.images).argmax(1) == held_out.labels).sum())
    assert (statistics["held_out_correct"], statistics["held_out_images"]) == (right, 100)
    assert [increment.statistics["held_out_images"] for increment in increments] == [0, 0, 100]
    measures = process_type("classification").measures
    assert measures.score_of(statistics) == correct / 96
    assert measures.held_out_score_of(statistics) == right / 100
    assert measures.held_out_score_of(increments[0].statistics) is None


def test_batch_norm_remembers_nothing(start):
    """Scoring a batch twice, with others in between, gives the same bits, and changes no state."""
    process = start()
    next(process.walk())
    before = process.state()
    first = process.held_out_correct()
    process._batch(3)
    assert process.held_out_correct() == first
    assert_bits_equal(process.state(), before)


def test_a_path_that_leaves_the_numbers_is_reported(start):
    with pytest.raises(TaskError, match=r"^non-finite .* at gradient step \d+$"):
        list(start(**{"classifier.lr": 1e30}).walk())


# Rules


def test_reptile_is_where_the_path_began_minus_where_it_ended(start):
    process = start(**{"meta.rule": "reptile", "stream.segment_updates": 12})
    first = {name: value.clone() for name, value in process.parameters.items()}
    [increment] = process.walk()
    assert_bits_equal(increment.meta_gradient, {n: v - process.parameters[n] for n, v in first.items()})


def test_first_order_maml_is_the_last_gradient_and_none_is_nothing(start):
    process = start(**{"meta.rule": "fomaml"})
    for _ in range(11):
        process.update()
    leaves = {name: value.clone().requires_grad_() for name, value in process.parameters.items()}
    batch = process._batch(11)
    F.cross_entropy(logits(leaves, batch.images), batch.labels).backward()
    found = total(start(**{"meta.rule": "fomaml"}).walk())
    for name, leaf in leaves.items():
        assert torch.allclose(found[name], leaf.grad, rtol=1e-5, atol=1e-7), name
    assert all(not value.any() for value in total(start(**{"meta.rule": "none"}).walk()).values())


def test_the_joint_rule_keeps_a_head_for_each_alphabet(archive, start):
    """Reptile on the shared encoder and on the alphabet's own head; other alphabets' heads are left alone."""
    config = tiny_config(archive, **{"meta.rule": "joint", "meta.parameters": "encoder"})
    alphabets = split(config.alphabets).training
    first = initial_parameters(config, 0)
    heads = {f"heads/{name}/head.{end}" for name in alphabets for end in ("weight", "bias")}
    assert {name for name in first if name.startswith("heads/")} == heads
    assert not torch.equal(*(first[f"heads/{name}/head.weight"] for name in alphabets[:2]))
    process = start_process(config, Task(0, 0, alphabets[1], 3), first)
    own = f"heads/{alphabets[1]}/head.weight"
    assert torch.equal(process.parameters["head.weight"], first[own])
    state = process.state()
    found = total(process.walk())
    assert {name for name in found if name.startswith("heads/")} == {own, own.replace("weight", "bias")}
    assert torch.allclose(found[own], first[own] - process.parameters["head.weight"], atol=1e-6)
    again = total(continue_process(config, process.task, state).walk())
    assert_bits_equal(again, found)
    shared = {name: value for name, value in first.items() if not name.startswith("heads/")}
    evaluation = tiny_config(archive, **{"meta.parameters": "encoder"})  # is under no rule that keeps heads
    evaluated = start_process(evaluation, Task(0, 0, alphabets[1], 3, Start("run")), shared)
    assert set(evaluated.names) == set(shared), "an evaluation's head is the task's own"


def test_paired_losses_are_of_one_batch(start):
    """Gradient descent with a small step lowers the loss of the batch it was taken on, every time."""
    paired = list(start(**{"meta.loss_difference": "paired", "classifier.lr": 1e-3}).walk())
    successive = list(start(**{"classifier.lr": 1e-3}).walk())
    assert sum(increment.path.rises for increment in paired) == 0
    assert sum(increment.path.moves for increment in paired) == 12
    assert sum(increment.path.rises for increment in successive) > 0
    assert sum(increment.path.moves for increment in successive) == 11


def test_a_path_in_segments_sums_to_the_path(start):
    whole, pieces = total(start(**{"stream.segment_updates": 12}).walk()), total(start().walk())
    for name, value in whole.items():
        assert torch.allclose(value, pieces[name], atol=1e-6), name


# MAML


def quadratic(curvature, middle):
    return lambda parameters: 0.5 * curvature * (parameters["x"] - middle) ** 2


def test_maml_on_quadratics_by_hand():
    """fⁱ = aᵢ (x − cᵢ)² / 2: every step is x ← x − α aᵢ (x − cᵢ), whose derivative is 1 − α aᵢ."""
    curvatures, middles, lr, x = (1.0, 3.0, -2.0, 0.5), (0.0, 1.0, 2.0, -1.0), 0.1, 0.7
    losses = [quadratic(a, c) for a, c in zip(curvatures, middles, strict=True)]
    found = maml.unrolled_gradient({"x": torch.tensor(x, dtype=torch.float64)}, losses, lr)
    for a, c in list(zip(curvatures, middles, strict=True))[:-1]:
        x -= lr * a * (x - c)
    expected = curvatures[-1] * (x - middles[-1]) * math.prod(1 - lr * a for a in curvatures[:-1])
    assert float(found["x"]) == pytest.approx(expected, rel=1e-12)


def batch_loss(batch, parameters):
    return F.cross_entropy(logits(parameters, batch.images), batch.labels)


@pytest.fixture
def unrolled(start):
    """Five steps on the network in float64: where they start, and their losses."""
    process = start()
    point = {name: value.double() for name, value in process.parameters.items()}
    batches = [process._batch(step) for step in range(6)]
    batches = [batch._replace(images=batch.images.double()) for batch in batches]
    return point, [functools.partial(batch_loss, batch) for batch in batches]


def end_of(point, losses, lr, create_graph=False):
    """The last loss after steps on the others, through a graph of all of it where that is asked for."""
    for loss in losses[:-1]:
        leaves = {n: v if create_graph else v.detach().requires_grad_() for n, v in point.items()}
        found = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=create_graph)
        point = {name: value - lr * g for (name, value), g in zip(leaves.items(), found, strict=True)}
    return losses[-1](point)


def test_maml_is_the_gradient_through_the_unrolled_graph(unrolled):
    point, losses = unrolled
    leaves = {name: value.clone().requires_grad_() for name, value in point.items()}
    expected = torch.autograd.grad(end_of(leaves, losses, 0.1, create_graph=True), list(leaves.values()))
    for (name, value), gradient in zip(maml.unrolled_gradient(point, losses, 0.1).items(), expected, strict=True):
        assert torch.allclose(value, gradient, rtol=1e-6, atol=1e-9), name


def smooth_loss(inputs, targets, parameters):
    return ((torch.tanh(inputs @ parameters["w"]) @ parameters["v"] - targets) ** 2).mean()


def test_maml_is_the_slope_of_what_training_ends_in():
    """Against finite differences along random directions, which know nothing of the formula. (Of a smooth network: the
    kinks of ReLU and pooling spoil them.)"""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    point = {"w": draw(3, 5), "v": draw(5)}
    losses = [functools.partial(smooth_loss, draw(8, 3), draw(8)) for _ in range(6)]
    gradient = maml.unrolled_gradient(point, losses, 0.1)
    for _ in range(5):
        direction = {name: draw(*value.shape) for name, value in point.items()}
        slope = sum(float((gradient[name] * direction[name]).sum()) for name in point)
        up, down = (
            end_of({n: v + s * direction[n] for n, v in point.items()}, losses, 0.1).item() for s in (1e-5, -1e-5)
        )
        assert (up - down) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_maml_without_a_step_between_is_first_order_maml(unrolled):
    point, losses = unrolled
    last = torch.func.grad(losses[-1])(point)
    assert_bits_equal(maml.unrolled_gradient(point, losses, lr=0.0), last)
    assert_bits_equal(maml.unrolled_gradient(point, losses[-1:], lr=0.1), last)


@pytest.mark.parametrize("parameters", ["all", "encoder"])
def test_the_rule_maml_gives_the_gradient_of_the_whole_task_with_its_last_segment(start, parameters):
    """Also where the heads are not meta-learned: they take part in the steps."""
    changes = {"meta.rule": "maml", "meta.parameters": parameters}
    process = start(**changes)
    losses = [functools.partial(batch_loss, process._batch(step)) for step in range(12)]
    expected = maml.unrolled_gradient(dict(process.parameters), losses, 0.1)
    increments = list(process.walk())
    assert all(not value.any() for increment in increments[:-1] for value in increment.meta_gradient.values())
    for name, value in increments[-1].meta_gradient.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6), name
    first_order = total(start(**changes | {"meta.rule": "fomaml"}).walk())
    assert not torch.allclose(increments[-1].meta_gradient["encoder.conv1.weight"], first_order["encoder.conv1.weight"])


# The state


def walk_on(config, state):
    """In another process: goes on from ``state`` for a segment. Returns its state."""
    process = continue_process(config, TASK, state)
    next(process.walk())
    return process.state()


def test_an_interrupt_in_torchscript_is_an_interrupt(monkeypatch):
    def interrupted(*_):
        raise RuntimeError("The following operation failed in the TorchScript interpreter.\nKeyboardInterrupt: <EMPTY>")

    monkeypatch.setattr(torch.func, "jvp", interrupted)
    with pytest.raises(KeyboardInterrupt):
        maml.unrolled_gradient({"x": torch.tensor([1.0])}, [lambda point: (point["x"] ** 2).sum()] * 2, 0.1)


@pytest.mark.parametrize("rule", ["leap", "maml"])
def test_a_process_goes_on_elsewhere_to_the_same_bits(archive, start, rule):
    """Three segments at once; and one here, one in another process, and one here again."""
    changes = {"meta.rule": rule, "stream.segment_updates": 2}
    straight, process = start(**changes), start(**changes)
    next(process.walk())
    config = tiny_config(archive, **changes)
    with another_process() as pool:
        elsewhere = pool.submit(walk_on, config, process.state()).result()
    back, walk = walk_on(config, elsewhere), straight.walk()
    for _ in range(3):
        next(walk)
    assert_bits_equal(back, straight.state())
    assert_bits_equal(total(continue_process(config, TASK, back).walk()), total(walk))


def test_the_state_shares_no_memory_with_the_process(start):
    process = start(**{"meta.rule": "maml"})
    next(process.walk())
    state = process.state()
    kept = copy.deepcopy(state)
    process.update()
    assert_bits_equal(state, kept)
    with pytest.raises(RuntimeError, match="cut"):
        process.state()


def test_the_quickstart_starts(monkeypatch):
    """The configuration as it is, on the real glyphs: one gradient step."""
    config = resolve(load_config("configs/glyphs_quickstart.yaml"))
    process = start_process(config, Task(0, 0, "hebrew", 1), initial_parameters(config, 0))
    process.update()
    assert process.segment.loss == pytest.approx(math.log(20), abs=1.0)
