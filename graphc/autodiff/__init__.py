"""Differentiation of graphs: `grad`. `reverse` walks over the nodes, `loops` has the rule of a scan."""

from graphc.autodiff.reverse import grad

__all__ = ["grad"]
