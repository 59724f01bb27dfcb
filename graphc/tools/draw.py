"""Drawings of a graph: DOT for graphviz, and SVG laid out here, in layers from the inputs down.

Colours tell the kinds of op apart; every box says what it computes, of which type, and from which line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Call, Contraction, Elementwise, Generator, Kind, Movement, Reduction, Scan

_COLOURS: dict[type[Kind], str] = {
    Generator: "#eeeeee",
    Elementwise: "#dbeafe",
    Movement: "#f3e8ff",
    Reduction: "#dcfce7",
    Contraction: "#fee2e2",
    Call: "#fef9c3",
    Scan: "#fde68a",
}
_OPAQUE, _PARAMETER, _STATE = "#ffedd5", "#ffffff", "#e0f2f1"
BOX, GAP, LAYER, LETTER = 34, 24, 84, 7.0  # heights and distances of an SVG, and the width of a letter


def dot(graph: Graph) -> str:
    """The graph in graphviz's language."""
    lines = [f"digraph {json.dumps(graph.name)} {{", '  node [shape=box style="rounded,filled" fontname="Helvetica"]']
    ids = {box: f"n{number}" for number, box in enumerate(_boxes(graph))}
    for box, name in ids.items():
        label = json.dumps("\n".join(_label(box, graph)), ensure_ascii=False)
        lines.append(f'  {name} [label={label} fillcolor="{_colour(box, graph)}"]')
    for source, target in _edges(graph):
        lines.append(f"  {ids[source]} -> {ids[target]}")
    return "\n".join([*lines, "}"]) + "\n"


def svg(graph: Graph) -> str:
    """The graph as a picture: every box below all that it reads."""
    places, width, height = _layout(graph)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="11">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
    ]
    for source, target in _edges(graph):
        (x1, y1, _), (x2, y2, _) = places[source], places[target]
        y1 += BOX
        bend = (y2 - y1) / 2
        curve = f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
        parts.append(f'<path d="{curve}" fill="none" stroke="#94a3b8" marker-end="url(#tip)"/>')
    for box, (x, y, wide) in places.items():
        title, detail = _label(box, graph)
        colour = _colour(box, graph)
        parts.append(
            f'<rect x="{x - wide / 2:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{BOX}" rx="5" fill="{colour}" '
            'stroke="#475569"/>'
            f'<text x="{x:.0f}" y="{y + 14:.0f}" text-anchor="middle" font-weight="bold">{escape(title)}</text>'
            f'<text x="{x:.0f}" y="{y + 27:.0f}" text-anchor="middle" fill="#475569">{escape(detail)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


# Boxes: parameters, nodes, and one for the results ---------------------------------------------------------------

Box = Value | Node | str


def _boxes(graph: Graph) -> Iterator[Box]:
    yield from (*graph.inputs, *graph.state)
    yield from graph.nodes
    yield "return"


def _edges(graph: Graph) -> list[tuple[Box, Box]]:
    pairs: list[tuple[Box, Box]] = [(value.node or value, node) for node in graph.nodes for value in node.inputs]
    pairs += [(value.node or value, "return") for value in graph.results]
    return list(dict.fromkeys(pairs))


def _label(box: Box, graph: Graph) -> tuple[str, str]:
    """What a box is, and of which type."""
    match box:
        case Value():
            return f"%{box.name}", str(box.type)
        case Node():
            name = _name(box)
            spec = f" {box.attrs['spec']}" if "spec" in box.attrs else ""
            where = f"  {box.location.short}" if box.location else ""
            return f"{name}{spec}", ", ".join(str(v.type) for v in box.outputs) + where
    updated = ", ".join(f"%{state.name}" for state, _ in graph.next)
    return "return", f"next {updated}" if updated else ", ".join(str(v.type) for v in graph.outputs)


def _name(node: Node) -> str:
    match node.op.kind:
        case Call():
            return str(node.attrs["name"])
        case Scan():
            return f"{node.attrs['length']} x {node.attrs['body'].name}"
    return node.op.name


def _colour(box: Box, graph: Graph) -> str:
    match box:
        case Node():
            return _COLOURS.get(type(box.op.kind), _OPAQUE)
        case Value():
            return _STATE if box in graph.state else _PARAMETER
    return _PARAMETER


def _layout(graph: Graph) -> tuple[dict[Box, tuple[float, float, float]], float, float]:
    """Centre, top and width of every box, and the size of the picture."""
    depth: dict[Box, int] = dict.fromkeys((*graph.inputs, *graph.state), 0)
    for node in graph.nodes:
        depth[node] = 1 + max((depth[v.node or v] for v in node.inputs), default=-1)
    depth["return"] = 1 + max(depth.values(), default=0)
    sources: dict[Box, list[Box]] = {}
    for source, target in _edges(graph):
        sources.setdefault(target, []).append(source)
    layers: dict[int, list[Box]] = {}
    for box, level in depth.items():
        layers.setdefault(level, []).append(box)
    wide = {box: LETTER * max(map(len, _label(box, graph))) + 16 for box in depth}
    total = max(sum(wide[b] + GAP for b in layer) for layer in layers.values()) + GAP
    places: dict[Box, tuple[float, float, float]] = {}
    for level in sorted(layers):
        middle = {b: _mean([places[s][0] for s in sources.get(b, ()) if s in places], total / 2) for b in layers[level]}
        x = (total - sum(wide[b] + GAP for b in layers[level])) / 2
        for box in sorted(layers[level], key=lambda b: middle[b]):
            places[box] = (x + (GAP + wide[box]) / 2, GAP + level * LAYER, wide[box])
            x += wide[box] + GAP
    return places, total, GAP * 2 + BOX + max(layers) * LAYER


def _mean(numbers: list[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise
