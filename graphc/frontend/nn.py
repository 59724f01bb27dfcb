"""torch.nn's names, arguments, defaults, initial distributions and weight layouts.

A `Module` finds its parameters by assignment, and names them by their path (`fc1.weight`), in printed graphs too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphc.errors import ArgumentError, ShapeError
from graphc.frontend import functional as F
from graphc.frontend import random, spatial
from graphc.frontend.activations import (
    CELU as CELU,
)
from graphc.frontend.activations import (
    ELU as ELU,
)
from graphc.frontend.activations import (
    GELU as GELU,
)
from graphc.frontend.activations import (
    GLU as GLU,
)
from graphc.frontend.activations import (
    SELU as SELU,
)
from graphc.frontend.activations import (
    Hardsigmoid as Hardsigmoid,
)
from graphc.frontend.activations import (
    Hardswish as Hardswish,
)
from graphc.frontend.activations import (
    Hardtanh as Hardtanh,
)
from graphc.frontend.activations import (
    LeakyReLU as LeakyReLU,
)
from graphc.frontend.activations import (
    LogSigmoid as LogSigmoid,
)
from graphc.frontend.activations import (
    LogSoftmax as LogSoftmax,
)
from graphc.frontend.activations import (
    Mish as Mish,
)
from graphc.frontend.activations import (
    PReLU as PReLU,
)
from graphc.frontend.activations import (
    ReLU as ReLU,
)
from graphc.frontend.activations import (
    ReLU6 as ReLU6,
)
from graphc.frontend.activations import (
    Sigmoid as Sigmoid,
)
from graphc.frontend.activations import (
    SiLU as SiLU,
)
from graphc.frontend.activations import (
    Softmax as Softmax,
)
from graphc.frontend.activations import (
    Softmin as Softmin,
)
from graphc.frontend.activations import (
    Softplus as Softplus,
)
from graphc.frontend.activations import (
    Softsign as Softsign,
)
from graphc.frontend.activations import (
    Tanh as Tanh,
)
from graphc.frontend.losses import (
    BCELoss as BCELoss,
)
from graphc.frontend.losses import (
    BCEWithLogitsLoss as BCEWithLogitsLoss,
)
from graphc.frontend.losses import (
    CrossEntropyLoss as CrossEntropyLoss,
)
from graphc.frontend.losses import (
    HuberLoss as HuberLoss,
)
from graphc.frontend.losses import (
    KLDivLoss as KLDivLoss,
)
from graphc.frontend.losses import (
    L1Loss as L1Loss,
)
from graphc.frontend.losses import (
    MSELoss as MSELoss,
)
from graphc.frontend.losses import (
    NLLLoss as NLLLoss,
)
from graphc.frontend.losses import (
    SmoothL1Loss as SmoothL1Loss,
)
from graphc.frontend.module import (
    Module as Module,
)
from graphc.frontend.module import (
    ModuleDict as ModuleDict,
)
from graphc.frontend.module import (
    ModuleList as ModuleList,
)
from graphc.frontend.module import (
    Sequential as Sequential,
)
from graphc.frontend.recurrent import lstm
from graphc.frontend.spatial import Pair, pair
from graphc.frontend.state import Buffer, Parameter
from graphc.frontend.tensor import Tensor, as_tensor
from graphc.ir import source
from graphc.ir.dim import Dim


def _require_sizes(low: int = 0, **sizes: Any) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < low:
            raise ArgumentError(f"{name} must be a whole number from {low} on, not {size!r}", source.here())


class Identity(Module):
    """x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Linear(Module):
    """x @ weight.T + bias: [..., in_features] -> [..., out_features].

    weight [out_features, in_features] and bias [out_features] start uniform in +-1 / sqrt(in_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        _require_sizes(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self.weight = Parameter(random.uniform(-bound, bound, (out_features, in_features)))
        self.bias = Parameter(random.uniform(-bound, bound, (out_features,))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Embedding(Module):
    """Rows of weight [num_embeddings, embedding_dim], normal at first, at integer indices of any shape.

    A call of the compiled function raises IndexRangeError for an index that is not in [0, num_embeddings).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        _require_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(random.normal(0.0, 1.0, (num_embeddings, embedding_dim)))

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class LayerNorm(Module):
    """Normalises over the last axes, `normalized_shape`; weight starts at 1, bias at 0 (Ba et al., 2016)."""

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.weight = Parameter(np.ones(normalized_shape, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(normalized_shape, np.float32)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class Conv2d(Module):
    """Cross-correlation of images: [N, in_channels, H, W] -> [N, out_channels, OH, OW]; see `graphc.conv2d`.

    weight [out_channels, in_channels / groups, KH, KW] and bias [out_channels] start uniform in +-1 / sqrt(fan_in),
    fan_in = in_channels / groups KH KW.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _require_sizes(in_channels=in_channels, out_channels=out_channels)
        _require_sizes(1, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(f"{in_channels} and {out_channels} channels cannot be parted in {groups} groups")
        self.in_channels, self.out_channels, self.kernel_size = (
            in_channels,
            out_channels,
            pair(kernel_size, "kernel_size"),
        )
        pair(stride, "stride")
        pair(dilation, "dilation")
        if not isinstance(padding, str):
            pair(padding, "padding", 0)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        fan_in = in_channels // groups * math.prod(self.kernel_size)
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        self.weight = Parameter(random.uniform(-bound, bound, (out_channels, in_channels // groups, *self.kernel_size)))
        self.bias = Parameter(random.uniform(-bound, bound, (out_channels,))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return spatial.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        more = f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        return f"{sizes}, {more}"


class _Pool(Module):
    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, *, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode

    def extra_repr(self) -> str:
        sizes = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{sizes}, ceil_mode={self.ceil_mode}"


class MaxPool2d(_Pool):
    """The largest of each window of [N, C, H, W]; the gradient goes to the first of equals."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return spatial.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class AvgPool2d(_Pool):
    """The mean of each window of [N, C, H, W]."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return spatial.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class AdaptiveAvgPool2d(Module):
    """Means over output_size[0] x output_size[1] parts of [N, C, H, W]."""

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return spatial.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class BatchNorm2d(Module):
    """Normalises each channel of [N, C, H, W]; see `graphc.batch_norm`.

    weight starts at 1, bias at 0, running_mean at 0, running_var at 1. A graph built while `training` normalises by the
    batch, and a function compiled with it moves the running statistics; one built after `eval()` uses them.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        _require_sizes(num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        ones, zeros = np.ones(num_features, np.float32), np.zeros(num_features, np.float32)
        self.weight = Parameter(ones) if affine else None
        self.bias = Parameter(zeros) if affine else None
        self.running_mean = Buffer(zeros) if track_running_stats else None
        self.running_var = Buffer(ones) if track_running_stats else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if track_running_stats else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.num_features:
            raise ShapeError(f"BatchNorm2d takes [N, {self.num_features}, H, W], not {x.type}", source.here())
        result = spatial.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.follow(result, lambda count: count + 1)
        return result

    def extra_repr(self) -> str:
        tracks = self.running_mean is not None
        sizes = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
        return f"{sizes}, affine={self.weight is not None}, track_running_stats={tracks}"


class LSTM(Module):
    """Long short-term memory: (input, (h, c)) -> (output, (h, c)), with torch's gates, names and layouts.

    input   [N, T, input_size] (batch_first) or [T, N, input_size]
    h, c    [num_layers * directions, N, hidden_size]; zeros when they are not given
    output  h of the last layer at every t, both directions side by side

    Raises ArgumentError and ShapeError for a size that is none, and a state or an input that does not fit.

    weight_ih_l0 [4 hidden, input], weight_hh_l0 [4 hidden, hidden], bias_ih_l0 and bias_hh_l0 [4 hidden], their names
    ending in `_reverse` for the second direction, start uniform in +-1 / sqrt(hidden_size).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        _require_sizes(1, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.directions = 2 if bidirectional else 1
        bound = 1 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self.directions
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (4 * hidden_size, width),
                "weight_hh": (4 * hidden_size, hidden_size),
            }
            shapes |= {"bias_ih": (4 * hidden_size,), "bias_hh": (4 * hidden_size,)} if bias else {}
            for direction in range(self.directions):
                for name, shape in shapes.items():
                    setattr(self, self._name(name, layer, direction), Parameter(random.uniform(-bound, bound, shape)))

    @staticmethod
    def _name(what: str, layer: int, direction: int) -> str:
        return f"{what}_l{layer}{'_reverse' if direction else ''}"

    def _part(self, what: str, layer: int, direction: int) -> Parameter:
        found: Parameter = getattr(self, self._name(what, layer, direction))
        return found

    def _require_state(self, state: Any, batch: Dim) -> None:
        if state is None:
            return
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise ArgumentError("the state of an LSTM is a pair (h, c)", source.here())
        wanted = (self.num_layers * self.directions, batch, self.hidden_size)
        for name, part in zip("hc", map(as_tensor, state), strict=True):
            if part.shape != wanted:
                shape = ",".join(map(str, wanted))
                raise ShapeError(f"{name} of an LSTM must be [{shape}], not {part.type}", source.here())

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        if input.ndim != 3 or input.shape[2] != self.input_size:
            raise ShapeError(f"LSTM takes three axes, the last {self.input_size}, not {input.type}", source.here())
        x = input if self.batch_first else F.swapaxes(input, 0, 1)
        self._require_state(state, x.shape[0])
        zero = F.zeros((x.shape[0], self.hidden_size), x.dtype)
        finals = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                number = layer * self.directions + direction
                start = (zero, zero) if state is None else (state[0][number], state[1][number])
                ih, hh = (self._part(name, layer, direction) for name in ("weight_ih", "weight_hh"))
                bias = None
                if self.bias:
                    bias = self._part("bias_ih", layer, direction) + self._part("bias_hh", layer, direction)
                found, final = lstm(x, start, ih, hh, bias, reverse=direction == 1)
                outputs.append(found)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else F.concat(outputs, 2)
        hidden, cell = (F.stack(list(parts), 0) for parts in zip(*finals, strict=True))
        return x if self.batch_first else F.swapaxes(x, 0, 1), (hidden, cell)

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}"
        return f"{sizes}, batch_first={self.batch_first}, bidirectional={self.bidirectional}"


class Flatten(Module):
    """Axes start_dim to end_dim as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return F.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class RMSNorm(Module):
    """Divides by the root of the mean square over the last axes; weight starts at 1; see `graphc.rms_norm`."""

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float | None = None, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.weight = Parameter(np.ones(normalized_shape, np.float32)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class GroupNorm(Module):
    """Normalises each of `num_groups` groups of channels of [N, C, ...]; see `graphc.group_norm`."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        _require_sizes(1, num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ArgumentError(f"{num_channels} channels cannot be parted in {num_groups} groups", source.here())
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(np.ones(num_channels, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, np.float32)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.weight is not None}"
