"""A2C on environments of Gymnasium's: tasks by name, encoders by space, exact recovery, one line for bad input."""

import inspect
import textwrap

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.spaces import Box

from leap_rl.config_files import parse_config
from leap_rl.processes import initial_parameters, resolve, start_process
from leap_rl.processes.a2c.network import Encoder
from leap_rl.processes.gymnasium.config import EnvConfig
from leap_rl.processes.gymnasium.envs import EnvVector, Spaces, arranged, make_env
from leap_rl.processes.gymnasium.names import expand, parse_name
from leap_rl.processes.gymnasium.networks import PlainEncoder, new_network
from leap_rl.testing import ProcessError, check_process
from leap_rl.types import BadInputError, Task, TaskError
from tests.helpers import nest

pytestmark = pytest.mark.usefixtures("one_torch_thread")
MODULE = "tests.some_envs"


def tree(*names, **changes):
    base = {
        "process": "gymnasium", "run": {"dir": "unused"}, "backend": "serial", "meta": {"steps": 1, "batch_size": 1,
        "lr": 0.1}, "tasks": {"environments": list(names)}, "task": {"agent_steps": 400}, "agent": {"lr": 1e-3,
        "num_envs": 2}, "env": {"modules": [MODULE]}, "stream": {"segment_updates": 7},
    }  # fmt: skip
    return nest(changes, base)


def configured(*names, **changes):
    return resolve(parse_config(tree(*names, **changes)))


def trained(config):
    name = config.tasks.environments[0]
    return list(start_process(config, Task(0, 0, name, 3), initial_parameters(config, 0)).walk())


# Names


def test_names_are_one_however_they_are_written():
    assert expand("cartpole") == ["cartpole"]
    assert expand("cartpole:length=1.30, gravity=12") == expand("cartpole:gravity=12,length=1.3")
    assert parse_name("FrozenLake-v1:is_slippery=false,map_name=8x8") == (
        "FrozenLake-v1", {"is_slippery": False, "map_name": "8x8"},
    )  # fmt: skip


def test_a_pattern_is_draws_within_its_limits_and_fewer_are_the_first_of_more():
    names = expand("50*cartpole:length=0.3..2,gravity=5..15,force=9")
    assert len(set(names)) == 50
    drawn = [parse_name(name)[1] for name in names]
    assert all(0.3 <= d["length"] <= 2 and 5 <= d["gravity"] <= 15 and d["force"] == 9 for d in drawn)
    assert np.ptp([d["length"] for d in drawn]) > 1
    assert expand("8*cartpole:force=9,gravity=5..15,length=0.3..2") == names[:8]
    assert [expand(name) for name in names] == [[name] for name in names]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cartpole:length=0.3..2", "stands for many tasks; write how many, e.g. 16*cartpole"),
        ("3*cartpole", "have an option with limits"),
        ("0*cartpole:length=1..2", "must be 1 to 10,000 tasks"),
        ("3*cartpole:length=2..1", "'2..1' must be two numbers, the lower one first"),
        ("3*cartpole:length=a..b", "must be two numbers"),
        ("3*cartpole:length=1..1.01", "its limits are so close that it has only 2 different tasks"),
        ("cartpole:length", "must be option=value"),
        ("my_module:My-v0", "a module that registers environments goes into env.modules"),
        ("cartpole:length=nan", "must be finite"),
        ("cartpole:length=1,length=2", "each option once"),
        ("cart pole", "must be an environment's id"),
    ],
)
def test_a_name_that_is_none_is_one_line(name, message):
    with pytest.raises(BadInputError, match=r"^[^\n]*$") as error:
        parse_config(tree(name))
    assert message in str(error.value)


def test_a_pool_is_divided_as_variants_are():
    config = parse_config(
        tree("20*cartpole:length=0.3..2", **{"tasks.split": {"validation": 3, "held_out": 5, "seed": 1}})
    )
    parts = config.tasks.environments, config.tasks.validation, config.tasks.held_out
    assert [len(part) for part in parts] == [12, 3, 5]
    assert parse_config(config.model_dump()).tasks == config.tasks


# Physics


def test_with_the_defaults_the_physics_are_gymnasium_s_and_options_change_them():
    config = EnvConfig()
    for ours, theirs in (("cartpole", "CartPole-v1"), ("acrobot", "Acrobot-v1")):
        same = [EnvVector(name, 2, config, seed=1) for name in (ours, theirs)]
        other = EnvVector(f"{ours}:{'masspole=0.3' if ours == 'cartpole' else 'mass_2=2'}", 2, config, seed=1)
        for action in np.random.default_rng(0).integers(0, 2, (20, 2)):
            seen = [vector.step(action).observations.copy() for vector in (*same, other)]
            assert np.array_equal(seen[0], seen[1])
        assert not np.array_equal(seen[0], seen[2])


def test_what_cartpole_derives_from_its_constants_follows_them():
    env, plain = make_env("cartpole:length=1,masspole=0.4,masscart=2", EnvConfig()).unwrapped, CartPoleEnv()
    plain.length, plain.masspole, plain.masscart = 1, 0.4, 2
    plain.polemass_length, plain.total_mass = 0.4, 2.4
    assert {k: v for k, v in vars(env).items() if isinstance(v, float)} == {
        k: v for k, v in vars(plain).items() if isinstance(v, float)
    }


def test_acrobot_s_gravity_is_the_one_in_gymnasium_s_equations():
    """They are those of Gymnasium's source, with another number in it."""
    source = textwrap.dedent(inspect.getsource(AcrobotEnv._dsdt))
    assert source.count("g = 9.8") == 1
    names = dict(vars(inspect.getmodule(AcrobotEnv)))
    exec(source.replace("g = 9.8", "g = 3.7"), names)
    env = make_env("acrobot:gravity=3.7,length_1=1.4,mass_2=0.6", EnvConfig()).unwrapped
    for state in np.random.default_rng(0).uniform(-3, 3, (20, 5)):
        np.testing.assert_allclose(env._dsdt(state), names["_dsdt"](env, state), rtol=1e-9, atol=1e-12)


# Spaces


@pytest.mark.parametrize(
    ("space", "inputs", "kind"),
    [
        (Box(-1, 1, (4,)), (4,), "linear"),
        (Box(-1, 1, (2, 3)), (6,), "linear"),
        (Box(0, 1, (10, 10, 4), bool), (4, 10, 10), "convolution"),
        (Box(0, 255, (7, 7, 3), np.uint8), (3, 7, 7), "convolution"),
        (Box(0, 255, (84, 84, 3), np.uint8), (3, 84, 84), "paper"),
        (Box(0, 255, (4, 84, 84), np.uint8), (4, 84, 84), "paper"),
        (Box(0, 255, (84, 84), np.uint8), (1, 84, 84), "paper"),
    ],
)
def test_the_encoder_follows_the_space(space, inputs, kind):
    batch = np.stack([space.sample() for _ in range(5)])
    seen = arranged(batch, space)
    assert seen.shape == (5, *inputs)
    network = new_network(Spaces(space, 3), 1.0)
    network.initialize(torch.Generator().manual_seed(0))
    logits, values = network(torch.from_numpy(np.ascontiguousarray(seen)))
    assert (logits.shape, values.shape) == ((5, 3), (5,))
    encoder = network.encoder
    found = "paper" if isinstance(encoder, Encoder) else "linear" if encoder.num_features == 64 else "convolution"
    assert found == kind


def test_images_keep_their_places():
    image = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)
    assert arranged(image, Box(0, 255, (5, 6, 3), np.uint8))[1, 2, 3, 4] == image[1, 3, 4, 2]


def test_the_gradient_of_a_plain_encoder_is_that_of_the_loss():
    config = configured("CartPole-v1", **{"agent.unroll": 3})
    process = start_process(config, Task(0, 0, "CartPole-v1", 3), initial_parameters(config, 0))
    assert isinstance(process.network.encoder, PlainEncoder)
    rollout = process.actor.unroll(process.network)
    out = torch.zeros_like(process.parameters)
    loss = process.network.loss_and_gradient(rollout, config.agent, out)
    logits, values = process.network(rollout.activations.inputs)
    advantages = rollout.returns.flatten() - values
    log_policy = torch.log_softmax(logits, -1)
    chosen = log_policy.gather(-1, rollout.actions.flatten()[:, None])[:, 0]
    entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
    total = -(advantages.detach() * chosen).mean() + 0.5 * advantages.square().mean() - 0.01 * entropy
    torch.testing.assert_close(loss.total, total.detach())
    expected = torch.autograd.grad(total, list(process.network.parameters()))
    torch.testing.assert_close(out, torch.cat([value.flatten() for value in expected]))


def test_scores_are_raw_and_an_episode_that_is_cut_goes_on_with_its_value():
    """Acrobot gives −1 a step; here every episode is cut after 5 steps."""
    config = configured("acrobot", **{"env.max_episode_steps": 5, "agent.reward_clip": 0.5, "agent.unroll": 10})
    process = start_process(config, Task(0, 0, "acrobot", 3), initial_parameters(config, 0))
    taken, take = [], process.actor.envs.step
    process.actor.envs.step = lambda actions: taken.append(take(actions)) or taken[-1]
    rollout = process.actor.unroll(process.network)
    counted = {name: rollout.statistics[name] for name in ("episodes", "score_sum", "episode_length_sum")}
    assert counted == {"episodes": 4, "score_sum": -20.0, "episode_length_sum": 20}
    last = taken[4]
    assert last.truncated.all()
    assert not last.terminated.any()
    for env, seen in last.final_observations.items():
        value = process.network(torch.from_numpy(seen)[None])[1].item()
        assert rollout.returns[4, env].item() == pytest.approx(-0.5 + 0.99 * value, abs=1e-5)
        assert not np.array_equal(seen, last.observations[env])


# What a process must keep


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks.environments": ["2*cartpole:length=0.3..1"], "meta.parameters": "all"},
        {"tasks.environments": ["Steps-v0"], "env": {"modules": [MODULE]}},
        {"tasks.environments": ["2*MinAtar/Breakout-v1:sticky_action_prob=0.1..0.9"], "agent.num_envs": 8},
        {"tasks.environments": ["FrozenLake-v1:map_name=8x8"], "env.max_episode_steps": 9},
        {"tasks.environments": ["Steps-v0:kind=dictionary"], "env": {"modules": [MODULE], "wrappers": [
            "gymnasium.wrappers:FlattenObservation", f"{MODULE}:Remembering", f"{MODULE}:offset"]}},
    ],
    ids=["cartpole", "image", "minatar", "discrete", "wrapped"],
)  # fmt: skip
@pytest.mark.slow
def test_it_is_continued_to_the_same_bits_in_another_process(changes):
    base = {"agent": {"lr": 1e-3, "num_envs": 2}, "task.agent_steps": 200, "stream.segment_updates": 2}
    check_process("gymnasium", base | changes)


@pytest.mark.slow
def test_an_environment_that_rolls_dice_of_its_own_is_found():
    changes = {
        "agent": {"lr": 1e-3, "num_envs": 2},
        "tasks.environments": ["Steps-v0:kind=dice"],
        "env.modules": [MODULE],
        "task.agent_steps": 200,
    }
    with pytest.raises(ProcessError, match="the same seed gives other increments"):
        check_process("gymnasium", changes)


def test_what_is_not_deterministic_is_not_continued():
    vector = EnvVector("Steps-v0:kind=dice", 8, EnvConfig(modules=[MODULE]), seed=1)
    for _ in range(20):
        vector.step(np.ones(8, np.int64))
    again = EnvVector("Steps-v0:kind=dice", 8, EnvConfig(modules=[MODULE]), seed=1)
    with pytest.raises(TaskError, match="it is not deterministic, and cannot be continued"):
        again.load_state(vector.state())


def test_heads_belong_to_an_id_whatever_its_options():
    config = configured("cartpole:length=1", "cartpole:length=2", "Acrobot-v1:render_mode=rgb_array",
                        **{"meta.parameters": "all", "env.wrappers": ["tests.test_gymnasium:six"]})  # fmt: skip
    names = initial_parameters(config, 0)
    assert {name.split("/")[1] for name in names if name.startswith("heads/")} == {"cartpole", "Acrobot-v1"}
    assert [names[f"heads/{owner}/policy.bias"].numel() for owner in ("cartpole", "Acrobot-v1")] == [2, 3]


def six(env):
    """Shows six numbers, whatever there are."""
    space = Box(-np.inf, np.inf, (6,), np.float32)
    return gymnasium.wrappers.TransformObservation(env, lambda seen: np.resize(seen, 6).astype(np.float32), space)


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated(tmp_path, run_main):
    changes = {"run.dir": str(tmp_path / "run"), "env.wrappers": [f"{MODULE}:offset"], "meta.parameters": "all"}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(tree("3*cartpole:length=0.3..2", **changes)))
    code, stdout, stderr = run_main("train", file, "tasks.held_out=[cartpole]", "meta.batch_size=3")
    assert code == 0, stderr
    given = """'env.modules=["tests.some_envs"]' 'env.wrappers=["tests.some_envs:offset"]'"""
    assert f"leap-rl evaluate {tmp_path / 'run'} {given}\n" in stdout
    command = "evaluate", tmp_path / "run", "backend=serial", "--seeds", "2"
    code, _, stderr = run_main(*command)
    assert (code, stderr.count("\n")) == (2, 1)
    assert "env.modules = ['tests.some_envs']: names what is on the machine where the run was made" in stderr
    code, _, stderr = run_main(*command, f"env.modules=[{MODULE}]", f"env.wrappers=[{MODULE}:offset]")
    assert code == 0, stderr
    assert "cartpole" in (tmp_path / "run-evaluation" / "report.md").read_text()


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks.environments": ["NoSuch-v0"]}, "tasks.environments = NoSuch-v0: NameNotFound: Environment `NoSuch`"),
        ({"tasks.environments": ["Pendulum-v1"]}, "its actions must be discrete, not Box(-2.0, 2.0, (1,), float32)"),
        ({"tasks.environments": ["Steps-v0:kind=continuous"]}, "its actions must be discrete"),
        ({"tasks.environments": ["Steps-v0:kind=sequence"]}, "its observations must be images, vectors, or what"),
        ({"tasks.environments": ["Steps-v0:kind=text"]}, "its observations must be images, vectors, or what"),
        ({"tasks.environments": ["Steps-v0:kind=broken"]}, "RuntimeError: no such display"),
        ({"tasks.environments": ["Steps-v0:colour=red"]}, "got an unexpected keyword argument 'colour'"),
        ({"tasks.environments": ["cartpole:lenght=1"]}, "cartpole:lenght=1: has no option lenght; did you mean length"),
        ({"tasks.environments": ["cartpole:length=-1"]}, "ValueError: length = -1: must be a number greater than 0"),
        ({"tasks.environments": ["cartpole:length=long"]}, "length = long: must be a number greater than 0"),
        ({"tasks.environments": ["cartpole", "acrobot"]}, "acrobot: shows (6,), but cartpole shows (4,): one encoder"),
        ({"tasks.held_out": ["acrobot"]}, "acrobot: shows (6,), but CartPole-v1 shows (4,)"),
        ({"tasks.environments": ["Steps-v0:side=40,channels_first=true"], "agent.num_envs": 900_000}, "GiB"),
        ({"env.modules": ["no_such_module"]}, "env.modules = no_such_module: cannot be imported: ModuleNotFoundError"),
        ({"env.wrappers": ["no_such:Thing"]}, "env.wrappers = no_such:Thing: no_such cannot be imported"),
        ({"env.wrappers": [f"{MODULE}:Missing"]}, f"env.wrappers = {MODULE}:Missing: {MODULE} has no Missing"),
        ({"env.wrappers": [f"{MODULE}:Nothing"]}, "TypeError: Nothing() takes no arguments"),
        ({"env.wrappers": ["Thing"]}, "Thing: must be module:NAME"),
        ({"env.wrappers": "gymnasium.wrappers:FlattenObservation"}, "env.wrappers = gymnasium.wrappers:Flatten"),
        ({"env": {"id": "CartPole-v1"}}, "env.id = CartPole-v1: unknown key"),
        ({"precision": "bf16"}, "precision = bf16: process = gymnasium computes in fp32"),
        ({"workers.cpus": 2}, "workers.cpus = 2: process = gymnasium steps its environments on one core"),
        ({"agent.layer_norm": True}, "agent.layer_norm = true: process = gymnasium does not have it"),
        ({"meta.rule": "maml"}, "meta.rule = maml: process = gymnasium does not have it"),
        ({"tasks.games": ["pong"]}, "tasks.games = [\"pong\"]: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(changes, message):
    with pytest.raises(BadInputError, match=r"^[^\n]*$") as error:
        configured("CartPole-v1", **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("undefined", "Steps-v0:kind=undefined: shows what is not finite: nan"),
        ("outside", "shows what is outside of its observation space: 2.0 at (0,), where -1.0 to 1.0 are allowed"),
        ("reward", "gives a reward that is not finite: nan"),
        ("raises", "lost its\nconnection"),
    ],
)
def test_an_environment_that_goes_wrong_ends_its_task(kind, message):
    config = configured(f"Steps-v0:kind={kind}")
    with pytest.raises((TaskError, RuntimeError)) as error:
        trained(config)
    assert message in str(error.value)


def test_an_episode_that_never_ends_is_cut(monkeypatch):
    monkeypatch.setattr("leap_rl.processes.gymnasium.envs.LONGEST", 20)
    increments = trained(configured("Steps-v0:kind=endless"))
    assert sum(increment.statistics["episodes"] for increment in increments) == 400 / 20
