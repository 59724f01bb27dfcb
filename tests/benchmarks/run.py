"""graphc against its peers on ten workloads: alternating in one run, medians and their ratios.

    python tests/benchmarks/run.py [WORKLOAD ... | --others] [--threads 2] [--python NAME=PATH] [--out FILE]

Each contender works in a process of its own, one at a time, in turns; those that are not installed are left out. All
get the same arrays and parameters, and their losses must agree with graphc's. `--python tensorflow=path/to/python`
names the interpreter of a peer that lives in an environment of its own. `--out bench` writes bench.json and bench.png.

step    median of all turns                 first   seconds of the first call: build, compile, run; without imports
limit   the least that the machine needs for the step's arithmetic, or to read the bytes it moves (`limits`); then: just
        then, by the readings between the turns
memory  peak of what is resident during the steps, beyond the inputs (`worker`)
ratio   the fastest peer's step / graphc's
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import chart
import numpy as np
import workloads
from limits import Machine
from workloads import ALL, OTHERS, WORKLOADS, Workload

HERE = Path(__file__).parent
CONTENDERS = (
    "graphc", "torch-eager", "torch-compile", "torch-channels_last", "torch-compile_channels_last", "jax",
    "tensorflow-graph", "tensorflow-xla", "onnxruntime", "pytensor",
)  # fmt: skip
IMAGES = ("cnn", "resnet", "mobile", "dense")
TURNS = 8
TOLERANCE = 2e-3  # of a loss after three steps, relative; sums of many terms are added in other orders


class Worker:
    """A contender's process. It is stopped while it is not asked: threads that wait for work would spin into the turns
    of others."""

    def __init__(self, contender: str, workload: Workload, threads: int, file: Path, python: str) -> None:
        """`file` holds the arrays; what contenders would keep on disk from one run to the next goes beside it."""
        self.name = contender
        task = workload.name, workload.family, json.dumps(workload.sizes), workload.kind
        command = [python, str(HERE / "worker.py"), contender, *task, str(threads), str(file)]
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": f"{file.parent}/inductor",
            "PYTENSOR_FLAGS": f"base_compiledir={file.parent}/pytensor",
            "NUMBA_CACHE_DIR": f"{file.parent}/numba",
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **quiet, **caches},
        )  # fmt: skip
        self.times: list[float] = []

    def ask(self, command: str) -> dict[str, Any]:
        """An answer; {"error": ...} from a process that has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            return dict(json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            return {"error": "the process ended"}
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it, stopped or not."""
        if self.process.poll() is not None:
            return
        self.process.kill()
        self.process.communicate()


def measure(workload: Workload, options: argparse.Namespace, machine: Machine) -> dict[str, dict[str, Any]]:
    """One workload, by contender: `seconds` of a step, of the `first` call and of the `import`, `bytes`, `losses`; and
    for graphc the `limit` of the step between the turns."""
    given, state = workload.arrays(), workloads.parameters(workload)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:
        file = Path(folder) / "arrays.npz"
        np.savez(file, **{f"given/{k}": a for k, a in given.items()}, **{f"state/{k}": a for k, a in state.items()})
        workers = []
        for contender in options.contenders:
            if contender.endswith("channels_last") and workload.family not in IMAGES:
                continue
            python = options.pythons.get(contender.partition("-")[0], sys.executable)
            worker = Worker(contender, workload, options.threads, file, python)
            ended.callback(worker.close)  # who is stopped would not see that standard input ends
            answer = worker.ask("start")
            if "error" in answer:
                if "ModuleNotFound" not in answer["error"]:
                    print(f"  {contender}: {answer['error']}", file=sys.stderr)
                worker.close()
                continue
            workers.append(worker)
            other = Worker(contender, workload, options.threads, file, python)
            memory = other.ask("memory")
            other.close()
            if "error" in memory:
                print(f"  {contender}: no figure for memory: {memory.pop('error')}", file=sys.stderr)
            found[contender] = {**answer, **memory}
        check_losses(found)
        limits = []
        for _ in range(TURNS):
            limits.append(machine.seconds_now(workload.flops, workload.bytes))
            for worker in workers:
                worker.times += worker.ask(f"run {options.seconds / TURNS}")["times"]
        for worker in workers:
            found[worker.name]["seconds"] = median(worker.times)
            worker.close()
        found["graphc"]["limit"] = median(limits)
    return found


def check_losses(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Warn of a contender that computes something else than graphc."""
    wanted = found["graphc"]["losses"]
    for contender, answer in found.items():
        scale = max(1.0, *map(abs, wanted))
        if not np.allclose(answer["losses"], wanted, rtol=TOLERANCE, atol=TOLERANCE * scale):
            print(f"  {contender}: losses {answer['losses']}, not {wanted}", file=sys.stderr)


@dataclass(frozen=True)
class Line:
    """What was measured of a workload."""

    workload: Workload
    found: Mapping[str, Mapping[str, Any]]

    @property
    def own(self) -> Mapping[str, Any]:
        return self.found["graphc"]

    def ratios(self, key: str) -> dict[str, float]:
        """Each peer's figure over graphc's, the lowest first."""
        own = self.own.get(key)
        if not own:
            return {}
        found = {name: one[key] / own for name, one in self.found.items() if name != "graphc" and key in one}
        return dict(sorted(found.items(), key=lambda pair: pair[1]))

    @property
    def share_then(self) -> float:
        """Of the limit by the readings between the turns."""
        return float(self.own["limit"] / self.own["seconds"])

    @property
    def ratio(self) -> float | None:
        return next(iter(self.ratios("seconds").values()), None)

    def record(self, machine: Machine) -> dict[str, Any]:
        """For the JSON."""
        limit = machine.seconds(self.workload.flops, self.workload.bytes)
        return {
            "workload": self.workload.name,
            "limit": limit,
            "share": limit / self.own["seconds"],
            "share_then": self.share_then,
            "ratio": self.ratio,
            "contenders": self.found,
        }


def progress(line: Line) -> str:
    """One workload, as soon as it is measured."""
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in line.ratios("seconds").items())
    return f"{line.workload.name:12}{line.own['seconds'] * 1e3:10.3f} ms   x {ratios}"


def table(lines: Sequence[Line], machine: Machine) -> str:
    """All workloads: graphc against the limit, then against the best peer in time, first call and memory."""
    rows = [
        f"{'':12}{'step':>13}{'of limit':>10}{'then':>7}{'first call':>12}{'memory':>11}   "
        f"{'time: fastest peer':<32}{'first: quickest':<28}{'memory: leanest':<28}{'memory of torch':>15}"
    ]
    for line in lines:
        share = machine.seconds(line.workload.flops, line.workload.bytes) / line.own["seconds"]
        best = (_best(line.ratios(key)) for key in ("seconds", "first", "bytes"))
        torch = line.ratios("bytes").get("torch-eager")
        rows.append(
            f"{line.workload.name:12}{line.own['seconds'] * 1e3:10.3f} ms{share:9.0%} {line.share_then:7.0%}"
            f"{line.own['first']:10.2f} s"
            f"{line.own.get('bytes', math.nan) / 1e6:8.1f} MB   "
            "{:<32}{:<28}{:<28}".format(*best)
            + (f"{torch:15.2f}" if torch else "")
        )
    return "\n".join(rows)


def _best(ratios: Mapping[str, float]) -> str:
    return next((f"{ratio:6.2f} {name}" for name, ratio in ratios.items()), "     -")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--others", action="store_true", help=f"other sizes of the same families: {', '.join(OTHERS)}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=4.0, help="of steps, per contender and workload")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    parser.add_argument("--out", help="write OUT.json and OUT.png")
    options = parser.parse_args()
    options.pythons = dict(pair.split("=", 1) for pair in options.python)
    unknown = [name for name in options.workloads if name not in ALL]
    if unknown:
        parser.error(f"no workload {unknown[0]}; there are {', '.join(ALL)}")
    if "graphc" not in options.contenders:
        options.contenders.insert(0, "graphc")
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse_options()
    chosen = [ALL[name] for name in options.workloads or (OTHERS if options.others else WORKLOADS)]
    machine = Machine(options.threads, [workload.bytes for workload in chosen])
    lines = []
    machine.probe()
    for workload in chosen:
        lines.append(Line(workload, measure(workload, options, machine)))
        print(progress(lines[-1]), flush=True)
        machine.probe()
    print(f"\n{table(lines, machine)}\n\nlimits: {machine}")
    ratios = [line.ratio for line in lines if line.ratio]
    if ratios:
        print(f"geometric mean of fastest peer / graphc: {geometric_mean(ratios):.2f}")
    if options.out:
        records = [line.record(machine) for line in lines]
        document = {"threads": options.threads, "limits": machine.record(), "workloads": records}
        Path(f"{options.out}.json").write_text(json.dumps(document, indent=1) + "\n")
        chart.draw(records, CONTENDERS, str(machine), Path(f"{options.out}.png"))


if __name__ == "__main__":
    main()
