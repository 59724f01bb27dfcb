"""graphc: declare a computation, differentiate it, compile it to native CPU code, train with it.

    import graphc as gx
    from graphc import nn, optim

Tensors, functions and layers are here; `compile` and `testing` load the compiler when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphc import errors
from graphc.frontend import functional, nn, optim
from graphc.frontend.control import scan
from graphc.frontend.differentiate import grad
from graphc.frontend.functional import *  # noqa: F403  (its __all__ is the list)
from graphc.frontend.random import manual_seed
from graphc.frontend.spatial import adaptive_avg_pool2d, avg_pool2d, batch_norm, conv2d, max_pool2d
from graphc.frontend.state import Buffer, Parameter
from graphc.frontend.tensor import Tensor, as_tensor, constant, placeholder
from graphc.ir.types import bool_, float32, float64, int32, int64

if TYPE_CHECKING:
    from graphc import testing as testing
    from graphc.compiler import Function as Function
    from graphc.compiler import compile as compile

__version__ = "0.1.0"

_LATE = {"compile": "graphc.compiler", "Function": "graphc.compiler", "testing": "graphc.testing"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'graphc' has no attribute {name!r}")
    module = importlib.import_module(_LATE[name])
    return module if name == "testing" else getattr(module, name)


__all__ = [
    *functional.__all__,
    "Buffer",
    "Function",
    "Parameter",
    "Tensor",
    "adaptive_avg_pool2d",
    "as_tensor",
    "avg_pool2d",
    "batch_norm",
    "bool_",
    "compile",
    "constant",
    "conv2d",
    "errors",
    "float32",
    "float64",
    "grad",
    "int32",
    "int64",
    "manual_seed",
    "max_pool2d",
    "nn",
    "optim",
    "placeholder",
    "scan",
    "testing",
]
