"""The project's own source as syntax trees, and the small questions that the rules ask of it. Runs nothing of `app`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Import:
    """One imported name: `import a.b` is `a.b`; `from a import b` is `a.b` (b may be a module or a thing in it)."""

    name: str
    line: int
    lazy: bool  # inside a function: happens when called, not when loaded
    typing_only: bool  # under `if TYPE_CHECKING:`: never happens


@dataclass(frozen=True)
class Source:
    """One file: its module name, text and tree."""

    module: str
    path: str
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, text: str, module: str = "app.offender") -> Source:
        """A source that exists only in a test."""
        return cls(module, module.replace(".", "/") + ".py", text, ast.parse(text))

    def imports(self) -> list[Import]:
        return list(_imports(self.tree, lazy=False, typing_only=False))

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Every call with its dotted name, local aliases resolved: `from queue import Queue as Q; Q()` is `queue.Queue`."""
        names = self._names()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (dotted := _dotted(node.func)):
                yield _resolve(dotted, names), node

    def uses(self) -> Iterator[tuple[str, int]]:
        """Every dotted name that is read, aliases resolved, with its line."""
        names = self._names()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute | ast.Name) and (dotted := _dotted(node)):
                yield _resolve(dotted, names), node.lineno

    def _names(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        return found


@cache
def sources(folder: str = "app") -> tuple[Source, ...]:
    """All files of a folder, shipped models left out."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        relative = path.relative_to(ROOT)
        parts = relative.with_suffix("").parts
        if "_models" in parts or "__pycache__" in parts:
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found.append(Source(module, str(relative), text, ast.parse(text)))
    return tuple(found)


def module_of(name: str, modules: set[str]) -> str | None:
    """The longest prefix of an imported name that is one of `modules`."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def _imports(node: ast.AST, *, lazy: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy, typing_only)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                yield Import("." * child.level + f"{child.module or ''}.{alias.name}", child.lineno, lazy, typing_only)
        elif isinstance(child, ast.If) and _dotted(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for part in child.body:
                yield from _imports(ast.Module([part], []), lazy=lazy, typing_only=True)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), lazy=lazy, typing_only=typing_only)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, lazy=lazy or inside, typing_only=typing_only)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def _resolve(dotted: str, names: dict[str, str]) -> str:
    head, dot, rest = dotted.partition(".")
    return names.get(head, head) + dot + rest
