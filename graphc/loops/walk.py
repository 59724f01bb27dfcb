"""What statements contain: all of them in order, the buffers they read, write and declare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from graphc.loops.ir import (
    Buffer,
    Check,
    Expr,
    If,
    Let,
    Load,
    LoadAt,
    Local,
    Loop,
    Reduce,
    Scalar,
    Select,
    Stmt,
    Store,
    StoreAt,
    Transpose,
)


def statements(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, outer ones first."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, Loop | If):
            yield from statements(stmt.body)


def expressions(expr: Expr) -> Iterator[Expr]:
    """An expression and all its parts."""
    yield expr
    match expr:
        case Scalar(_, args):
            parts: tuple[Expr, ...] = args
        case Select(_, then, otherwise):
            parts = (then, otherwise)
        case LoadAt(_, _, _, at):
            parts = (at,)
        case _:
            parts = ()
    for part in parts:
        yield from expressions(part)


def declared(body: Iterable[Stmt]) -> set[Buffer]:
    """Locals that come into scope."""
    return {stmt.buffer for stmt in statements(body) if isinstance(stmt, Local)}


def written(body: Iterable[Stmt]) -> set[Buffer]:
    """Buffers that are written."""
    return {stmt.buffer for stmt in statements(body) if isinstance(stmt, Store | Reduce | StoreAt | Transpose)}


def read(body: Iterable[Stmt]) -> set[Buffer]:
    """Buffers that are read; a reduction reads its target, and what is asked for beforehand is not read yet."""
    found: set[Buffer] = set()
    for stmt in statements(body):
        match stmt:
            case Let(_, value) | Store(_, _, value) | Check(value):
                roots: tuple[Expr, ...] = (value,)
            case Reduce(_, buffer, _, value):
                found.add(buffer)
                roots = (value,)
            case Transpose(buffer):
                found.add(buffer)
                roots = ()
            case StoreAt(buffer, _, _, at, value):
                found.add(buffer)
                roots = (at, value)
            case _:
                roots = ()
        parts = (part for root in roots for part in expressions(root))
        found |= {part.buffer for part in parts if isinstance(part, Load | LoadAt)}
    return found
