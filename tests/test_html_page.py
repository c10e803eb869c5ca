"""Pages that need no other file and no network: those of reports and of runs under way."""

import re
from html.parser import HTMLParser

from leap_rl.files.html_page import html_page
from leap_rl.files.text import as_text
from leap_rl.runs.run_files import METRICS, jsonl
from tests.cli_helpers import assert_one_line, make_run
from tests.test_evaluation import describe, simulated
from tests.test_report import write_evaluation

HOSTILE = "<script>alert(1)</script> ![x](http://elsewhere/x.png) [y](javascript:alert(1)) | & \"'"


class Page(HTMLParser):
    """The elements of a page, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_a_page_has_its_pictures_and_texts_in_it():
    picture = b"\x89PNG and so on"
    text = "# A title\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n![curves](curves.png)\n"
    page = Page(made := html_page("title", text, {"curves.png": picture}, {"Configuration": "run: <dir>\n"}))
    assert page.sources == ["data:image/png;base64,iVBORyBhbmQgc28gb24="]
    assert {"h1", "table", "img", "details"} <= set(page.tags)
    assert "run: <dir>" in page.text
    assert "refresh" not in made
    assert '<meta http-equiv="refresh" content="10">' in html_page("title", text, {}, {}, refresh=10)


def test_names_from_elsewhere_bring_nothing_into_a_page():
    made = html_page(HOSTILE, f"{HOSTILE}\n\n* **{as_text(HOSTILE)}**\n", {}, {HOSTILE: HOSTILE})
    page = Page(made)
    assert "script" not in page.tags
    assert not any("javascript" in source for source in page.sources)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'"), "a browser does not load the picture that is named"


def test_a_report_is_a_page_as_well(tmp_path, run_main):
    description = describe()
    write_evaluation(tmp_path, description, simulated(description, better=10))
    (tmp_path / "config.yaml").write_text("agent:\n  lr: 0.25\n")
    assert run_main("report", tmp_path)[0] == 0
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    assert page.tags.count("table") == (tmp_path / "report.md").read_text().count("--:|\n"), "a table for each there"
    assert "it helps" in page.text
    assert "lr: 0.25" in page.text


def test_a_run_under_way_is_a_page(tmp_path, run_main):
    run, page = make_run(tmp_path, last=1), tmp_path / "page.html"
    assert run_main("status", run, "--html", page)[0] == 0
    assert "img" not in Page(page.read_text()).tags, "there is nothing to draw yet"
    task = {"kind": "task", "meta_step": 0, "game": "pong", "seconds": 1.0, "episodic_return": 3.0}
    step = {"kind": "meta_step", "meta_step": 0, "agent_steps_per_second": 9.0, "seconds": 2.0, "path_length": 5.0}
    (run / METRICS).write_bytes(jsonl([task, step]))
    code, stdout, _ = run_main("status", run, "--html", page)
    assert code == 0
    made = Page(page.read_text())
    assert len(made.sources) == 1
    assert stdout.splitlines()[1] in made.text
    assert "optimizer: nesterov" in made.text
    assert_one_line(*run_main("status", run, "--html", tmp_path / "none" / "x.html"), "--html", "No such file")
