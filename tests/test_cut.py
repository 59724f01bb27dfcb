"""The cheapest cut against networkx, and which of several equal cuts it is."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from graphc.passes.cut import cheapest_cut


def least_weight(weights: dict[int, int], operands: dict[int, list[int]], wanted: list[int]) -> int:
    graph = nx.DiGraph()
    for value, weight in weights.items():
        graph.add_edge((value, 0), (value, 1), capacity=weight)
        if value not in operands:
            graph.add_edge("source", (value, 0))
        for operand in operands.get(value, ()):
            graph.add_edge((operand, 1), (value, 0))
    for value in wanted:
        graph.add_edge((value, 1), "sink")
    weight: int = nx.minimum_cut_value(graph, "source", "sink")
    return weight


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_separates_and_has_the_least_weight(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(3, 25)
    weights = {value: rng.randrange(1, 20) for value in range(size)}
    operands = {v: rng.sample(range(v), min(v, rng.randrange(1, 4))) for v in range(2, size) if rng.random() < 0.8}
    wanted = rng.sample(range(size), rng.randrange(1, min(size, 5)))
    cut = cheapest_cut(weights, operands, wanted)
    known = set(cut)
    for value in sorted(operands):
        if known.issuperset(operands[value]):
            known.add(value)
    assert known.issuperset(wanted)
    assert sum(weights[value] for value in cut) == least_weight(weights, operands, wanted)


def test_of_equal_cuts_the_one_nearest_to_the_wanted_values_is_taken() -> None:
    assert cheapest_cut({"x": 4, "y": 4, "z": 4}, {"y": ["x"], "z": ["y"]}, ["z"]) == {"z"}


def test_two_values_of_one_source_are_replaced_by_it() -> None:
    weights = {"x": 4, "mean": 1, "square": 3, "centred": 3}
    assert cheapest_cut(weights, {"square": ["x"], "centred": ["x", "mean"]}, ["square", "centred"]) == {"x", "mean"}
