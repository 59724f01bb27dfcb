"""The picture of a run: each contender's step against graphc's, and graphc's against the limit of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "torch-eager": "#e4572e",
    "torch-compile": "#f28f6b",
    "torch-channels_last": "#b03a1e",
    "torch-compile_channels_last": "#f9c2ab",
    "jax": "#3d7ea6",
    "tensorflow-graph": "#e0a100",
    "tensorflow-xla": "#f2cf66",
    "onnxruntime": "#7a7a7a",
    "pytensor": "#5b9a55",
}
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw(records: Sequence[Mapping[str, Any]], contenders: Sequence[str], limits: str, file: Path) -> None:
    """One group of bars for each workload; a bar is the time of a step over graphc's, a broken line the limit's."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = plt.subplots(figsize=(14, 5.5), layout="constrained")
    labelled: set[str] = set()
    reached = [0.5, 2.0]
    for group, record in enumerate(records):
        found = record["contenders"]
        own = found["graphc"]["seconds"]
        names = [name for name in contenders if name in found and name != "graphc"]
        reached += [record["share"], *(found[name]["seconds"] / own for name in names)]
        width = 0.84 / max(1, len(names))
        for number, name in enumerate(names):
            height = found[name]["seconds"] / own
            place = group + (number - (len(names) - 1) / 2) * width
            label = None if name in labelled else name
            labelled.add(name)
            axes.bar(place, height - 1, width * 0.92, 1, color=COLOURS[name], label=label, zorder=2)
            axes.annotate(
                f"{height:.1f}" if height < 9.95 else f"{height:.0f}", (place, max(height, 1)), (0, 2), fontsize=7,
                textcoords="offset points", ha="center", zorder=4,
            )  # fmt: skip
        axes.hlines(
            record["share"], group - 0.45, group + 0.45, color="black", linestyle=(0, (2, 1.5)),
            linewidth=1.2, zorder=3, label="limit of the machine" if group == 0 else None,
        )  # fmt: skip
    axes.axhline(1, color="black", linewidth=1.6, zorder=3, label="graphc")
    axes.set_yscale("log")
    low, high = max(TICKS[0], min(reached) / 1.2), min(TICKS[-1], max(reached) * 1.35)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.set_xlim(-0.6, len(records) - 0.4)
    axes.set_xticks(range(len(records)), [_name(record) for record in records])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_ylabel("time of a step / graphc's (above 1: graphc is faster)")
    axes.set_title(f"machine: {limits}", fontsize=8, color="#555555", loc="left")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda n: list(COLOURS).index(labels[n]) if labels[n] in COLOURS else -1)
    figure.legend(
        [handles[n] for n in order],
        [labels[n] for n in order],
        ncols=10,
        fontsize=8,
        frameon=False,
        loc="outside lower center",
    )
    figure.savefig(file, dpi=130)


def _name(record: Mapping[str, Any]) -> str:
    milliseconds = record["contenders"]["graphc"]["seconds"] * 1e3
    time = f"{milliseconds:.3g} ms" if milliseconds >= 0.1 else f"{milliseconds * 1e3:.3g} µs"
    return f"{record['workload']}\n{time}\n{record['share']:.0%} of limit"
