"""The structure: which room may import which, and no function too long to read."""

import ast
import subprocess

from utils import ROOT

FLOORS = [  # a file may import from the floors below its own, and from its own room
    ("benchmarks", "results"),
    ("collect", "train", "evaluate", "inspect_history", "tune"),
    ("plots", "training_log"),
    ("dataset",),
    ("effective",),
    ("model",),
    ("algorithm",),
    ("history",),
    ("env",),
    ("config",),
    ("ranks", "checkpoints"),
    ("scripts",),
    ("utils",),
    ("files",),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SAME_FLOOR = {
    ("train", "evaluate"),
    ("tune", "train"),
    ("tune", "evaluate"),
    ("training_log", "plots"),
}  # they evaluate as they go
LONGEST_FUNCTION = 60


def own_files():
    listed = subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    return [name for name in listed if not name.startswith("tests/") and (ROOT / name).exists()]


def imported_rooms(tree: ast.AST) -> set[str]:
    """Rooms that a file imports anywhere, in functions and under conditions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} & set(FLOOR)


def test_no_import_runs_upward():
    wrong, known = [], set()
    for name in own_files():
        room = name.split("/")[0].removesuffix(".py")
        known.add(room)
        for imported in imported_rooms(ast.parse((ROOT / name).read_text())) - {room}:
            if FLOOR[imported] <= FLOOR[room] and (room, imported) not in SAME_FLOOR and FLOOR[room] > 0:
                wrong.append(f"{name} imports {imported}")
    assert not wrong and known - {"notebooks"} <= set(FLOOR)


def test_no_circle_within_a_room():
    """Modules of one package do not import each other in a circle; its __init__ only hands names on."""
    modules = {name.removesuffix(".py").replace("/", "."): name for name in own_files() if "__init__" not in name}
    imports = {}
    for module, name in modules.items():
        found = [
            node.module for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.ImportFrom)
        ]
        imports[module] = {other for other in found if other in modules and other != module}
    while free := {module for module, others in imports.items() if not others}:
        imports = {module: others - free for module, others in imports.items() if module not in free}
    assert not imports


def test_functions_fit_on_a_screen():
    long = [
        f"{name}:{node.lineno} {node.name}"
        for name in own_files()
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long
