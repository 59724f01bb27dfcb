"""The `graphc` command: graphs as text files, transformed, run, compared, compiled, drawn.

graphc opt --passes simplify,fuse step.gc         the graph after some passes (--size batch=64 for a named dimension)
graphc run step.gc --feeds arrays.npz             run it, on given arrays or on random ones
graphc run --compare graph.gc fuse.gc             native against interpreted, and all files against the first
graphc dump --stage loops step.gc                 what it is compiled to
graphc dot step.gc -o step.svg                    a drawing
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from graphc import compare, pipeline, reference
from graphc.errors import ArgumentError, FeedError, GraphcError, MismatchError, PassError
from graphc.ir.binding import bind, names_of, sizes_of
from graphc.ir.graph import Graph
from graphc.ir.text import parse
from graphc.ir.verify import verify
from graphc.passes import PASSES
from graphc.passes.manager import run as run_passes
from graphc.runtime.feeds import conform, examples
from graphc.tools.draw import dot, svg

Array = np.ndarray[Any, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 with one message on stderr (none when nobody reads on)."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 1
    except GraphcError as error:
        print(f"graphc: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"graphc: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    opt = commands.add_parser("opt", help="apply passes to a text file")
    opt.add_argument("file", type=Path)
    opt.add_argument("--passes", default=",".join(pipeline.PASSES), help=f"of {', '.join(PASSES)}")
    opt.add_argument("--ledger", action="store_true", help="what each pass did, on stderr")
    opt.set_defaults(command=_opt)

    run = commands.add_parser("run", help="execute text files")
    run.add_argument("files", type=Path, nargs="+")
    run.add_argument("--feeds", type=Path, help=".npz with an array for every input and state, by name")
    run.add_argument("--seed", type=int, default=0, help="of the random arrays that are used otherwise")
    run.add_argument("--mode", choices=("native", "interpret"), default="native")
    run.add_argument("--compare", action="store_true", help="run both ways and compare")
    run.set_defaults(command=_run)

    dump = commands.add_parser("dump", help="print a stage of the compilation")
    dump.add_argument("file", type=Path)
    dump.add_argument("--stage", default="fused", help="a pass, fused, plan, loops, llvm or assembly")
    dump.set_defaults(command=_dump)

    draw = commands.add_parser("dot", help="draw a graph, as DOT or SVG")
    draw.add_argument("file", type=Path)
    draw.add_argument("-o", "--output", type=Path, help="a .svg or .dot file; without it DOT goes to stdout")
    draw.set_defaults(command=_dot)

    for command in (opt, run, dump, draw):
        command.add_argument("--size", action="append", default=[], metavar="NAME=N", help="of a named dimension")
    return parser


# Commands -------------------------------------------------------------------------------------------------------


def _opt(options: argparse.Namespace) -> None:
    graph = _read(options.file, options.size)
    try:
        graph, ledger = run_passes(graph, filter(None, options.passes.split(",")))
    except PassError:
        _sized(graph)  # what a pass cannot do, as a rule
        raise
    print(graph, end="")
    if options.ledger:
        print(ledger, file=sys.stderr)


def _run(options: argparse.Namespace) -> None:
    first: list[Array] = []
    for file in options.files:
        graph, feeds = _fed(_read(file, options.size), options.feeds, options.seed)
        found = _native(graph, feeds) if options.mode == "native" or options.compare else _interpreted(graph, feeds)
        if options.compare:
            other = _interpreted(graph, feeds)
            _require_close(found, other, graph, feeds, f"{file.name}")
            first = first or other
            if len(first) != len(other):
                raise MismatchError(f"{file.name} has {len(other)} results, {options.files[0].name} {len(first)}")
            _require_close(other, first, graph, feeds, f"{file.name} against {options.files[0].name}")
            print(f"{file.name}: native and interpreted agree")
        else:
            _show(graph, found)


def _dump(options: argparse.Namespace) -> None:
    print(pipeline.build(_sized(_read(options.file, options.size)), {}).text(options.stage), end="")


def _dot(options: argparse.Namespace) -> None:
    graph = _read(options.file, options.size)
    if options.output is None:
        print(dot(graph), end="")
        return
    kinds = {".svg": svg, ".dot": dot}
    if options.output.suffix not in kinds:
        raise ArgumentError(f"a drawing is a .svg or .dot file, not {options.output.name}")
    options.output.write_text(kinds[options.output.suffix](graph))


# Graphs and arrays ----------------------------------------------------------------------------------------------


def _read(file: Path, sizes: Sequence[str]) -> Graph:
    try:
        graph = parse(file.read_text(), file.name)
    except UnicodeDecodeError:
        raise ArgumentError(f"{file.name} is no text") from None
    verify(graph)
    return bind(graph, dict(map(_size, sizes)))


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.isdecimal():
        raise ArgumentError(f"--size looks like batch=64, not {text!r}")
    return name, int(number)


def _sized(graph: Graph) -> Graph:
    missing = names_of((*graph.inputs, *graph.state))
    if missing:
        raise ArgumentError(f"say how large {', '.join(sorted(missing))} is: --size {sorted(missing)[0]}=64")
    return graph


def _fed(graph: Graph, file: Path | None, seed: int) -> tuple[Graph, list[Array]]:
    """A graph whose dimensions have the sizes of a file's arrays, and those, or random ones without a file."""
    if file is None:
        graph = _sized(graph)
        return graph, examples(graph, seed)
    arrays, values = _arrays(file), (*graph.inputs, *graph.state)
    missing = [value.name for value in values if value.name not in arrays]
    if missing:
        raise FeedError(f"{file.name} has no array for {', '.join(missing)}")
    graph = bind(graph, sizes_of(values, [arrays[value.name].shape for value in values]))
    return graph, [conform(value, arrays[value.name]) for value in (*graph.inputs, *graph.state)]


def _arrays(file: Path) -> dict[str, Array]:
    try:
        found = np.load(file)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                return dict(found)
    except (ValueError, BadZipFile, EOFError):
        pass
    raise FeedError(f"{file.name} is no .npz file of arrays of numbers")


def _interpreted(graph: Graph, feeds: Sequence[Array]) -> list[Array]:
    outputs, following = reference.run(graph, feeds)
    return [*outputs, *following]


def _native(graph: Graph, feeds: Sequence[Array]) -> list[Array]:
    count = len(graph.inputs)
    state = tuple(array.copy() for array in feeds[count:])
    outputs = pipeline.build(graph, {}).executable(feeds[:count], state)
    place = dict(zip(graph.state, state, strict=True))
    return [*outputs, *(place[value] for value, _ in graph.next)]


def _names(graph: Graph) -> list[str]:
    return [*(f"output {n}" for n in range(len(graph.outputs))), *(f"next %{state.name}" for state, _ in graph.next)]


def _require_close(
    found: Sequence[Array], wanted: Sequence[Array], graph: Graph, feeds: Sequence[Array], what: str
) -> None:
    compare.require_all_close([f"{what}, {name}" for name in _names(graph)], found, wanted, graph, feeds)


def _show(graph: Graph, results: Sequence[Array]) -> None:
    values = (*graph.outputs, *(value for _, value in graph.next))
    for name, value, array in zip(_names(graph), values, results, strict=True):
        text = np.array2string(array, threshold=24, edgeitems=3, precision=7)
        print(f"{name}: {value.type} =" + (f"\n{text}" if "\n" in text else f" {text}"))


if __name__ == "__main__":
    sys.exit(main())
