"""What the shell around a command may hand over: streams that are closed or not read, encodings, empty variables,
directories that are gone."""

import errno
import io
import os
import shlex
import subprocess
import sys

import pytest

from tests.cli_helpers import environment, make_run, write_config
from tests.test_showing import SHORT, train


def shell(command, folder, **extra):
    """Runs a line of bash in a folder, in which ``leap-rl`` is ours."""
    program = f'leap-rl() {{ {shlex.quote(sys.executable)} -m leap_rl.cli "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", program + command], capture_output=True, text=True, timeout=600, cwd=folder,
        env=environment() | {"PYTHONPATH": os.getcwd()} | extra,
    )  # fmt: skip


# Streams


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_stops_no_command(tmp_path, closed):
    run = make_run(tmp_path, last=3)
    done = shell(f"leap-rl train {run} {closed}; echo code $? >code", tmp_path)
    assert (tmp_path / "code").read_text() == "code 0\n", done.stderr


def test_no_file_takes_the_number_of_a_stream_that_is_closed(tmp_path):
    script = (
        "import os\n"
        "from leap_rl import cli, commands\n"
        "def look(options):\n"
        "    os.write(os.open('numbers', os.O_CREAT | os.O_WRONLY),\n"
        "             ' '.join(os.readlink(f'/proc/self/fd/{number}') for number in range(3)).encode())\n"
        "    os.system('echo from a child; echo to stderr >&2')\n"
        "    print('said')\n"
        "    return 0\n"
        "commands.games = look\n"
        "raise SystemExit(cli.main(['games']))\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = shell(f"{shlex.quote(sys.executable)} script.py <&- >&- 2>&-; echo $? >code", tmp_path)
    assert (tmp_path / "code").read_text() == "0\n", done
    assert (tmp_path / "numbers").read_text() == " ".join([os.devnull] * 3)


class NobodyReads(io.StringIO):
    """The pipe of `leap-rl train … 2>&1 | head -1` after that line."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class NobodyReadsTheTerminal(NobodyReads):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [NobodyReads, NobodyReadsTheTerminal])
def test_a_run_whose_lines_nobody_reads_goes_on(tmp_path, stream):
    assert train(tmp_path, stream(), SHORT)[1] is not None
    assert (tmp_path / "run" / "checkpoints" / "000002" / "done").exists()


@pytest.mark.slow
def test_a_run_of_which_only_the_first_line_is_read_goes_on(tmp_path):
    config = write_config(tmp_path, SHORT)
    done = shell(f"leap-rl train {config} 2>&1 >/dev/null | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert (tmp_path / "run" / "initialization.safetensors").exists()
    done = shell(f"leap-rl train {config} 2>/dev/null | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), "nor is it an error where the result is not read"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_characters_that_an_encoding_lacks_are_escaped(tmp_path, encoding):
    run = make_run(tmp_path, last=3)
    for command in (f"show {run}", f"diff {run} {run}"):
        done = shell(f"leap-rl {command} | iconv -f latin1 -t utf-8; exit ${{PIPESTATUS[0]}}", tmp_path,
                     PYTHONIOENCODING=encoding)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), command


# Variables that are not set, and paths


@pytest.mark.parametrize("command", ["train", "show", "evaluate", "status", "export --to torch", "evaluate run --out"])
def test_an_empty_path_is_not_the_current_directory(tmp_path, monkeypatch, run_main, command):
    monkeypatch.chdir(make_run(tmp_path, last=3))
    before = sorted(os.listdir())
    code, _, stderr = run_main(*command.split(), "")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "is empty; it must be a path" in stderr
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", ["games", "show ../run", "train ../config.yaml", "train ."])
def test_a_current_directory_that_was_removed_is_said(tmp_path, command):
    make_run(tmp_path, last=3)
    done = shell(f"mkdir gone; cd gone; rmdir ../gone; leap-rl {command}", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the current directory cannot be used: No such file or directory; change to another one"
    )


@pytest.mark.parametrize("end", ["scratch/that is not mounted", "link"])
@pytest.mark.parametrize("below", ["", "/below", "/two/below"])
def test_a_link_that_leads_nowhere_is_no_run_directory(tmp_path, run_main, below, end):
    (tmp_path / "link").symlink_to(tmp_path / end)
    code, _, stderr = run_main("train", write_config(tmp_path), f"run.dir={tmp_path}/link{below}")
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/link is a symbolic link that leads nowhere" in stderr
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "link"]


def test_what_is_proposed_next_can_be_pasted_into_a_shell(tmp_path, run_main):
    folder = tmp_path / "my runs $1"
    folder.mkdir()
    run = make_run(folder, last=3)
    code, stdout, _ = run_main("train", run)
    assert code == 0
    proposed = [line for line in stdout.splitlines() if line.startswith("Look at")]
    assert [shlex.split(line)[-1] for line in proposed] == [str(run)] * 2


def test_a_section_of_which_nothing_is_left_is_said(tmp_path, run_main):
    file = write_config(tmp_path)
    file.write_text(f"{file.read_text()}\nlog:\n  # segments: false\n")
    code, _, stderr = run_main("train", file)
    assert (code, stderr) == (2, "error: log = null: must be a section, a dictionary of keys, or be left out\n")
