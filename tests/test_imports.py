"""Imports point one way, do no work, and load nothing heavy before it is needed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import overnight

HOME = Path(overnight.__file__).parent
CORE = ("config", "model", "loss", "optim", "loader", "distributed")


def module_name(path: Path) -> str:
    """Without the package's own name: 'evals.loss', and '' for the package itself."""
    return ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix("__init__").rstrip(".")


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(HOME.rglob("*.py"))
    if path.parent.name != "transformers_code"  # what exports carry, for elsewhere
}


def statements(tree: ast.Module, lazy: bool) -> list[ast.stmt]:
    """The statements of a module that run when it is imported; with `lazy` those in functions too.

    What is imported for annotations only (`if TYPE_CHECKING`) does not run.
    """
    found: list[ast.stmt] = []

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            found.append(node)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                walk(node.orelse)
                continue
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazy:
                continue
            for field in ("body", "orelse", "finalbody"):
                walk(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                walk(handler.body)

    walk(tree.body)
    return found


def imports(name: str, lazy: bool = True) -> set[str]:
    """What a module imports: full names, and for `from a import b` the module b of package a where it is one."""
    found = set()
    for node in statements(TREES[name], lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("overnight.") in TREES else node.module)
    return found


def ours(name: str, lazy: bool = True) -> set[str]:
    """The modules of the package that a module imports, without the package's own name."""
    return {
        full.removeprefix("overnight").removeprefix(".")
        for full in imports(name, lazy)
        if full.partition(".")[0] == "overnight"
    }


def reachable(name: str, lazy: bool = True) -> set[str]:
    """All that a module imports, also through others, with the packages that importing them runs."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for found in ours(waiting.pop(), lazy):
            parts = found.split(".")
            for module in (".".join(parts[: n + 1]) for n in range(len(parts))):
                if module not in seen:
                    seen.add(module)
                    waiting.append(module)
    return seen


def within(modules: set[str], *packages: str) -> set[str]:
    return {name for name in modules if any(name == package or name.startswith(package + ".") for package in packages)}


def test_the_modules_are_found() -> None:
    assert {"", "training", "session", "cli", "cli.train", "evals.loss", "report", "data", *CORE} <= set(TREES)
    assert {"checkpoint", "optim", "loader", "machine.device"} <= ours("training")


def test_config_imports_nothing_but_errors() -> None:
    assert ours("config") == {"errors"}
    assert ours("errors") == set()


ALLOWED = {  # the core: each knows only those to the right of it
    "loss": set(),
    "distributed": {"errors"},
    "mapped": {"errors"},
    "loader": {"errors", "config", "distributed", "mapped"},
    "shares": {"errors", "distributed"},
    "pieces": set(),
    "muon": {"errors", "distributed", "pieces", "shares"},
    "optim": {"errors", "config", "distributed", "pieces", "shares", "muon"},
    "attention": set(),
    "model": {"errors", "config", "distributed", "loss", "attention", "plugins"},
    "modern": {"errors", "config", "distributed", "loss", "attention", "plugins", "model"},
    "halves": {"errors", "config", "distributed", "loss", "attention", "pieces", "plugins", "model"},
}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_the_core_imports_only_itself_downwards(name: str) -> None:
    assert ours(name) <= ALLOWED[name]


@pytest.mark.parametrize("name", ["files", "runs", "checkpoint", "metrics", "generate"])
def test_what_lies_above_the_core_does_not_know_training(name: str) -> None:
    assert not within(reachable(name), "training", "session", "hooks", "api", "cli")


@pytest.mark.parametrize("name", ["training", "session"])
def test_training_knows_nothing_of_what_is_handed_to_it(name: str) -> None:
    assert not within(reachable(name), "evals", "data.sources", "exchange", "report", "cli", "hooks", "api")


def test_only_commands_import_commands() -> None:
    for name in TREES:
        if not within({name}, "cli", "__main__"):
            assert not within(ours(name), "cli"), name


def test_report_reads_run_folders_only() -> None:
    for name in within(set(TREES), "report"):
        known = {"", "errors", "files", "following", "words", "evals.baselines"}
        assert not ours(name) - within(ours(name), "report", "bands") - known, name
        assert not {full for full in imports(name) if full.partition(".")[0] in ("torch", "safetensors")}, name


def test_watch_and_trackers_read_run_folders_only() -> None:
    for name in within(set(TREES), "watch", "tracking"):
        known = within(ours(name), "watch", "tracking", "report")
        assert not ours(name) - known - {"", "errors", "files", "following", "words", "runs", "config", "console"}, name
        assert "torch" not in imports(name, lazy=False), name


def test_nothing_imports_itself_in_a_circle() -> None:
    graph = {name: {found for found in ours(name, lazy=False) if found in TREES} - {""} for name in TREES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(TREES)


def test_no_import_probes_devices_or_reads_the_environment() -> None:
    forbidden = ("os.environ", "os.getenv", "print(", "torch.cuda", "torch.backends", "is_available(", "cpu_count(")
    for name, tree in TREES.items():
        for node in statements(tree, lazy=False):
            # a compound statement's inner ones come on their own; a function's and an if __main__ body do not run
            if isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.Try, ast.With, ast.For)
            ):
                continue
            if isinstance(node, ast.AnnAssign) and node.value is None:
                continue
            executed = ast.unparse(node.value) if isinstance(node, ast.AnnAssign) else ast.unparse(node)
            assert not [word for word in forbidden if word in executed and "lambda" not in executed], (name, executed)


# ---- what happens when it runs


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HOME.parent), **environment},
    )


def test_importing_any_module_prints_nothing() -> None:
    names = sorted(f"overnight.{name}".rstrip(".") for name in TREES)
    done = python("import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("overnight", ["torch", "numpy", "tyro", "rich", "matplotlib"]),
        ("overnight.cli", ["torch", "numpy", "tyro", "rich", "matplotlib"]),
        ("overnight.config", ["torch", "numpy"]),
        ("overnight.runs", ["torch", "numpy"]),
        ("overnight.checkpoint", ["transformers", "matplotlib", "pyarrow"]),
        ("overnight.training", ["transformers", "matplotlib", "pyarrow", "tiktoken", "tokenizers", "rich", "tyro"]),
        ("overnight.report", ["torch", "matplotlib"]),
        ("overnight.evals.baselines", ["torch", "numpy"]),
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(module: str, heavy: list[str]) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout)) & set(heavy)


HELP = """
import sys
sys.argv = ["overnight", *sys.argv[1:]]
from overnight.cli import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "tyro", "safetensors", "pyarrow"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = python(HELP, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "overnight" in done.stdout


def test_help_is_instant() -> None:
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "overnight", "--help"],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(HOME.parent)},
        )
        seconds.append(time.perf_counter() - begin)
    assert b"overnight train" in done.stdout or b"train " in done.stdout
    assert min(seconds) < 0.3


def test_every_command_of_the_help_exists() -> None:
    from overnight.cli import COMMANDS

    assert {f"cli.{name}" for name in COMMANDS} <= set(TREES)
    for name in COMMANDS:
        assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in TREES[f"cli.{name}"].body)


def test_an_unknown_command_is_one_line_with_a_suggestion() -> None:
    done = python("from overnight.cli import main; import sys; sys.argv = ['overnight', 'trian']; main()")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "overnight: there is no command 'trian' (did you mean train?); `overnight --help` lists them\n"
    )


# ---- public names


def test_the_public_names() -> None:
    assert overnight.__all__ == ["Config", "Model", "Stopped", "UserError", "load", "preset", "train"]
    for name in overnight.__all__:
        assert getattr(overnight, name).__name__ == name
        assert getattr(overnight, name).__doc__
    assert callable(overnight.train)  # the function, not a module of that name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = overnight.trian


def test_a_star_import_gives_the_public_names() -> None:
    done = python("from overnight import *; print(sorted(n for n in dir() if not n.startswith('_')))")
    assert done.stdout == f"{sorted(overnight.__all__)}\n", done.stderr
