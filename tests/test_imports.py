"""Who imports whom: no circles, and the diagram in docs/architecture.md is that of the code."""

from pathlib import Path

from tools.imports import circles, diagram, module_graph, rooms


def test_no_module_imports_itself_by_way_of_others():
    graph = module_graph()
    assert graph["leap_rl.training"]
    assert circles(graph) == []
    assert circles(rooms(graph)) == []


def test_the_learner_needs_no_games_and_only_what_is_ray_s_imports_ray():
    reached, waiting = set(), ["leap_rl.meta.learner"]
    graph = module_graph()
    while waiting:
        reached |= {name := waiting.pop()}
        waiting += graph[name] - reached
    assert not [name for name in reached if "atari" in name or "rllib" in name or "evaluation" in name]
    users = [name for name in graph if "import ray" in text_of(name) or "from ray" in text_of(name)]
    assert all(name.startswith(("leap_rl.backends.", "leap_rl.rllib", "leap_rl.processes.rllib.")) for name in users)


def text_of(name):
    path = Path(*name.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def test_circles_are_found_also_through_imports_within_functions(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package import c\n")
    (package / "b.py").write_text("import package.a\ndef f():\n    from package.c import x\n")
    (package / "c.py").write_text("from package import b\nx = 1\n")
    graph = module_graph(package)
    assert graph == {
        "package": set(), "package.a": set(), "package.b": {"package.a", "package.c"}, "package.c": {"package.b"},
    }  # fmt: skip
    assert circles(graph) == [["package.b", "package.c"]]


def test_the_diagram_in_the_docs_is_drawn_from_the_code():
    assert diagram(rooms(module_graph())) in Path("docs/architecture.md").read_text()
