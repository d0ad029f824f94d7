"""What the programs share before any of them computes: numbers and names of options, whose a folder is."""

import argparse
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from tools import fit_mean_face, install_pretrained

import evaluate
import pca_builder
import train
from asmnet_tf import export, files, predict
from asmnet_tf.files import InputError, owned

REQUIRED = {  # what a command line needs beside the option that is tried
    train: [],
    evaluate: ["model"],
    pca_builder: [],
    predict: [],
    export: ["model", "--to", "tflite"],
    install_pretrained: ["run", "name"],
    fit_mean_face: ["--output", "x.csv"],
}
NO_NUMBERS = ["nan", "inf", "-inf", "1e400", "", "1_0", "\u0663", "0x10", "1,5", "9" * 5000, "many"]
LIMITS = [  # program, option, what is taken, what is refused
    (train, "--seed", ["0", "4294967295"], ["-1", "4294967296", "1e3", "0.5"]),
    (train, "--epochs", ["1"], ["0", "-3", "1e3", "1.5"]),
    (train, "--batch-size", ["1"], ["0", "1e12"]),
    (train, "--lr", ["1e-5", "0.5"], ["0", "-1e-3", "1e9"]),
    (train, "--ema", ["0", "0.998"], ["1", "-0.1"]),
    (train, "--dropout", ["0"], ["1"]),
    (train, "--val-fraction", ["0", "0.5"], ["1", "-0.1"]),
    (train, "--pose-weight", ["0"], ["-1", "1e9"]),
    (train, "--weight-decay", ["0"], ["-1"]),
    (train, "--threads", ["2"], ["0", "100000"]),
    (train, "--limit", ["1"], ["0"]),
    (train, "--devices", ["CPU:0", "GPU:10"], ["GPU:-1", "GPU:\u0663", "GPU:999", "GPU:00"]),
    (train, "--name", ["mine", "a/b"], ["", " ", ".", "..", "../x", "a/../../x", "/tmp/x", "C:x", "..\\x"]),
    (pca_builder, "--pca-percent", ["0.1", "100"], ["0", "-5", "101"]),
    (evaluate, "--thresholds", ["0.08", "1"], ["0", "0.001", "1.5", "-0.1"]),
    (predict, "--camera", ["0"], ["-1", "99999999999"]),
    (predict, "--min-score", ["0"], ["1", "-1"]),
    (predict, "--min-quality", ["0", "1"], ["1.1", "-0.1", "high"]),
    (predict, "--frames", ["1"], ["0"]),
    (export, "--faces", ["2"], ["1", "1000000000"]),
]


def refused(program, words, capsys) -> str:
    """The one line that ends a program at its command line."""
    with pytest.raises(SystemExit) as end:
        program.parse_args([*REQUIRED[program], *words])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("program", "option", "taken", "wrong"), LIMITS, ids=lambda value: str(value)[:20])
def test_a_number_that_makes_no_sense_is_refused_in_one_line(program, option, taken, wrong, capsys):
    for text in taken:
        program.parse_args([*REQUIRED[program], option, text])
    for text in wrong:
        assert option in refused(program, [f"{option}={text}"], capsys)


@pytest.mark.parametrize("program", REQUIRED, ids=lambda program: program.__name__)
def test_no_option_takes_what_is_no_plain_number(program, monkeypatch, capsys):
    """Whatever options a program has: those with a type of their own that is no path and no choice."""
    found = []
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *a: found.append(self) or parse(self, *a))
    program.parse_args(REQUIRED[program])
    options = [
        (action.option_strings[0], action.nargs)
        for action in found[0]._actions
        if action.option_strings and callable(action.type) and action.type.__name__ not in ("Path", "run_name")
    ]
    for option, nargs in options:
        for text in NO_NUMBERS:
            more = [text] * (nargs - 1 if isinstance(nargs, int) else 0)
            assert option in refused(
                program, [f"{option}={text}", *more] if not more else [option, text, *more], capsys
            )


@pytest.mark.parametrize(
    "words", [["CPU:0", "CPU:0"], ["CPU:0", "--strategy", "one"], ["GPU:0", "--strategy", "multiworker"]]
)
def test_devices_that_would_be_ignored_are_refused(words, capsys):
    assert "--devices" in refused(train, ["--devices", *words], capsys)


def test_a_threshold_twice_is_refused(capsys):
    assert "--thresholds" in refused(evaluate, ["--thresholds", "0.08", "0.08"], capsys)


# --- one folder, one owner --------------------------------------------------------------------------------------------

OWNER = """
import sys, time
from asmnet_tf.files import owned
with owned(sys.argv[1]):
    open(sys.argv[1] + "/held", "w").close()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_owner_until_that_is_killed(tmp_path):
    folder = tmp_path / "runs/mine"
    repo = os.path.dirname(train.__file__)
    with subprocess.Popen([sys.executable, "-c", OWNER, folder], stdout=subprocess.PIPE, cwd=repo) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError) as error, owned(folder, "another --name"):
            pass
        told = [str(folder), str(other.pid), os.uname().nodename, "since 20", "choose another --name."]
        assert [words for words in told if words not in str(error.value)] == []
        other.send_signal(signal.SIGKILL)
    assert (folder / files._LOCK).exists()  # a killed process leaves it, and it counts no more
    with owned(folder):
        assert f"process {os.getpid()} on" in (folder / files._LOCK).read_text()
    assert [path.name for path in folder.iterdir()] == ["held"]


def test_a_folder_whose_file_system_has_no_locks_is_used_and_that_is_said(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with owned(tmp_path):
        assert capsys.readouterr().err.startswith(f"{tmp_path}: has no locks")


@pytest.mark.parametrize("text", ["", "{", "\x1b[2J"])
def test_a_lock_file_without_an_owner_stops_nobody(tmp_path, text):
    (tmp_path / files._LOCK).write_text(text)
    with owned(tmp_path):
        pass
    assert not (tmp_path / files._LOCK).exists()


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(ValueError, match="nothing"), owned(tmp_path / "new"):
        raise ValueError("nothing was written")
    assert not (tmp_path / "new").exists()
    with owned(tmp_path):
        pass
    assert tmp_path.exists()
