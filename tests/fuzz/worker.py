"""Reads damaged files in a process of its own: `python worker.py SANDBOX SEED KIND:FIRST:COUNT ... KIND=FILE ...`

One line of JSON on stdout for each file, before it is read ({"start": ...}) and for what went wrong; so what ends the
process, or stops it, is known by its last line. A file must be read within SECONDS, in MEGABYTES more than before, and
nothing outside SANDBOX may be written, no process started, nothing connected to and nothing unpickled.
"""

import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

SECONDS = 20
MEGABYTES = 1200  # an image of 16 bit a channel and as many pixels as are allowed takes as much
HARD_MEGABYTES = 3000  # beyond, allocating fails: the machine stays usable

_WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_FORBIDDEN = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"}
_events: list[str] = []


def _watch(sandbox: Path) -> None:
    """Notes every event that no reader may cause, through Python's audit hooks."""
    root = str(sandbox.resolve()) + os.sep

    def outside(path: object) -> bool:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        return isinstance(path, str) and path != os.devnull and not os.path.realpath(path).startswith(root)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
            if writes and outside(path):
                _events.append(f"wrote {path}")
        elif event in _WRITING and any(outside(path) for path in _paths(arguments)):
            _events.append(f"{event} {arguments}")
        elif event in _FORBIDDEN:
            _events.append(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)


def _paths(arguments: tuple) -> list[str]:
    """Returns the paths of an event, those relative to an open folder (`dir_fd`) made absolute."""
    folders = [a for a in arguments if isinstance(a, int) and a > 2 and os.path.isdir(f"/proc/self/fd/{a}")]
    base = os.readlink(f"/proc/self/fd/{folders[0]}") if folders else os.getcwd()
    return [os.path.join(base, os.fsdecode(a)) for a in arguments if isinstance(a, str | bytes)]


def _status(key: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def _limit_memory() -> None:
    limit = int(_status("VmData") + HARD_MEGABYTES) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _read(reader, path: Path) -> tuple[str | None, str | None]:
    """Returns what is wrong, None where the file was read or refused as it should be, and the words of the refusal."""
    from asmnet_tf.files import InputError

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = _status("VmRSS")
    _events.clear()
    problem, refusal = None, None
    # not handled, so they end the process even inside a native library; the first does not count while others run
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(20 * SECONDS)
    try:
        reader.read(path)
    except InputError as error:
        refusal = str(error)
        if not refusal.isprintable():
            problem = f"not one line: {refusal!r}"
        elif len(refusal) > 1000:
            problem = f"a line of {len(refusal)} characters"
    except BaseException:
        problem = traceback.format_exc()
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    if problem is None and _events:
        problem = _events[0]
    more = _status("VmHWM") - before
    if problem is None and more > MEGABYTES:
        problem = f"took {more:.0f} MB"
    return problem, refusal


def main(sandbox: Path, seed: int, jobs: list[str]) -> None:
    import numpy as np
    from mutations import mutate
    from readers import READERS

    warnings.simplefilter("ignore")
    _watch(sandbox)
    limited = False
    for job in jobs:
        kind, given = re.split("[:=]", job, maxsplit=1)
        reader = READERS[kind]
        folder = sandbox / kind
        if not folder.exists():
            folder.mkdir()
            reader.prepare(folder)
        path = folder / reader.name
        path.parent.mkdir(parents=True, exist_ok=True)
        seeds = reader.seeds()
        for content in seeds:  # valid files are read; also whatever is made at first use is made now
            path.write_bytes(content)
            reader.read(path)
        if not limited and reader.tensorflow:
            _limit_memory()
            limited = True
        if "=" in job:
            shutil.copyfile(given, path)
            print(json.dumps({"start": [kind, given]}), flush=True)
            problem, refusal = _read(reader, path)
            print(json.dumps({"case": [kind, given, problem, refusal]}), flush=True)
            continue
        first, count = map(int, given.split(":"))
        number = list(READERS).index(kind)
        for i in range(first, first + count):
            rng = np.random.default_rng([seed, number, i])
            k = int(rng.integers(len(seeds)))
            content = mutate(reader.name, seeds[k], seeds[:k] + seeds[k + 1 :], rng)
            path.write_bytes(content)
            print(json.dumps({"start": [kind, i]}), flush=True)
            problem, _ = _read(reader, path)
            if problem:
                print(json.dumps({"problem": [kind, i, problem]}), flush=True)
        print(json.dumps({"done": kind}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
