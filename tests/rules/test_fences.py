"""What may be used where: web frameworks, sockets, the environment, torch; and what may be used nowhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.rules.source import ROOT, Source, module_of, sources

# Package → the modules that alone may import it.
ONLY_IN = {
    "fastapi": ("app.web",),
    "starlette": ("app.web",),
    "uvicorn": ("app.web",),
    "typer": ("app.cli",),
    "accelerate": ("app.tuning",),  # not in what serves
}
NOWHERE = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "requests", "sentence_transformers")
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv")
TORCH = ("torch", "torchvision", "transformers", "safetensors.torch")
# Frontends and the supervisor: they start in a second and stay small, because none of this loads torch.
TORCHLESS = (
    *("app.web", "app.pool", "app.decoding", "app.wire", "app.main", "app.cli", "app.welcome"),
    *("app.card", "app.catalogue", "app.weights", "app.download", "app.settings", "app.errors", "app.metrics", "app.logs"),
)
QUEUES = (
    *("queue.Queue", "queue.LifoQueue", "queue.PriorityQueue", "multiprocessing.Queue", "multiprocessing.JoinableQueue"),
    *("asyncio.Queue", "asyncio.LifoQueue", "asyncio.PriorityQueue"),
)
UNBOUNDABLE = ("queue.SimpleQueue", "multiprocessing.SimpleQueue")
EVALUATORS = ("eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile")


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def torchless(module: str) -> bool:
    return inside(module, TORCHLESS) or (module.startswith("app.tasks.") and module.rpartition(".")[2] == "codec")


def frameworks(source: Source) -> list[str]:
    return [
        f"{source.path}:{one.line}: {one.name}; only {' and '.join(homes)} may import {package}"
        for one in source.imports()
        for package, homes in ONLY_IN.items()
        if inside(one.name, (package,)) and not inside(source.module, homes)
    ]


def forbidden_modules(source: Source) -> list[str]:
    return [f"{source.path}:{one.line}: {one.name}" for one in source.imports() if inside(one.name, NOWHERE)]


def environment(source: Source) -> list[str]:
    if source.module == "app.settings":
        return []
    return [f"{source.path}:{line}: {name}; ask app/settings.py" for name, line in source.uses() if name in ENVIRONMENT]


def torch_imports(source: Source) -> list[str]:
    """Late imports count too: a frontend must not load torch at any time."""
    if not torchless(source.module):
        return []
    return [
        f"{source.path}:{one.line}: {one.name}" for one in source.imports() if inside(one.name, TORCH) and not one.typing_only
    ]


def unsafe_loads(source: Source) -> list[str]:
    return [
        f"{source.path}:{call.lineno}: torch.load without weights_only=True"
        for name, call in source.calls()
        if name == "torch.load" and not any(k.arg == "weights_only" and is_true(k.value) for k in call.keywords)
    ]


def bare_queues(source: Source) -> list[str]:
    found = []
    for name, call in source.calls():
        bound = call.args or [k.value for k in call.keywords if k.arg == "maxsize"]
        endless = bool(bound) and isinstance(bound[0], ast.Constant) and bound[0].value in (0, None)
        if name in UNBOUNDABLE or (name in QUEUES and (not bound or endless)):
            found.append(f"{source.path}:{call.lineno}: {name} without a bound")
    return found


def evaluators(source: Source) -> list[str]:
    return [f"{source.path}:{call.lineno}: {name}()" for name, call in source.calls() if name in EVALUATORS]


def is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


Rule = Callable[[Source], list[str]]
RULES: dict[str, tuple[Rule, list[tuple[str, str]]]] = {
    # Each rule with snippets (module, text) that it must refuse.
    "frameworks": (
        frameworks,
        [
            ("app.pool.client", "from fastapi import Request"),
            ("app.engine.worker", "import starlette.responses"),
            ("app.engine.loader", "from accelerate import Accelerator"),
            ("app.pool.client", "def late():\n    import fastapi.routing"),
        ],
    ),
    "forbidden modules": (
        forbidden_modules,
        [
            ("app.wire.frames", "import pickle"),
            ("app.tuning.jobs", "from shelve import open"),
            ("app.x", "import marshal as m"),
        ],
    ),
    "environment": (
        environment,
        [
            ("app.web.server", "import os\nport = os.environ['PORT']"),
            ("app.engine.device", "import os\nos.environ.setdefault('A', 'b')"),
            ("app.weights", "from os import getenv\nx = getenv('HF_TOKEN')"),
            ("app.weights", "from os import environ as e\nx = e['A']"),
        ],
    ),
    "torch": (
        torch_imports,
        [
            ("app.web.predict", "import torch"),
            ("app.pool.client", "def late():\n    from torch import nn"),
            ("app.tasks.image.codec", "import torchvision.io"),
            ("app.catalogue", "from safetensors.torch import load_file"),
        ],
    ),
    "torch.load": (
        unsafe_loads,
        [
            ("app.x", "import torch\ntorch.load('f')"),
            ("app.x", "import torch as t\nt.load('f', weights_only=False)"),
            ("app.x", "from torch import load\nload('f', weights_only=flag)"),
        ],
    ),
    "bounded queues": (
        bare_queues,
        [
            ("app.x", "import asyncio\nq = asyncio.Queue()"),
            ("app.x", "from queue import Queue\nq = Queue(maxsize=0)"),
            ("app.x", "from queue import SimpleQueue as Q\nq = Q()"),
        ],
    ),
    "no eval": (evaluators, [("app.x", "eval('1')"), ("app.x", "import builtins as b\nb.exec('x = 1')")]),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps(rule: str) -> None:
    assert len(sources()) > 20, "the walk found hardly any source: is ROOT right?"
    check, _ = RULES[rule]
    assert [offence for source in sources() for offence in check(source)] == []


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_sees_offenders(rule: str) -> None:
    check, offenders = RULES[rule]
    for module, text in offenders:
        assert len(check(Source.of(text, module))) == 1, text


def test_bounded_and_safe_calls_pass() -> None:
    good = "import asyncio, torch\nasyncio.Queue(maxsize=n)\ntorch.load('f', weights_only=True)\nre.compile('x')\nmodel.eval()"
    for check, _ in RULES.values():
        assert check(Source.of(good, "app.x")) == []


def test_torchless_modules_load_nothing_that_loads_torch() -> None:
    """Statically, through every load-time import of ours: the message names the first step towards torch."""
    trees = {source.module: source for source in sources()}
    tainted = {
        module for module, source in trees.items()
        if any(inside(one.name, TORCH) and not one.lazy and not one.typing_only for one in source.imports())
    }  # fmt: skip
    assert tainted, "nobody imports torch? then this test sees nothing"
    grown = True
    while grown:
        more = {
            module for module, source in trees.items()
            if any(not i.lazy and not i.typing_only and module_of(i.name, set(trees)) in tainted for i in source.imports())
        }  # fmt: skip
        grown = not more <= tainted
        tainted |= more
    assert [module for module in trees if torchless(module) and module in tainted] == []


def test_torchless_modules_leave_torch_unloaded() -> None:
    """For real, third parties included, in one fresh process; the modules are asked one after the other."""
    modules = [source.module for source in sources() if torchless(source.module)]
    assert len(modules) > 10
    assert loads_torch(modules) == ""


def test_the_fresh_process_sees_torch() -> None:
    assert loads_torch(["json", "torch"]) == "torch"


def loads_torch(modules: list[str]) -> str:
    """The first of the modules whose import brings torch in; empty if none does."""
    # A stand-in that notes its import: the real one takes seconds and tells no more.
    program = """
import importlib, importlib.abc, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "transformers"):
            print(current, end=""); sys.stdout.flush(); import os; os._exit(0)
sys.meta_path.insert(0, Watch())
for current in sys.argv[1:]:
    importlib.import_module(current)
"""
    done = subprocess.run([sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
