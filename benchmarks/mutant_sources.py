"""Mutants of the engine and the rules by cosmic-ray's operators, without those that change nothing.

A mutant counts if it is Python and differs from the original in what is run.  Not run are
annotations, f-strings (here they only word messages), what is under ``if TYPE_CHECKING``,
overloads and protocols; caches of functions change the time only.  Two sources are the same if
they are once these are left out.  ``is`` and ``==`` count as one where one side is a constant:
small integers, names and None exist once.

Left out are cosmic-ray's operators on variables, which need names, and those that put ``is`` or
``is not`` in the place of ``<`` or ``==``: no fault that is made, and by chance the same on small
numbers (mutmut does not make them either).
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

_LEFT_OUT = re.compile(r"core/(Variable|ReplaceComparisonOperator_(?!Is)\w+?_Is(Not)?$)")
FOLDERS = ("captum_lrp_tx/rules", "captum_lrp_tx/propagation")


@dataclass(frozen=True)
class Mutant:
    """One occurrence of one operator in one file."""

    file: str
    operator: str
    occurrence: int

    def source(self, root: Path) -> str | None:
        """The file with the change; None if it changes nothing that is run."""
        plain = (root / self.file).read_text()
        changed = mutate_code(plain, get_operator(self.operator)(), self.occurrence)
        if changed is None:
            return None
        try:
            meaning = _meaning(changed)
        except SyntaxError:
            return None
        return None if meaning == _meaning(plain) else changed


def candidates(root: Path) -> Iterator[Mutant]:
    """Everything that the operators offer, but for those that are left out."""
    operators = [name for name in sorted(operator_names()) if not _LEFT_OUT.match(name)]
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            nodes = list(ast_nodes(get_ast(file.read_text())))
            for name in operators:
                operator = get_operator(name)()
                count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
                for i in range(count):
                    yield Mutant(str(file.relative_to(root)), name, i)


@functools.lru_cache(maxsize=128)
def _meaning(source: str) -> str:
    return ast.dump(_Run().visit(ast.parse(source)))


class _Run(ast.NodeTransformer):
    """Keeps of a tree what is run."""

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> Any:
        if any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators)):
            same = {ast.Is: ast.Eq, ast.IsNot: ast.NotEq}
            node.ops = [same.get(type(op), type(op))() for op in node.ops]
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return ast.Constant("")

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            return None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
            return None
        node.returns = None
        node.decorator_list = [d for d in node.decorator_list if "cache" not in ast.unparse(d)]
        return self.generic_visit(node)


def statement_lines(source: str, line: int) -> tuple[range, bool]:
    """
    The lines of the smallest statement around a line, and whether it runs when the file is
    imported: on the level of the module or of a class, or the head of a function.

    Of a statement that holds others only its head counts: up to the first statement inside.
    For the head of a function these are the lines of its body: the tests that call it.
    """
    found, runs_on_import = range(line, line + 1), True
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while todo:
        node, outside = todo.pop()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
                continue
            decorators = getattr(child, "decorator_list", [])
            first = min([_line(child), *(d.lineno for d in decorators)])
            last = _last(child)
            if not first <= line <= last:
                continue
            body = getattr(child, "body", None) or getattr(child, "cases", None)
            head = max(first, _line(body[0]) - 1) if body else last
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function and line <= head and body:
                return range(_line(body[0]), last + 1), outside
            found, runs_on_import = range(first, head + 1), outside
            todo.append((child, outside and not is_function))
    return found, runs_on_import


def _line(node: Any) -> int:
    return int(node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno)


def _last(node: Any) -> int:
    return int(node.body[-1].end_lineno if isinstance(node, ast.match_case) else node.end_lineno)
