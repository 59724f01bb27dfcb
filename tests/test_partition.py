"""Joining groups keeps the graph of groups acyclic, and refuses exactly when it would not."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from graphc.passes.partition import Partition


def random_dag(seed: int, size: int, degree: float) -> list[set[int]]:
    rng = random.Random(seed)
    near = [[v for v in range(u + 1, min(size, u + 12)) if rng.random() < degree / 11] for u in range(size)]
    far = [[rng.randrange(u + 1, size)] if u + 1 < size and rng.random() < 0.1 else [] for u in range(size)]
    return [set(n + f) for n, f in zip(near, far)]


def quotient(dag: list[set[int]], partition: Partition) -> nx.DiGraph:
    group = partition.group_of
    graph = nx.DiGraph()
    graph.add_nodes_from(partition.members)
    graph.add_edges_from((group[u], group[v]) for u in range(len(dag)) for v in dag[u] if group[u] != group[v])
    return graph


@pytest.mark.parametrize("seed", range(30))
def test_a_join_is_refused_exactly_when_a_path_leaves_and_returns(seed: int) -> None:
    rng = random.Random(seed)
    dag = random_dag(seed, 40, 2.0)
    partition = Partition(dag)
    for _ in range(120):
        groups = quotient(dag, partition)
        if len(groups) < 2:
            break
        first, second = rng.sample(sorted(groups), 2)
        joined = nx.contracted_nodes(groups, first, second, self_loops=False)
        convex = nx.is_directed_acyclic_graph(joined)
        assert (partition.join(first, second) is not None) == convex


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("gap", [2, 1 << 32], ids=["labels renewed often", "labels kept"])
def test_groups_stay_listed_in_a_topological_order(seed: int, gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphc.passes.partition._GAP", gap)
    rng = random.Random(seed)
    dag = random_dag(seed, 60, 2.0)
    partition = Partition(dag)
    for _ in range(200):
        first, second = rng.sample(range(len(dag)), 2)
        first, second = partition.group_of[first], partition.group_of[second]
        if first != second:
            partition.join(first, second)
    place = {group: position for position, group in enumerate(partition.order())}
    groups = quotient(dag, partition)
    assert set(place) == set(partition.members) == set(groups)
    assert all(place[u] < place[v] for u, v in groups.edges)
    for group in groups:
        assert partition.after[group] == set(groups.successors(group))
        assert partition.before[group] == set(groups.predecessors(group))


def test_a_chain_of_many_groups_joins_into_one() -> None:
    size = 3000
    partition = Partition([{v + 1} if v + 1 < size else set() for v in range(size)])
    for vertex in range(size - 1):
        first, second = partition.group_of[vertex], partition.group_of[vertex + 1]
        assert partition.join(first, second) is not None
    assert len(partition.members) == 1
