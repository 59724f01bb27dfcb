"""Text of the loop IR: a printer and a parser, inverse to each other byte for byte.

    kernel scale(x: f32[64,128] in, y: f32[64] out) {
      for i parallel 64 {
        local acc: f32[16]
        for v vector 16 lanes 16 {
          acc[v] = 0.0:f32
        }
        for j 8 {
          for v vector 16 lanes 16 {
            let t0 = x[i, 16*j+v]                             // train.py:12
            acc[v] max= mul(t0, 2.0:f32)
          }
        }
        …
      }
    }

A number carries its type unless it is `true` or `false`; a scalar op only where it is not the one that `usual_dtype`
says. `x[i-1] if i-1>=0 and 8-i>=0 else 0.0` is a load under conditions, `x[i, @t3, v]` a load whose position is data,
and `x[i, @t3, v] += t4` its transpose. A comment at the end of a statement is the user's line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from graphc.errors import ParseError
from graphc.ir.index import Condition, Div, Index, Mod, Var
from graphc.ir.source import Location
from graphc.ir.types import DType
from graphc.loops.ir import (
    Buffer,
    Check,
    Const,
    Expr,
    Function,
    If,
    Let,
    Load,
    LoadAt,
    Local,
    Loop,
    LoopKind,
    Position,
    Prefetch,
    Read,
    Reduce,
    Scalar,
    Select,
    Space,
    Stmt,
    Store,
    StoreAt,
    Transpose,
    dtype_of,
)

REDUCE_SIGNS = {
    "add": "+=",
    "mul": "*=",
    "maximum": "max=",
    "minimum": "min=",
    "logical_and": "and=",
    "logical_or": "or=",
}
_REDUCE_OPS = {sign: op for op, sign in REDUCE_SIGNS.items()}
_TRUTHS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
_COMMENT_COLUMN = 64


def usual_dtype(op: str, args: tuple[Expr, ...]) -> DType:
    """The result type that a scalar op has unless its text says otherwise."""
    if op in _TRUTHS:
        return DType.BOOL
    return dtype_of(args[1] if op == "where" else args[0])


# Printing ----------------------------------------------------------------------------------------------------


def print_function(function: Function, *, locations: bool = True) -> str:
    """The text of a kernel. Without `locations`, kernels that compute the same have the same text."""
    parameters = (*function.inputs, *function.outputs, *function.scratch)
    header = ", ".join(f"{_declaration(b)} {b.space.value}" for b in parameters)
    lines = [f"kernel {function.name}({header}) {{", *_lines(function.body, "  ", locations), "}"]
    return "\n".join(lines) + "\n"


def print_expr(expr: Expr) -> str:
    """The text of an expression."""
    match expr:
        case Const(value, dtype):
            return _number(value) if dtype is DType.BOOL else f"{_number(value)}:{dtype}"
        case Position(index, dtype):
            return f"position({index}):{dtype}"
        case Load(buffer, index, conditions, otherwise):
            guard = f" if {_conditions(conditions)} else {_number(otherwise)}" if conditions else ""
            return f"{_element(buffer, index)}{guard}"
        case LoadAt(buffer, index, axis, at):
            return _element_at(buffer, index, axis, at)
        case Read(name):
            return name
        case Scalar(op, args, dtype):
            text = f"{op}({', '.join(map(print_expr, args))})"
            return text if dtype is usual_dtype(op, args) else f"{text}:{dtype}"
        case Select(conditions, then, otherwise):
            return f"select({_conditions(conditions)}, {print_expr(then)}, {print_expr(otherwise)})"


def _lines(body: tuple[Stmt, ...], indent: str, locations: bool) -> Iterator[str]:
    for stmt in body:
        match stmt:
            case Loop(var, kind, inner, lanes):
                word = "" if kind is LoopKind.SERIAL else f"{kind.value} "
                width = f" lanes {lanes}" if kind is LoopKind.VECTOR else ""
                yield f"{indent}for {var} {word}{var.extent}{width} {{"
                yield from _lines(inner, indent + "  ", locations)
                yield indent + "}"
            case If(conditions, inner):
                yield f"{indent}if {_conditions(conditions)} {{"
                yield from _lines(inner, indent + "  ", locations)
                yield indent + "}"
            case Local(buffer):
                yield f"{indent}local {_declaration(buffer)}"
            case Transpose(buffer):
                yield f"{indent}transpose {buffer.name}"
            case Prefetch(buffer, index):
                yield f"{indent}prefetch {_element(buffer, index)}"
            case Check(condition, code):
                yield f"{indent}check {print_expr(condition)} code {code}"
            case Let() | Store() | Reduce() | StoreAt():
                line = indent + _assignment(stmt)
                place = f"// {stmt.location.short}" if locations and stmt.location else ""
                yield f"{line:<{_COMMENT_COLUMN}}  {place}" if place else line


def _assignment(stmt: Let | Store | Reduce | StoreAt) -> str:
    match stmt:
        case Let(name, value):
            return f"let {name} = {print_expr(value)}"
        case Store(buffer, index, value):
            return f"{_element(buffer, index)} = {print_expr(value)}"
        case Reduce(op, buffer, index, value):
            return f"{_element(buffer, index)} {REDUCE_SIGNS[op]} {print_expr(value)}"
        case StoreAt(buffer, index, axis, at, value):
            return f"{_element_at(buffer, index, axis, at)} += {print_expr(value)}"


def _declaration(buffer: Buffer) -> str:
    return f"{buffer.name}: {buffer.dtype}[{','.join(map(str, buffer.shape))}]"


def _element(buffer: Buffer, index: tuple[Index, ...]) -> str:
    return f"{buffer.name}[{', '.join(map(str, index))}]"


def _element_at(buffer: Buffer, index: tuple[Index, ...], axis: int, at: Expr) -> str:
    places = [f"@{print_expr(at)}" if number == axis else str(place) for number, place in enumerate(index)]
    return f"{buffer.name}[{', '.join(places)}]"


def _conditions(conditions: tuple[Condition, ...]) -> str:
    return " and ".join(map(str, conditions))


def _number(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


# Parsing -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>[ \t]+)|(?P<newline>\n)|//[ \t]*(?P<comment>[^\n]*)|(?P<float>\d+\.\d+(?:e[+-]\d+)?|\d+e[+-]\d+)"
    r"|(?P<int>\d+)|(?P<name>[A-Za-z_][\w.]*)|(?P<sign>>=|==|\+=|\*=|[-+*/%=()\[\]{}:,@])"
)
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    offset: int


def parse_function(text: str, source: str = "<text>") -> Function:
    """Inverse of `print_function`; raises ParseError with line and column."""
    return _Parser(text, source).function()


class _Parser:
    """Recursive descent. Scopes hold what a name stands for; the innermost is last."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.tokens = list(self._tokens())
        self.next = 0
        self.buffers: dict[str, Buffer] = {}
        self.variables: dict[str, Var] = {}
        self.reads: dict[str, Read] = {}

    # Tokens --------------------------------------------------------------------------------------------------

    def _tokens(self) -> Iterator[_Token]:
        offset = 0
        while offset < len(self.text):
            match = _TOKEN.match(self.text, offset)
            if match is None:
                self.fail(f"unexpected {self.text[offset]!r}", offset)
            if match.lastgroup is not None and match.lastgroup != "space":
                yield _Token(match.lastgroup, match[match.lastgroup], offset)
            offset = match.end()
        yield _Token("end", "end of text", offset)

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        where = self.tokens[self.next].offset if offset is None else offset
        before = self.text[:where]
        raise ParseError(message, before.count("\n") + 1, where - before.rfind("\n"), self.source)

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def take(self, text: str) -> bool:
        """Step over a name or sign if it stands here."""
        found = self.token.kind in ("name", "sign") and self.token.text == text
        self.next += found
        return found

    def expect(self, text: str) -> None:
        if not self.take(text):
            self.fail(f"expected {text!r}, found {self.token.text!r}")

    def kind(self, kind: str) -> str:
        token = self.token
        if token.kind != kind:
            self.fail(f"expected a {kind}, found {token.text!r}")
        self.next += 1
        return token.text

    def integer(self) -> int:
        return int(self.kind("int"))

    def lines(self) -> None:
        """Step over line ends and lines that hold only a comment."""
        while self.token.kind in ("newline", "comment"):
            self.next += 1

    def listed(self, item: Callable[[], _Item], close: str) -> tuple[_Item, ...]:
        found: list[_Item] = []
        if self.take(close):
            return ()
        while True:
            found.append(item())
            if self.take(close):
                return tuple(found)
            self.expect(",")

    def separated(self, item: Callable[[], _Item]) -> tuple[_Item, ...]:
        found = [item()]
        while self.take("and"):
            found.append(item())
        return tuple(found)

    # Statements ----------------------------------------------------------------------------------------------

    def function(self) -> Function:
        self.lines()
        self.expect("kernel")
        name = self.kind("name")
        self.expect("(")
        parameters = self.listed(self.parameter, ")")
        body = self.block()
        self.lines()
        self.kind("end")
        by_space = {space: tuple(b for b in parameters if b.space is space) for space in Space}
        return Function(name, by_space[Space.INPUT], by_space[Space.OUTPUT], by_space[Space.SCRATCH], body)

    def parameter(self) -> Buffer:
        name, dtype, shape = self.declaration()
        word = self.kind("name")
        if word not in ("in", "out", "scratch"):
            self.fail(f"a parameter is in, out or scratch, not {word!r}")
        return self.declare(Buffer(name, dtype, shape, Space(word)))

    def declare(self, buffer: Buffer) -> Buffer:
        self.buffers[buffer.name] = buffer
        return buffer

    def declaration(self) -> tuple[str, DType, tuple[int, ...]]:
        name = self.kind("name")
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        return name, dtype, self.listed(self.integer, "]")

    def dtype(self) -> DType:
        word = self.kind("name")
        if word not in DType._value2member_map_:
            self.fail(f"unknown dtype {word!r}")
        return DType(word)

    def block(self) -> tuple[Stmt, ...]:
        outside = dict(self.buffers), dict(self.variables), dict(self.reads)
        self.expect("{")
        self.kind("newline")
        body: list[Stmt] = []
        self.lines()
        while not self.take("}"):
            body.append(self.statement())
            if self.token.kind == "comment":
                self.next += 1
            self.kind("newline")
            self.lines()
        self.buffers, self.variables, self.reads = outside
        return tuple(body)

    def statement(self) -> Stmt:
        if self.take("for"):
            return self.loop()
        if self.take("if"):
            return If(self.separated(self.condition), self.block())
        if self.take("local"):
            return Local(self.declare(Buffer(*self.declaration(), Space.LOCAL)))
        if self.take("transpose"):
            return Transpose(self.buffer())
        if self.take("prefetch"):
            buffer, index, _, at = self.element()
            if at is not None:
                self.fail("a position that is data is not asked for beforehand")
            return Prefetch(buffer, index)
        if self.take("check"):
            condition = self.expr()
            self.expect("code")
            return Check(condition, self.integer())
        if self.take("let"):
            name = self.kind("name")
            self.expect("=")
            value = self.expr()
            self.reads[name] = Read(name, dtype_of(value))
            return Let(name, value, self.location())
        return self.write()

    def loop(self) -> Loop:
        name = self.kind("name")
        word = self.kind("name") if self.token.kind == "name" else "serial"
        if word not in LoopKind._value2member_map_:
            self.fail(f"unknown kind of loop {word!r}")
        kind, var = LoopKind(word), Var(name, self.integer())
        lanes = 1
        if kind is LoopKind.VECTOR:
            self.expect("lanes")
            lanes = self.integer()
        outside = dict(self.variables)
        self.variables[name] = var
        body = self.block()
        self.variables = outside
        return Loop(var, kind, body, lanes)

    def write(self) -> Store | Reduce | StoreAt:
        buffer, index, axis, at = self.element()
        sign = self.token.text if self.token.kind == "sign" else self.kind("name") + "="
        self.next += 1
        value = self.expr()
        if at is not None:
            if sign != "+=":
                self.fail(f"a place given by data is written with '+=', not {sign!r}")
            return StoreAt(buffer, index, axis, at, value, self.location())
        if sign == "=":
            return Store(buffer, index, value, self.location())
        if sign not in _REDUCE_OPS:
            self.fail(f"expected one of = {' '.join(_REDUCE_OPS)}, found {sign!r}")
        return Reduce(_REDUCE_OPS[sign], buffer, index, value, self.location())

    def location(self) -> Location | None:
        if self.token.kind != "comment":
            return None
        file, _, line = self.token.text.rpartition(":")
        return Location(file, int(line)) if file and line.isdecimal() else None

    # Expressions ---------------------------------------------------------------------------------------------

    def expr(self) -> Expr:
        if self.token.kind != "name" or self.token.text in ("true", "false", "inf", "nan"):
            return self.const()
        follows = self.tokens[self.next + 1]
        if follows.kind == "sign" and follows.text == "[":
            return self.load()
        if follows.kind == "sign" and follows.text == "(":
            return self.call()
        name = self.kind("name")
        if name not in self.reads:
            self.next -= 1
            self.fail(f"{name} is not bound")
        return self.reads[name]

    def const(self) -> Const:
        value = self.number()
        if isinstance(value, bool):
            return Const(value, DType.BOOL)
        self.expect(":")
        return Const(value, self.dtype())

    def number(self) -> float | int | bool:
        for word, truth in (("true", True), ("false", False)):
            if self.take(word):
                return truth
        sign = -1 if self.take("-") else 1
        if self.token.kind == "int":
            return sign * self.integer()
        if self.take("inf"):
            return sign * float("inf")
        if self.take("nan"):
            return float("nan")
        return sign * float(self.kind("float"))

    def load(self) -> Load | LoadAt:
        buffer, index, axis, at = self.element()
        if at is not None:
            return LoadAt(buffer, index, axis, at)
        if not self.take("if"):
            return Load(buffer, index)
        conditions = self.separated(self.condition)
        self.expect("else")
        return Load(buffer, index, conditions, self.number())

    def call(self) -> Expr:
        op = self.kind("name")
        self.expect("(")
        if op == "position":
            place = self.index()
            self.expect(")")
            self.expect(":")
            return Position(place, self.dtype())
        if op == "select":
            conditions = self.separated(self.condition)
            self.expect(",")
            then = self.expr()
            self.expect(",")
            otherwise = self.expr()
            self.expect(")")
            return Select(conditions, then, otherwise)
        args = self.listed(self.expr, ")")
        if not args:
            self.fail(f"{op} needs an operand")
        return Scalar(op, args, self.dtype() if self.take(":") else usual_dtype(op, args))

    def element(self) -> tuple[Buffer, tuple[Index, ...], int, Expr | None]:
        """Buffer, index, and the axis and expression of a position that is data."""
        buffer = self.buffer()
        self.expect("[")
        places = self.listed(self.place, "]")
        data = [(axis, at) for axis, (_, at) in enumerate(places) if at is not None]
        if len(data) > 1:
            self.fail("only one position may be data")
        axis, found = data[0] if data else (0, None)
        return buffer, tuple(index for index, _ in places), axis, found

    def buffer(self) -> Buffer:
        name = self.kind("name")
        if name not in self.buffers:
            self.next -= 1
            self.fail(f"no buffer {name}")
        return self.buffers[name]

    def place(self) -> tuple[Index, Expr | None]:
        return (Index(), self.expr()) if self.take("@") else (self.index(), None)

    # Indices -------------------------------------------------------------------------------------------------

    def index(self) -> Index:
        total = self.term(-1 if self.take("-") else 1)
        while self.token.text in ("+", "-"):
            total = total + self.term(-1 if self.kind("sign") == "-" else 1)
        return total

    def term(self, factor: int) -> Index:
        if self.token.kind == "int":
            factor *= self.integer()
            if not self.take("*"):
                return Index(factor)
        return Index(0, ((self.atom(), factor),))

    def atom(self) -> Var | Div | Mod:
        if self.take("("):
            inner = self.index()
            self.expect(")")
            if self.take("/"):
                return Div(inner, self.integer())
            self.expect("%")
            return Mod(inner, self.integer())
        name = self.kind("name")
        if name not in self.variables:
            self.next -= 1
            self.fail(f"variable {name} is not bound by a loop")
        return self.variables[name]

    def condition(self) -> Condition:
        index = self.index()
        equal = self.take("==")
        if not equal:
            self.expect(">=")
        if self.integer() != 0:
            self.fail("a condition compares with 0")
        return Condition(index, equal)
