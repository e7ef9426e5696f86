"""Random models of small size, original against converted: `python tests/differential/run.py --minutes 60 --seed 0`.

Case n of seed s is made of the number s * 10^7 + n alone; `--case NUMBER` shows one again, made as small as its fault
allows. Work is done in a process that is started anew where ONNX Runtime or a library of it crashes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_STRIDE = 10**7
_MEMORY = "/dev/shm"  # where it is there, files are kept in memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, help="stop after so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes at work at a time")
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help="show one case alone")
    parser.add_argument("--steps", default="clean-up,prepare,convert")
    parser.add_argument("--original", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        return _show(given.case, given.steps.split(","))
    if given.original is not None:
        return _run_original(given.original)
    if given.worker:
        return _work(given)
    return _watch(given)


def _show(seed: int, steps: list[str]) -> int:
    from differential.case import make
    from differential.judge import Judge
    from differential.shrink import shrink, text

    case, judge = make(seed), Judge()
    findings = judge(case, steps)
    if not findings:
        print(text(case.model), dict(judge.seen), sep="\n")
        return 0
    kind = findings[0].kind
    small = shrink(case, lambda each: any(f.kind == kind for f in judge(each, steps)))
    print(text(small.model))
    for finding in judge(small, steps):
        print(f"{finding.kind}: {finding.step}: {finding.detail}")
    return 1


def _run_original(seed: int) -> int:
    """For a process that sees whether ONNX Runtime crashes on the original as well."""
    from differential.case import make
    from differential.runtimes import LEVELS, Model

    case = make(seed)
    model = Model(case.model)
    for level in LEVELS:
        model.run(case.feeds[0], level)
    return 0


def _work(given: argparse.Namespace) -> int:
    """Cases one after the other; findings and numbers are lines of JSON."""
    from differential.case import make
    from differential.judge import Judge

    _spare_time()
    judge, end = Judge(), time.monotonic() + 60 * given.minutes
    number = given.begin
    while time.monotonic() < end and (given.cases is None or number < given.cases):
        seed = given.seed * _STRIDE + number
        print(json.dumps({"at": number}), flush=True)
        with contextlib.redirect_stdout(sys.stderr):
            findings = judge(make(seed), given.steps.split(","))
        for finding in findings:
            print(json.dumps({"finding": vars(finding)}), flush=True)
        number += given.step
        print(json.dumps({"seen": judge.seen, "at": number}), flush=True)
        judge.seen.clear()
    return 0


def _spare_time() -> None:
    """Leave out what takes as long as the cases: disks, and collecting garbage among the objects of libraries."""
    if Path(_MEMORY).is_dir():
        tempfile.tempdir = _MEMORY
    from differential import judge  # noqa: F401 all that stays

    gc.collect()
    gc.freeze()


def _watch(given: argparse.Namespace) -> int:
    """Let processes go through every n-th case each."""
    begin, tallies = time.monotonic(), [Counter[str]() for _ in range(given.jobs)]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda job: _watch_one(given, job, begin, tallies[job]), range(given.jobs)))
    seen = sum(tallies, Counter[str]())
    found = seen.pop("findings", 0)
    minutes = (time.monotonic() - begin) / 60
    print(f"{seen['cases']} cases in {minutes:.1f} min, {found} findings", dict(seen), sep="\n")
    return int(found > 0)


def _watch_one(given: argparse.Namespace, job: int, begin: float, seen: Counter[str]) -> None:
    number = given.begin + job
    while (left := given.minutes - (time.monotonic() - begin) / 60) > 0 and (
        given.cases is None or number < given.cases
    ):
        command = [sys.executable, __file__, "--worker", "--seed", str(given.seed), "--begin", str(number)]
        command += ["--step", str(given.jobs), "--minutes", str(left), "--steps", given.steps]
        command += ["--cases", str(given.cases)] if given.cases is not None else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                told = json.loads(line)
                number = told.get("at", number)
                seen.update(told.get("seen", {}))
                if finding := told.get("finding"):
                    seen["findings"] += 1
                    print(f"{finding['seed']}: {finding['kind']}: {finding['step']}: {finding['detail']}", flush=True)
        if worker.returncode != 0:
            seed = given.seed * _STRIDE + number
            number += given.jobs
            again = [sys.executable, __file__, "--original", str(seed)]
            if subprocess.run(again, stderr=subprocess.DEVNULL).returncode:
                seen["ONNX Runtime crashes on the original"] += 1
                continue
            seen["findings"] += 1
            print(f"{seed}: crashes with code {worker.returncode}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
