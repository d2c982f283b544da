"""A training script's own statements, taken apart: what sets it up, and one step of its loop."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any


class Constants(ast.NodeTransformer):
    """Puts other values where a script has its own: in assignments, fields of dataclasses, arguments by name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.found = values, set[str]()

    def _new(self, name: str, value: ast.expr) -> ast.expr:
        if name not in self.values:
            return value
        self.found.add(name)
        return ast.copy_location(ast.Constant(self.values[name]), value)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            node.value = self._new(node.targets[0].id, node.value)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name) and node.value is not None:
            node.value = self._new(node.target.id, node.value)
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg is not None and isinstance(node.value, ast.Constant):
            node.value = self._new(node.arg, node.value)
        return self.generic_visit(node)


def cut(
    path: Path, constants: Mapping[str, Any], first: str, without: tuple[str, ...] = ()
) -> tuple[CodeType, CodeType]:
    """What comes before a script's last loop at top level; and one turn of it, from the statement that has the text
    `first`, but for those that have one of `without`. `constants` are values in the place of the script's own."""
    tree = ast.parse(path.read_text())
    put = Constants(constants)
    put.visit(tree)
    if missing := set(constants) - put.found:
        raise SystemExit(f"{path} is another version: it does not set {', '.join(sorted(missing))}")
    at = max((n for n, node in enumerate(tree.body) if isinstance(node, (ast.While, ast.For))), default=None)
    loop = None if at is None else tree.body[at]
    assert isinstance(loop, (ast.While, ast.For)), f"{path} has no loop"
    texts = [ast.unparse(node) for node in loop.body]
    begin = next(n for n, text in enumerate(texts) if first in text)
    step = [
        node
        for node, text in zip(loop.body[begin:], texts[begin:], strict=True)
        if not any(left_out in text for left_out in without)
    ]
    setup = ast.fix_missing_locations(ast.Module(tree.body[:at], []))
    turn = ast.fix_missing_locations(ast.Module(step, []))
    return compile(setup, str(path), "exec"), compile(turn, str(path), "exec")
