"""Modules: what holds parameters, and finds, names, saves and loads them. Containers of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from graphc.errors import ArgumentError, ShapeError
from graphc.frontend.state import Buffer, Parameter, State
from graphc.frontend.tensor import as_array

Array = np.ndarray[Any, Any]


class Module:
    """Base of layers and networks. Subclasses call `super().__init__()`, assign parts, and define `forward`."""

    training: bool
    _states: dict[str, State]
    _modules: dict[str, Module]

    def __init__(self) -> None:
        object.__setattr__(self, "_states", {})
        object.__setattr__(self, "_modules", {})
        object.__setattr__(self, "training", True)

    def forward(self, *args: Any, **named: Any) -> Any:
        """What the module computes; calling the module calls this."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.forward(*args, **named)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_states" not in self.__dict__ and isinstance(value, State | Module):
            raise ArgumentError(f"call super().__init__() before {name} is assigned")
        for table, kind in ((self.__dict__.get("_states", {}), State), (self.__dict__.get("_modules", {}), Module)):
            if isinstance(value, kind):
                table[name] = value  # in the place of what it replaces
            else:
                table.pop(name, None)
        object.__setattr__(self, name, value)
        if isinstance(value, State | Module):
            self._rename("")

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._states.pop(name, None)
        self._modules.pop(name, None)

    def register_buffer(self, name: str, array: Any) -> None:
        """Assign a buffer that holds `array`, or nothing for None."""
        setattr(self, name, None if array is None else array if isinstance(array, Buffer) else Buffer(array))

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter, or nothing for None."""
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Assign a module, or nothing for None."""
        setattr(self, name, module)

    def _rename(self, prefix: str) -> None:
        for name, state in self.named_states(prefix):
            state.rename(name)

    # Parts -----------------------------------------------------------------------------------------------------

    def named_states(self, prefix: str = "") -> Iterator[tuple[str, State]]:
        """Parameters and buffers with their paths, each once."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, state in module._states.items():
                if id(state) not in seen:
                    seen.add(id(state))
                    yield f"{path}.{name}" if path else name, state

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Parameters with their paths, in the order of assignment, each once."""
        return ((name, state) for name, state in self.named_states(prefix) if isinstance(state, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """The parameters, in the order of assignment, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def buffers(self) -> Iterator[Buffer]:
        """State that is no parameter."""
        return (buffer for _, buffer in self.named_buffers())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Buffer]]:
        """Buffers with their paths, each once."""
        return ((name, state) for name, state in self.named_states(prefix) if isinstance(state, Buffer))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all in it, with their paths."""
        yield prefix, self
        for name, module in self._modules.items():
            yield from module.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all in it."""
        return (module for _, module in self.named_modules())

    def children(self) -> Iterator[Module]:
        """The modules that were assigned to this one."""
        return iter(self._modules.values())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that were assigned to this one, with their names."""
        return iter(self._modules.items())

    def get_submodule(self, path: str) -> Module:
        """The module at a path such as `blocks.0`; raises ArgumentError where there is none."""
        found = dict(self.named_modules()).get(path)
        if found is None:
            raise ArgumentError(f"{type(self).__name__} has no module {path!r}")
        return found

    def get_parameter(self, path: str) -> Parameter:
        """The parameter at a path such as `fc1.weight`; raises ArgumentError where there is none."""
        owner, _, name = path.rpartition(".")
        found = self.get_submodule(owner)._states.get(name)
        if not isinstance(found, Parameter):
            raise ArgumentError(f"{type(self).__name__} has no parameter {path!r}")
        return found

    def apply(self, function: Callable[[Module], Any]) -> Module:
        """Call `function` on every module in this one, parts first, then on it; returns the module."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def train(self, mode: bool = True) -> Module:
        """Build training (or evaluation) graphs from now on; returns the module."""
        for module in self.modules():
            object.__setattr__(module, "training", mode)
        return self

    def eval(self) -> Module:
        """Build evaluation graphs from now on; returns the module."""
        return self.train(False)

    # Arrays ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer by path, laid out as torch does."""
        return {name: state.data.copy() for name, state in self.named_states()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Set parameters and buffers from arrays (or torch tensors on the CPU) by path.

        Nothing is set unless everything fits. Raises ArgumentError, when `strict`, for missing and unexpected names,
        ShapeError for a shape that differs, and DTypeError for what is no array of numbers.
        """
        if not isinstance(state, Mapping):
            raise ArgumentError(f"a state is a mapping of names to arrays, not {type(state).__name__}")
        own = dict(self.named_states())
        missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
        if strict and (missing or unexpected):
            raise ArgumentError(
                f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
            )
        arrays = {name: as_array(state[name], own[name].dtype) for name in own if name in state}
        for name, array in arrays.items():
            if array.shape != own[name].data.shape:
                raise ShapeError(f"{name} is {own[name].type}, not an array of shape {list(array.shape)}")
        for name, array in arrays.items():
            own[name].data[...] = array

    # Text ------------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The arguments, for `repr`."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(module).replace("\n", "\n  ") for name, module in self.__dict__["_modules"].items()
        ]
        inner = "".join(f"\n  {line}" for line in lines)
        return f"{type(self).__name__}({inner}\n)" if lines else f"{type(self).__name__}({self.extra_repr()})"


class _Container(Module):
    """Modules by name."""

    def _replace(self, modules: Mapping[str, Module]) -> None:
        for name, module in modules.items():
            if not isinstance(module, Module):
                raise ArgumentError(f"{type(self).__name__} holds modules, not {type(module).__name__}")
            if not isinstance(name, str) or not name or "." in name:
                raise ArgumentError(f"a module's name is a string without dots, not {name!r}")
        for name in [*self._modules]:
            delattr(self, name)
        for name, module in modules.items():
            setattr(self, name, module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return self.children()


class _Listed(_Container):
    """Modules by number."""

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the container."""
        return self.insert(len(self), module)

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns the container."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Add a module before position `index`; returns the container."""
        found = [*self]
        found.insert(index, module)
        self._replace({str(number): each for number, each in enumerate(found)})
        return self

    def pop(self, index: int = -1) -> Module:
        """Take out a module and return it."""
        found: list[Module] = [*self]
        taken = found.pop(index)
        self._replace({str(number): each for number, each in enumerate(found)})
        return taken


class Sequential(_Listed):
    """Modules one after the other: given as arguments, or by name in one mapping."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        named = len(modules) == 1 and isinstance(modules[0], Mapping)
        self._replace(modules[0] if named else {str(number): module for number, module in enumerate(modules)})

    def forward(self, x: Any) -> Any:
        for module in self.children():
            x = module(x)
        return x

    def __getitem__(self, index: int | slice) -> Any:
        found = [*self][index]
        return Sequential(*found) if isinstance(found, list) else found


class ModuleList(_Listed):
    """A list of modules whose parameters are found."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        found = [*self][index]
        return ModuleList(found) if isinstance(found, list) else found


class ModuleDict(_Container):
    """Modules by name, whose parameters are found."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self._replace(modules or {})

    def __getitem__(self, name: str) -> Module:
        return self._modules[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self._replace({**self._modules, name: module})

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def keys(self) -> Iterable[str]:
        return self._modules.keys()

    def values(self) -> Iterable[Module]:
        return self._modules.values()

    def items(self) -> Iterable[tuple[str, Module]]:
        return self._modules.items()
