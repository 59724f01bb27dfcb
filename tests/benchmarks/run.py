"""graphc against its peers on ten workloads: alternating in one run, medians and their ratios.

    python tests/benchmarks/run.py [WORKLOAD ...] [--threads 2] [--seconds 4] [--python NAME=PATH] [--out FILE]

Each contender works in a process of its own, one at a time, in turns; those that are not installed are left out. All
get the same arrays and parameters, and their losses must agree with graphc's. `--python tensorflow=path/to/python`
names the interpreter of a peer that lives in an environment of its own. `--out bench` writes bench.json and bench.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import limits
import numpy as np
import workloads
from workloads import WORKLOADS, Workload

HERE = Path(__file__).parent
CONTENDERS = (
    "graphc", "torch-eager", "torch-compile", "torch-channels_last", "jax", "tensorflow-graph", "tensorflow-xla",
    "onnxruntime",
)  # fmt: skip
IMAGES = ("cnn", "resnet")
TOLERANCE = 2e-3  # of a loss after three steps, relative; sums of many terms are added in other orders


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, workload: Workload, threads: int, file: Path, python: str) -> None:
        self.name = contender
        command = [python, str(HERE / "worker.py"), contender, workload.name, workload.kind, str(threads), str(file)]
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **quiet},
        )  # fmt: skip
        self.times: list[float] = []

    def ask(self, command: str) -> dict[str, Any]:
        """An answer; {"error": ...} from a process that has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            return dict(json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            return {"error": "the process ended"}

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def measure(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """One workload: per contender the median seconds of a step, those of the first call, and memory."""
    given, state = workload.arrays(), workloads.parameters(workload)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"
        np.savez(file, **{f"given/{k}": a for k, a in given.items()}, **{f"state/{k}": a for k, a in state.items()})
        workers = []
        for contender in options.contenders:
            if contender.endswith("channels_last") and workload.name not in IMAGES:
                continue
            python = options.pythons.get(contender.partition("-")[0], sys.executable)
            worker = Worker(contender, workload, options.threads, file, python)
            answer = worker.ask("start")
            if "error" in answer:
                if "ModuleNotFound" not in answer["error"]:
                    print(f"  {contender}: {answer['error']}", file=sys.stderr)
                worker.close()
                continue
            workers.append(worker)
            found[contender] = answer
        wanted = found["graphc"]["losses"]
        for contender, answer in found.items():
            scale = max(1.0, *map(abs, wanted))
            if not np.allclose(answer["losses"], wanted, rtol=TOLERANCE, atol=TOLERANCE * scale):
                print(f"  {contender}: losses {answer['losses']}, not {wanted}", file=sys.stderr)
        rounds = 8
        for _ in range(rounds):
            for worker in workers:
                worker.times += worker.ask(f"run {options.seconds / rounds}")["times"]
        for worker in workers:
            found[worker.name]["seconds"] = median(worker.times)
            worker.close()
    return found


def report(workload: Workload, found: dict[str, Any], peak: float, speed: float) -> dict[str, Any]:
    """One line, and what it says."""
    own = found["graphc"]
    peers = {name: answer["seconds"] for name, answer in found.items() if name != "graphc"}
    best = min(peers, key=lambda name: peers[name], default=None)
    limit = max(workload.flops / peak if not workload.bytes else 0.0, workload.bytes / speed)
    line = {
        "workload": workload.name,
        "ms": own["seconds"] * 1e3,
        "limit": limit / own["seconds"],
        "first": own["first"],
        "MB": own["bytes"] / 1e6,
        "best": best,
        "ratio": peers[best] / own["seconds"] if best else None,
        "ratios": {name: seconds / own["seconds"] for name, seconds in peers.items()},
        "all": found,
    }
    others = "  ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(line["ratios"].items(), key=lambda p: p[1]))
    ratio = f"{line['ratio']:5.2f}" if best else "    -"
    print(
        f"{workload.name:12} {line['ms']:9.3f} ms  {100 * line['limit']:4.0f} %  {line['first']:5.2f} s "
        f"{line['MB']:7.1f} MB  {ratio}  {others}",
        flush=True,
    )
    return line


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """Bars: each contender's time over graphc's, per workload."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in CONTENDERS if any(name in line["all"] for line in lines)]
    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [n + number * width for n, line in enumerate(lines) if name in line["all"]]
        heights = [
            line["all"][name]["seconds"] / line["all"]["graphc"]["seconds"] for line in lines if name in line["all"]
        ]
        axes.bar(places, heights, width, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks([n + 0.4 - width / 2 for n in range(len(lines))], [line["workload"] for line in lines])
    axes.set_ylabel("time of a step / graphc's")
    axes.legend(ncols=4, fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=4.0, help="of steps, per contender and workload")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    parser.add_argument("--out", help="write OUT.json and OUT.png")
    options = parser.parse_args()
    options.pythons = dict(pair.split("=", 1) for pair in options.python)
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload {unknown[0]}; there are {', '.join(WORKLOADS)}")
    if "graphc" not in options.contenders:
        options.contenders.insert(0, "graphc")
    operations, bandwidth = limits.operations(options.threads), limits.bandwidth(options.threads)
    print("workload       a step    of limit  first   memory  ratio  each peer's time / graphc's")
    lines = []
    for name in options.workloads or WORKLOADS:
        peak, speed = operations(), bandwidth()
        lines.append(report(WORKLOADS[name], measure(WORKLOADS[name], options), peak, speed))
        lines[-1] |= {"operations": peak, "bandwidth": speed}
    ratios = [line["ratio"] for line in lines if line["ratio"]]
    peak, speed = (max(line[key] for line in lines) for key in ("operations", "bandwidth"))
    print(f"limits: {peak / 1e9:.0f} GFLOP/s, {speed / 1e9:.1f} GB/s on {options.threads} threads")
    if ratios:
        print(f"geometric mean of fastest peer / graphc: {geometric_mean(ratios):.2f}")
    if options.out:
        Path(f"{options.out}.json").write_text(json.dumps(lines, indent=1))
        draw(lines, Path(f"{options.out}.png"))


if __name__ == "__main__":
    main()
