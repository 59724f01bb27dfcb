"""Graphs as text, and back: `print_graph(parse(s)) == s` for every `s` that was printed.

    graph f(%x: f32[batch,3]; state %w: f32[3]) {
      %0 = broadcast %w shape=[batch,3] axes=[1] : f32[batch,3]       // model.py:7
      %1 = add %x, %0 : f32[batch,3]                                  // model.py:7
      return %1
    }

One node per line: results, op, operands, attributes in the order of the op's definition, result types, source line.
Inputs and state go by name, in quotes where a name is no plain word; results are numbered. The grammar is in
docs/text.md.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import numpy as np

from graphc.errors import GraphcError, ParseError
from graphc.ir import dim as dims
from graphc.ir.dim import Dim, Polynomial
from graphc.ir.graph import Graph, Literal, Node, Value, set_printer
from graphc.ir.op import OPS, Op
from graphc.ir.source import Location
from graphc.ir.types import DType, TensorType

COMMENT_COLUMN = 64
LONGEST_LIST = 16  # elements of a literal that are written out
_BARE = re.compile(r"(?!\d+$)[A-Za-z0-9_][\w.]*")

# Printing -------------------------------------------------------------------------------------------------------


def print_graph(graph: Graph) -> str:
    """The graph as text, ending with a newline."""
    return "\n".join(_graph_lines(graph, "")) + "\n"


def _graph_lines(graph: Graph, indent: str) -> Iterator[str]:
    names = {value: _value_name(value.name) for value in (*graph.inputs, *graph.state)}
    parameters = ", ".join(f"{names[v]}: {v.type}" for v in graph.inputs)
    if graph.state:
        parameters += "; state " + ", ".join(f"{names[v]}: {v.type}" for v in graph.state)
    yield f"{indent}graph {_word(graph.name)}({parameters}) {{"
    count = 0
    for node in graph.nodes:
        for value in node.outputs:
            names[value] = f"%{count}"
            count += 1
        yield from _node_lines(node, names, indent + "  ")
    yield " ".join([f"{indent}  return", ", ".join(names[v] for v in graph.outputs)]).rstrip()
    if graph.next:
        pairs = ", ".join(f"{names[state]} = {names[value]}" for state, value in graph.next)
        yield f"{indent}  next {pairs}"
    yield f"{indent}}}"


def _node_lines(node: Node, names: dict[Value, str], indent: str) -> Iterator[str]:
    results = ", ".join(names[v] for v in node.outputs)
    operands = ", ".join(names[v] for v in node.inputs)
    order = attribute_names(node.op)
    attrs = [f"{k}={_attr_text(node.attrs[k])}" for k in order if k in node.attrs and not _is_graph(node.attrs[k])]
    types = ", ".join(str(v.type) for v in node.outputs)
    line = indent + " ".join(part for part in (f"{results} =", node.op.name, operands, *attrs, ":", types) if part)
    comment = f"// {node.location.short}" if node.location else ""
    bodies = [node.attrs[k] for k in order if _is_graph(node.attrs.get(k))]
    if bodies:
        yield f"{line} {{"
        for body in bodies:
            yield from _graph_lines(body, indent + "  ")
        line = f"{indent}}}"
    yield f"{line:<{COMMENT_COLUMN}}  {comment}" if comment else line


def _is_graph(attr: Any) -> bool:
    return isinstance(attr, Graph)


@cache
def attribute_names(op: Op) -> tuple[str, ...]:
    """The op's attributes in the order of its definition."""
    parameters = inspect.signature(op.infer).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _value_name(name: str) -> str:
    return f"%{_word(name)}"


def _word(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _attr_text(attr: Any) -> str:
    match attr:
        case None:
            return "none"
        case bool():
            return str(attr).lower()
        case str():
            return json.dumps(attr)
        case tuple():
            return "[" + ",".join(map(_attr_text, attr)) + "]"
        case Literal():
            return f"{attr.type}{{{_elements(attr)}}}"
        case float():
            return repr(attr)
        case _:
            return str(attr)


def _elements(literal: Literal) -> str:
    """The elements, one for a literal that repeats it, or base64 where they are many or no text gives their bits."""
    flat = literal.array.reshape(-1)
    first = flat[:1]
    if flat.size and first.tobytes() * flat.size == literal.data:
        flat = first
    if flat.size <= LONGEST_LIST:
        texts = [str(x).lower() for x in flat]
        if np.array([_number(t, literal.type.dtype) for t in texts], flat.dtype).tobytes() == flat.tobytes():
            return ",".join(texts)
    return f"base64:{literal.base64}"


def _number(text: str, dtype: DType) -> Any:
    """One element; raises ValueError for what is none."""
    if dtype is DType.BOOL:
        return {"true": True, "false": False}[text]
    return dtype.numpy.type(text) if dtype.is_float else int(text)


# Reading --------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<comment>//[^\n]*)|(?P<base64>base64:[A-Za-z0-9+/=]*)|(?P<mark>[(){}\[\],;:=])"
    r'|(?P<value>%(?:"(?:[^"\\\n]|\\.)*"|[\w.]+))|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<word>[\w.*+-]+)'
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    offset: int


def parse(text: str, source: str = "<text>") -> Graph:
    """The graph that `text` describes. Raises ParseError, with line and column, for whatever is wrong with it."""
    parser = _Parser(text, source)
    try:
        graph = parser.graph()
    except RecursionError:
        parser.fail("nested too deeply")
    parser.skip_comments()
    if parser.token.kind != "end":
        parser.fail(f"expected the end of the text, found {parser.token.text!r}")
    return graph


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.tokens = list(self.scan())
        self.place = 0

    def scan(self) -> Iterator[_Token]:
        offset = 0
        while offset < len(self.text):
            match = _TOKEN.match(self.text, offset)
            if match is None:
                self.fail(f"unexpected character {self.text[offset]!r}", offset)
            if match.lastgroup != "space":
                yield _Token(match.lastgroup or "", match.group(), offset)
            offset = match.end()
        yield _Token("end", "end of text", offset)

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        offset = self.token.offset if offset is None else offset
        line = self.text.count("\n", 0, offset) + 1
        raise ParseError(message, line, offset - self.text.rfind("\n", 0, offset), self.source)

    # Tokens

    @property
    def token(self) -> _Token:
        return self.tokens[self.place]

    def take(self) -> _Token:
        token = self.token
        self.place += token.kind != "end"
        return token

    def accept(self, text: str) -> bool:
        found = self.token.text == text and self.token.kind in ("mark", "word")
        self.place += found
        return found

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected {text!r}, found {self.token.text!r}")

    def of(self, kind: str, what: str) -> _Token:
        if self.token.kind != kind:
            self.fail(f"expected {what}, found {self.token.text!r}")
        return self.take()

    def skip_comments(self) -> None:
        while self.token.kind == "comment":
            self.place += 1

    def name(self, what: str) -> str:
        if self.token.kind == "string":
            return self.string(self.take())
        return self.of("word", what).text

    def string(self, token: _Token) -> str:
        """What a quoted token stands for."""
        try:
            return str(json.loads(token.text))
        except ValueError as error:
            self.fail(f"malformed string: {error}", token.offset)

    def value_name(self) -> tuple[str, int]:
        """A value as it is written: %"0" is an input called 0, %0 the first result."""
        token = self.of("value", "a value such as %x")
        return token.text[1:], token.offset

    def list_of(self, item: Callable[[], Any]) -> list[Any]:
        found = [item()]
        while self.accept(","):
            found.append(item())
        return found

    # Graphs

    def graph(self) -> Graph:
        self.skip_comments()
        self.expect("graph")
        name = self.name("the graph's name")
        known: dict[str, Value] = {}
        self.expect("(")
        inputs = self.list_of(lambda: self.parameter(known)) if self.token.kind == "value" else []
        state = []
        if self.accept(";"):
            self.expect("state")
            state = self.list_of(lambda: self.parameter(known))
        self.expect(")")
        self.expect("{")
        nodes: list[Node] = []
        self.skip_comments()
        while self.token.kind == "value":
            nodes.append(self.node(known))
            self.skip_comments()
        self.expect("return")
        outputs = self.list_of(lambda: self.value(known)) if self.token.kind == "value" else []
        self.skip_comments()
        following = self.list_of(lambda: self.next_pair(known, state)) if self.accept("next") else []
        self.skip_comments()
        self.expect("}")
        return Graph(name, tuple(inputs), tuple(state), tuple(nodes), tuple(outputs), tuple(following))

    def parameter(self, known: dict[str, Value]) -> Value:
        name, offset = self.value_name()
        if name in known:
            self.fail(f"%{name} is defined twice", offset)
        self.expect(":")
        known[name] = Value(self.type(), name=self.string(_Token("string", name, offset)) if name[0] == '"' else name)
        return known[name]

    def value(self, known: dict[str, Value]) -> Value:
        name, offset = self.value_name()
        if name not in known:
            self.fail(f"%{name} is not defined", offset)
        return known[name]

    def next_pair(self, known: dict[str, Value], state: list[Value]) -> tuple[Value, Value]:
        offset = self.token.offset
        target = self.value(known)
        if target not in state:
            self.fail(f"%{target.name} is not a state", offset)
        self.expect("=")
        found = self.value(known)
        if found.type != target.type:
            self.fail(f"%{target.name} is {target.type}; its next value is {found.type}", offset)
        return target, found

    # Nodes

    def node(self, known: dict[str, Value]) -> Node:
        start = self.token.offset
        results = self.list_of(self.value_name)
        self.expect("=")
        op_token = self.of("word", "an op")
        if op_token.text not in OPS:
            self.fail(f"unknown op {op_token.text!r}", op_token.offset)
        op = OPS[op_token.text]
        operands = self.list_of(lambda: self.value(known)) if self.token.kind == "value" else []
        attrs: dict[str, Any] = {}
        while self.token.kind == "word":
            key = self.take()
            if key.text not in attribute_names(op) or key.text in attrs:
                self.fail(f"{op.name} has no attribute {key.text}, or it stands here twice", key.offset)
            self.expect("=")
            attrs[key.text] = self.attr()
        self.expect(":")
        type_offset = self.token.offset
        types = self.list_of(self.type)
        if self.accept("{"):
            for key_name in attribute_names(op):
                if key_name not in attrs:
                    attrs[key_name] = self.graph()
            self.skip_comments()
            self.expect("}")
        node = self.build(op, operands, attrs, self.location(), op_token.offset)
        found = [value.type for value in node.outputs]
        if found != types:
            given, wanted = (", ".join(map(str, t)) for t in (types, found))
            self.fail(f"{op.name} gives {wanted}, not {given}", type_offset)
        if len(results) != len(found):
            self.fail(f"{op.name} has {len(found)} results, not {len(results)}", start)
        for (name, offset), value in zip(results, node.outputs, strict=True):
            if name in known:
                self.fail(f"%{name} is defined twice", offset)
            known[name] = value
        return node

    def build(
        self, op: Op, operands: Iterable[Value], attrs: dict[str, Any], location: Location | None, offset: int
    ) -> Node:
        missing = [name for name in attribute_names(op) if name not in attrs]
        if missing:
            self.fail(f"{op.name} needs the attribute {missing[0]}", offset)
        try:
            return Node(op, tuple(operands), attrs, location)
        except GraphcError as error:
            self.fail(f"{op.name}: {error.message}", offset)
        except (TypeError, ValueError) as error:
            self.fail(f"{op.name}: {error}", offset)

    def location(self) -> Location | None:
        """The source line in a comment behind a node."""
        if self.token.kind != "comment":
            return None
        file, _, line = self.token.text[2:].strip().rpartition(":")
        if not file or not line.isdecimal():
            return None
        self.place += 1
        return Location(file, int(line))

    # Types and attributes

    def type(self) -> TensorType:
        token = self.of("word", "a type such as f32[2,3]")
        if token.text not in DType._value2member_map_:
            self.fail(f"unknown dtype {token.text!r}", token.offset)
        self.expect("[")
        shape = self.list_of(self.dim) if self.token.kind == "word" else []
        self.expect("]")
        try:
            return TensorType(DType(token.text), tuple(shape))
        except GraphcError as error:
            self.fail(error.message, token.offset)

    def dim(self) -> Dim:
        token = self.of("word", "a dimension")
        try:
            return dims.parse(token.text)
        except GraphcError as error:
            self.fail(error.message, token.offset)

    def attr(self) -> Any:
        if self.token.kind == "string":
            return self.string(self.take())
        if self.accept("["):
            found = [] if self.token.text == "]" else self.list_of(self.attr)
            self.expect("]")
            return tuple(found)
        token = self.of("word", "an attribute")
        if token.text in DType._value2member_map_:
            if self.token.text != "[":
                return DType(token.text)
            self.place -= 1
            return self.literal()
        if token.text in _WORDS:
            return _WORDS[token.text]
        if re.fullmatch(r"-?\d+", token.text):
            return int(token.text)
        try:
            return float(token.text)
        except ValueError:
            self.place -= 1
            return self.dim()

    def literal(self) -> Literal:
        start = self.token.offset
        type = self.type()
        if any(isinstance(d, Polynomial) for d in type.shape):
            self.fail("a literal's shape must be numbers", start)
        self.expect("{")
        if self.token.kind == "base64":
            try:
                data = b64decode(self.take().text.removeprefix("base64:"), validate=True)
            except Base64Error as error:
                self.fail(f"malformed base64: {error}", start)
        else:
            data = self.elements(type, start)
        if len(data) != type.nbytes:
            self.fail(f"{type} has {type.nbytes} bytes, not {len(data)}", start)
        self.expect("}")
        return Literal(type, data)

    def elements(self, type: TensorType, start: int) -> bytes:
        tokens = self.list_of(lambda: self.of("word", "a number")) if self.token.kind == "word" else []
        numbers = []
        for token in tokens:
            try:
                numbers.append(_number(token.text, type.dtype))
            except (ValueError, KeyError):
                self.fail(f"{token.text!r} is no {type.dtype}", token.offset)
        try:
            array = np.array(numbers, type.dtype.numpy)
        except OverflowError:
            self.fail(f"a number does not fit {type.dtype}", start)
        try:
            return array.tobytes() * (math.prod(type.extents) if len(numbers) == 1 else 1)
        except (MemoryError, OverflowError):
            self.fail(f"a literal of {type.nbytes} bytes cannot be had", start)


_WORDS = {"none": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}

set_printer(print_graph)
