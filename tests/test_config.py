"""The configuration: what is read, what is refused and how, and what a resumed run may change."""

import pytest
from pydantic import ValidationError

from leap_rl.config import flatten
from leap_rl.config_files import describe_keys, load_config, parse_config
from leap_rl.types import BadInputError
from tests.helpers import MINIMAL, classification_config


def refusal(load, *overrides, text=MINIMAL):
    """The one line of a configuration that is refused."""
    with pytest.raises(BadInputError) as refused:
        load(*overrides, text=text)
    message = str(refused.value)
    assert "\n" not in message
    assert refused.value.exit_code == 2
    return message


# What is read


def test_the_minimal_configuration_is_read(load):
    config = load()
    assert (config.run.dir, config.meta.steps, config.task.agent_steps) == ("runs/test", 2, 1000)
    assert config.tasks.games == ["pong", "qbert", "asterix"]
    assert (config.backend, config.meta.metric, config.agent.num_envs) == ("ray", "energy", 32)  # defaults


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("010", 10),
        ("008", 8),
        ("0x10", 16),
        ("0o17", 15),
        ("1_000", 1000),
        ("+7", 7),
        ("1:30", None),
        ("1__0", None),
        ("0b11", None),
    ],
)
def test_integers_are_decimal_as_in_yaml_1_2(load, text, number):
    if number is not None:
        assert load(f"run.seed={text}").run.seed == number
        return
    with pytest.raises(BadInputError, match=f"run.seed = {text}: must be an integer"):
        load(f"run.seed={text}")


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("5e2", 500), (".5", 0.5), ("1", 1)])
def test_floats_may_be_written_as_people_write_them(load, text, number):
    """YAML 1.1 takes 1e-4 for text, since it has no point."""
    assert load(text=MINIMAL.replace("lr: 1e-4", f"lr: {text}")).agent.lr == number
    assert load(f"agent.lr={text}").agent.lr == number


def test_overrides_win_in_order_and_may_open_sections(load):
    config = load("meta.steps=20", "env.color=rgb", "tasks.games=[pong, SpaceInvaders]", "meta.steps=30")
    assert (config.meta.steps, config.env.color) == (30, "rgb")
    assert config.tasks.games == ["pong", "space_invaders"]
    assert config.meta.lr == 0.1


def test_an_override_may_be_null(load):
    assert load("agent.reward_clip=null").agent.reward_clip is None


def test_games_are_stored_by_their_canonical_names(load):
    config = load("tasks.games=[Pong, 'breakout:mode=4,difficulty=1', 'qbert:mode=0']", "tasks.held_out=[BeamRider]")
    assert config.tasks.games == ["pong", "breakout:mode=4,difficulty=1", "qbert"]
    assert config.tasks.held_out == ["beam_rider"]


@pytest.mark.parametrize(
    ("agent_steps", "num_updates"), [("161", 2), ("320", 2), ("321", 3), ("1_000", 7)]
)  # of 32 × 5 agent steps
def test_a_task_is_rounded_up_to_whole_updates(load, agent_steps, num_updates):
    assert load(f"task.agent_steps={agent_steps}").num_updates == num_updates


def test_without_the_loss_one_update_is_a_path(load):
    assert load("task.agent_steps=1", "meta.use_loss=false").num_updates == 1


def test_a_configuration_is_frozen(load):
    config = load()
    with pytest.raises(ValidationError, match="frozen"):
        config.backend = "serial"
    with pytest.raises(ValidationError, match="frozen"):
        config.meta.steps = 3


def test_what_is_dumped_is_read_back_the_same(load):
    config = load("meta.optimizer=adam", "agent.max_grad_norm=0.5")
    assert parse_config(config.model_dump()) == config


def test_every_key_is_described(load):
    described = dict(describe_keys())
    written = [
        key
        for config in (load(), classification_config(), load("process=rllib"), load_config("configs/physics.yaml"))
        for key, _ in flatten(config.model_dump())
    ]
    assert list(described) == sorted(set(written), key=list(described).index)
    assert described["meta.metric"].startswith("energy | length")
    assert described["meta.steps"].endswith("required")
    assert described["env.noop_max"].endswith("default 30")


# What is refused: (override, parts of the one line: key, value, what is allowed)

REFUSED = [
    # unknown keys, with the nearest one there is
    ("meta.batchsize=2", "meta.batchsize = 2: unknown key", "did you mean meta.batch_size?"),
    ("agent.entropy=0.01", "agent.entropy = 0.01: unknown key", "did you mean agent.entropy_cost?"),
    ("env.colour=rgb", "env.colour = rgb: unknown key", "did you mean env.color?"),
    ("met.steps=2", "met = ", "unknown key", "did you mean meta?"),
    ("zzz.qqq=1", "zzz = ", "unknown key"),
    ("log_segments=true", "log_segments = true: unknown key", "did you mean log.segments?"),
    # faults and streaming
    ("faults.min_tasks=0", "faults.min_tasks = 0", "greater than 0"),
    ("faults.min_tasks=3", "faults.min_tasks = 3", "at most meta.batch_size = 2"),
    ("faults.segment_timeout=0", "faults.segment_timeout = 0", "greater than 0"),
    ("stream.compression=zip", "stream.compression = zip", "'none', 'bf16' or 'int8'"),
    ("meta.schedule=async", "meta.schedule = async", "'synchronous', 'asynchronous' or 'continual'"),
    ("meta.schedule=continual", "meta.schedule = continual", "stream.segment_updates = 500 must be less than the 7 "),
    ("meta.max_staleness=0", "meta.max_staleness = 0", "greater than 0"),
    ("workers.per_node=0", "workers.per_node = 0", "greater than 0"),
    # wrong types; numbers in quotes are text
    ("meta.steps='2'", "meta.steps = ", "2", "integer"),
    ("meta.steps=2.0", "meta.steps = 2.0", "integer"),
    ("meta.steps=true", "meta.steps = true", "integer"),
    ("meta.steps=many", "meta.steps = many", "integer"),
    ("meta.steps=", "meta.steps = null", "integer"),
    ("meta.lr='0.1'", "meta.lr = ", "0.1", "number"),
    ("meta.lr=true", "meta.lr = true", "number"),
    ("meta.lr=[0.1]", "meta.lr = [0.1]", "number"),
    ("meta.use_loss=1", "meta.use_loss = 1", "boolean"),
    ("meta.use_loss='true'", "meta.use_loss = ", "true", "boolean"),
    ("run.dir=5", "run.dir = 5", "string"),
    ("run.dir=2026", "run.dir = ", "2026", "string"),
    ("tasks.games=pong", "tasks.games = pong", "list"),
    ("tasks.games=[pong, qbert, 3]", "tasks.games.2 = 3", "string"),
    ("meta=3", "meta = 3", "dictionary"),
    # one of a few
    ("backend=rya", "backend = rya", "'ray' or 'serial'"),
    ("meta.metric=lenght", "meta.metric = lenght", "'energy' or 'length'"),
    ("meta.rule=mamal", "meta.rule = mamal", "'leap', 'reptile', 'fomaml', 'maml', 'joint' or 'none'"),
    ("meta.rule=maml", "meta.rule = maml: process = a2c does not have it"),
    ("process=sac", "process = sac", "'a2c', 'classification', 'gymnasium' or 'rllib'"),
    ("process=classification", "tasks: only process = a2c, gymnasium or rllib has it", "not classification"),
    ("alphabets.train=3", "alphabets: only process = classification has it", "not a2c"),
    ("classifier.lr=0.1", "classifier: only process = classification has it", "not a2c"),
    ("meta.loss_difference=pared", "meta.loss_difference = pared", "'successive' or 'paired'"),
    ("agent.value_scale=pop", "agent.value_scale = pop", "'none' or 'popart'"),
    ("agent.value_gain=-1", "agent.value_gain = -1", "greater than or equal to 0"),
    ("agent.rmsprop_start=warm", "agent.rmsprop_start = warm", "'zeros', 'ones' or 'corrected'"),
    (
        "agent={lr: 0.1, optimizer: adam, rmsprop_start: ones}",
        "agent.rmsprop_start = ones",
        "agent.optimizer = rmsprop",
    ),
    ("meta.optimizer=rmsprop", "meta.optimizer = rmsprop", "'sgd', 'nesterov' or 'adam'"),
    ("meta.parameters=heads", "meta.parameters = heads", "'encoder' or 'all'"),
    ("env.color=RGB", "env.color = RGB", "'grey' or 'rgb'"),
    # out of range
    ("meta.steps=0", "meta.steps = 0", "greater than 0"),
    ("meta.batch_size=-1", "meta.batch_size = -1", "greater than 0"),
    ("task.agent_steps=0", "task.agent_steps = 0", "greater than 0"),
    ("task.agent_steps=-1", "task.agent_steps = -1", "greater than 0"),
    ("workers.count=0", "workers.count = 0", "greater than 0"),
    ("workers.count=-2", "workers.count = -2", "greater than 0"),
    ("workers.gpus=-1", "workers.gpus = -1", "greater than or equal to 0"),
    ("agent.num_envs=0", "agent.num_envs = 0", "greater than 0"),
    ("agent.unroll=-5", "agent.unroll = -5", "greater than 0"),
    ("stream.segment_updates=0", "stream.segment_updates = 0", "greater than 0"),
    ("run.keep_checkpoints=0", "run.keep_checkpoints = 0", "greater than 0"),
    ("run.seed=-1", "run.seed = -1", "greater than or equal to 0"),
    ("env.noop_max=-1", "env.noop_max = -1", "greater than or equal to 0"),
    ("env.sticky_actions=1.5", "env.sticky_actions = 1.5", "less than or equal to 1"),
    ("env.screen_size=20", "env.screen_size = 20", "greater than or equal to 36"),
    ("agent.discount=-0.1", "agent.discount = -0.1", "greater than or equal to 0"),
    ("agent.reward_clip=0", "agent.reward_clip = 0", "greater than 0"),
    ("meta.momentum=1", "meta.momentum = 1", "less than 1"),
    ("meta.lr=0", "meta.lr = 0", "greater than 0"),
    ("meta.max_task_norm=0", "meta.max_task_norm = 0", "greater than 0"),
    ("agent.lr=-1e-4", "agent.lr = -0.0001", "greater than 0"),
    # not a number, without an end
    ("meta.lr=.nan", "meta.lr = NaN", "finite number"),
    ("meta.lr=.inf", "meta.lr = Infinity", "finite number"),
    ("agent.lr=.nan", "agent.lr = NaN", "finite number"),
    ("agent.discount=.nan", "agent.discount = NaN", "less than or equal to 1"),
    ("env.sticky_actions=.nan", "env.sticky_actions = NaN", "less than or equal to 1"),
    ("meta.momentum=.nan", "meta.momentum = NaN", "less than 1"),
    ("agent.max_grad_norm=-.inf", "agent.max_grad_norm = -Infinity", "finite number"),
    # games
    ("tasks.games=[pong, qberd]", "tasks.games = ", "unknown game 'qberd'", "did you mean qbert?", "leap-rl games"),
    ("tasks.games=[pong, zzzz]", "tasks.games = ", "unknown game 'zzzz'", "leap-rl games"),
    ("tasks.held_out=[pnog]", "tasks.held_out = ", "unknown game 'pnog'", "did you mean pong?"),
    ("tasks.games=[pong, joust]", "tasks.games = ", "joust", "two players"),
    ("tasks.games=[pong, MazeCraze]", "tasks.games = ", "maze_craze", "two players"),
    ("tasks.games=[pong, 'breakout:mode=3']", "tasks.games = ", "breakout has mode 0, 4, 8", "not '3'"),
    ("tasks.games=[pong, 'breakout:mode=']", "tasks.games = ", "breakout has mode 0, 4, 8", "not ''"),
    ("tasks.games=[pong, 'breakout:difficulty=2']", "tasks.games = ", "breakout has difficulty 0-1", "not '2'"),
    ("tasks.games=[pong, 'breakout:mode=4,mode=0']", "tasks.games = ", "breakout:mode=4,mode=0", "mode"),
    ("tasks.games=[pong, 'breakout:level=3']", "tasks.games = ", "'level'", "mode and difficulty"),
    ("tasks.games=[pong, qbert, Pong]", "tasks.games = ", "pong is listed 2 times", "once"),
    ("tasks.games=[]", "tasks.games = []", "at least 1"),
    ("tasks.validation=[Qbert]", "tasks.validation = qbert", "is also in tasks.games"),
    ("tasks.validation=[breakout]", "tasks.held_out = breakout", "is also in tasks.validation"),
    ("tasks.validation=[pnog]", "tasks.validation = ", "unknown game 'pnog'", "did you mean pong?"),
    # patterns
    ("tasks.games=[pong, 'breakoot:*']", "tasks.games = ", "unknown game 'breakoot'", "did you mean breakout?"),
    ("tasks.games=[pong, 'breakout:lives=*']", "tasks.games = ", "'lives'", "mode and difficulty"),
    ("tasks.games=[pong, 'break*']", "tasks.games = ", "'break*'", "of one game", "breakout:mode=*"),
    ("tasks.games=[pong, '*']", "tasks.games = ", "'*'", "of one game", "breakout:mode=*"),
    ("tasks.games=[pong, 'qbert:mode=1*']", "tasks.games = ", "qbert has mode 0", "not '1*'"),
    ("tasks.games=[pong, breakout:mode=4,difficulty=*]", "tasks.games = ", "'difficulty=*'", "quote", "comma"),
    ("tasks.games=[pong, 'qbert:*', qbert, qbert]", "tasks.games = ", "qbert is listed 2 times", "once"),
    ("tasks.games=[pong, 'breakout:*']", "tasks.held_out = breakout", "is also in tasks.games"),
    # splits
    ("tasks.split.validation=-1", "tasks.split.validation = -1", "greater than or equal to 0"),
    ("tasks.split.held_out=0.2", "tasks.split.held_out = 0.2", "integer"),
    ("tasks.split.seed=-1", "tasks.split.seed = -1", "greater than or equal to 0"),
    ("tasks.split.test=4", "tasks.split.test = 4", "unknown key"),
    ("tasks.split.validation=1", "tasks.split: validation = 1, held_out = 0", "pong has the most, 1"),
    ("tasks.split.held_out=1", "tasks.split.held_out = 1", "tasks.held_out is given as well"),
    # impossible combinations
    ("meta.batch_size=4", "meta.batch_size = 4", "at most 3", "tasks.games"),
    ("tasks.games=[pong, breakout]", "tasks.held_out = breakout", "is also in tasks.games"),
    ("tasks.held_out=[Qbert]", "tasks.held_out = qbert", "is also in tasks.games"),
    ("meta={rule: reptile, steps: 2, batch_size: 2, lr: 0.1, metric: length}", "meta.metric = length", "not reptile"),
    ("meta={rule: none, steps: 2, batch_size: 2, lr: 0.1, stabilizer: false}", "meta.stabilizer = false", "not none"),
    ("meta={steps: 2, batch_size: 2, lr: 0.1, loss_difference: paired, use_loss: false}", "paired", "use_loss = true"),
    ("task.agent_steps=160", "task.agent_steps = 160", "more than 160", "agent.num_envs × agent.unroll"),
    ("env.max_episode_frames=30", "env.max_episode_frames = 30", "must exceed env.noop_max = 30"),
    ("workers.gpus=1", "workers.gpus = 1", "device = cuda"),
    ("device=cuda", "workers.gpus = 0", "device = cuda"),
    # overrides that are none
    ("meta.steps", "override 'meta.steps'", "key=value"),
    ("=3", "override '=3'", "key=value"),
    ("", "override ''", "key=value"),
    ("meta.steps.more=3", "override 'meta.steps.more=3'", "steps is not a section"),
    ("tasks.games=[pong", "override 'tasks.games=[pong'", "not YAML"),
    ("task={agent_steps: 300, agent_steps: 400}", "'agent_steps' is given twice"),
]


@pytest.mark.parametrize(("override", "parts"), [(row[0], row[1:]) for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_bad_value_is_refused_in_one_line_that_says_what_is_allowed(load, override, parts):
    message = refusal(load, override)
    for part in parts:
        assert part in message
    assert "(and " not in message  # nothing else is wrong with it


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("meta: [1, 2", ("not YAML", "line 1")),
        ("a: b: c", ("not YAML", "line 1")),
        (MINIMAL + "\tworkers: 2\n", ("not YAML", "line 14")),
        ("run: \0", ("not YAML",)),
        ("- meta\n- run\n", ("mapping", "not list")),
        ("meta", ("mapping", "not str")),
        ("", ("mapping", "not NoneType")),
        (MINIMAL + "run:\n  dir: elsewhere\n", ("line 14", "'run' is given twice")),
        (MINIMAL.replace("  lr: 0.1\n", "  lr: 0.1\n  lr: 0.2\n"), ("line 7", "'lr' is given twice")),
        (MINIMAL + "1: 2\n", ("line 14", "'1' is not text")),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line_that_says_where(load, text, parts):
    message = refusal(load, text=text)
    for part in ("config.yaml", *parts):
        assert part in message


@pytest.mark.parametrize("key", ["run.dir", "meta.steps", "meta.batch_size", "meta.lr", "tasks.games",
                                 "task.agent_steps", "agent.lr"])  # fmt: skip
def test_a_missing_key_is_named(load, key):
    leaf = key.rpartition(".")[2]
    section, _, rest = MINIMAL.partition(f"{key.partition('.')[0]}:\n")
    lines = rest.split("\n")
    lines.remove(next(line for line in lines if line.startswith(f"  {leaf}:")))
    if not lines[0].startswith(" "):  # nothing is left of the section
        lines.insert(0, "  {}")
    text = "\n".join([f"{section}{key.partition('.')[0]}:", *lines])
    assert refusal(load, text=text) == f"{key}: is missing and has no default"


def test_a_missing_section_is_named(load):
    assert refusal(load, text=MINIMAL.replace("agent:\n  lr: 1e-4\n", "")).startswith("agent: is missing")


def test_a_misspelled_key_is_named_although_the_right_one_is_now_missing(load):
    message = refusal(load, text=MINIMAL.replace("steps: 2", "step: 2"))
    assert "meta.step = 2: unknown key; did you mean meta.steps?" in message


def test_a_value_of_several_lines_is_shown_in_one(load):
    message = refusal(load, text=MINIMAL + 'backend: "ray\\nserial"\n')
    assert "'ray' or 'serial'" in message


def test_several_problems_are_counted(load):
    assert refusal(load, "meta.steps=0", "meta.lr=0").endswith("(and 1 more)")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"^config .*none\.yaml: No such file or directory$"):
        load_config(tmp_path / "none.yaml")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"^config .*: Is a directory$"):
        load_config(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match=r"^config .*config\.yaml: not UTF-8 text$"):
        load_config(tmp_path / "config.yaml")
