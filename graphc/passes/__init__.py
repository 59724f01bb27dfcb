"""Graph to graph. Importing this fills `passes.manager.PASSES`."""

from graphc.passes.blocks import block_weights
from graphc.passes.cse import cse
from graphc.passes.dce import dce
from graphc.passes.fold import fold
from graphc.passes.fuse import fuse, inline
from graphc.passes.layout import layout
from graphc.passes.manager import PASSES
from graphc.passes.pairs import tile_pairs
from graphc.passes.phases import split_phases
from graphc.passes.scans import hoist, merge_scans, slim_scans
from graphc.passes.simplify import simplify
from graphc.passes.strips import tile_batch
from graphc.passes.unroll import unroll

__all__ = [
    "PASSES",
    "block_weights",
    "cse",
    "dce",
    "fold",
    "fuse",
    "hoist",
    "inline",
    "layout",
    "merge_scans",
    "simplify",
    "slim_scans",
    "split_phases",
    "tile_batch",
    "tile_pairs",
    "unroll",
]
