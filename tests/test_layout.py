"""The house: four folders at the root, one import name, a light import, a complete wheel."""

import builtins
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vococache import errors

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "pipeline", "storage", "workers")
HEAVY = ("torch", "transformers", "ray")


def run_python(code: str, cwd: Path, **environment: str) -> str:
    """Run `code` in a fresh interpreter, in `cwd`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_link_resolves_to_the_folder_at_the_root(name):
    link = ROOT / "src" / "vococache" / name
    assert link.readlink() == Path("..") / ".." / name
    assert link.resolve() == ROOT / name
    assert (link / "__init__.py").is_file()


def test_links_are_links_in_git():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-s", "src/vococache"], cwd=ROOT, text=True).splitlines()
    links = {line.split("\t")[1] for line in listed if line.startswith("120000 ")}
    assert links == {f"src/vococache/{name}" for name in PACKAGES}


def test_no_large_file_is_committed():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).rstrip("\0").split("\0")
    files = [ROOT / name for name in listed if (ROOT / name).is_file()]
    assert [file.name for file in files if file.stat().st_size > 10_000_000] == []


HELP = """
import sys
from vococache.pipeline.cli import main
sys.argv = ["voco", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""


@pytest.mark.parametrize(
    "code",
    ["import vococache", "import vococache.pipeline.cli.command", HELP, "import vococache.workers.video.child"],
    ids=["package", "cli", "help", "decode child"],
)
def test_import_is_light(code, tmp_path):
    """Else `voco --help` takes seconds, and each decoder's child holds half a gigabyte for nothing."""
    report = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    printed = run_python(code + report, tmp_path, PYTHONPATH=str(ROOT / "src"))
    assert json.loads(printed.splitlines()[-1]) == []


def test_a_model_loads_what_it_needs_alone(tmp_path):
    """Else a worker waits for the code of families that nobody asked for, and of baselines."""
    code = "import sys, vococache; vococache.load_model('synthetic', device='cpu'); print(*sys.modules)"
    loaded = run_python(code, tmp_path, PYTHONPATH=str(ROOT / "src")).split()
    families = ("blip_2", "idefics3", "internvl", "llava", "siglip", "qwen", "mistral")
    found = [name for name in loaded if "modeling_" in name and any(family in name for family in families)]
    assert found == []
    assert not {"ray", "zarr", "av", "decord", "openai", "fastapi"} & set(loaded)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this tree, built from a copy: a `build/` left by an older build would leak into it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "src"):
        shutil.copytree(ROOT / name, folder / "tree" / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            folder / "tree",
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_is_complete(wheel):
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vococache/")}
    source = {f"vococache/{file}" for file in ("__init__.py", "errors.py", "py.typed")}
    for name in PACKAGES:
        folder = ROOT / name
        data = (file for kind in ("embedded/**/*", "training/recipes/*", "serve/page/*") for file in folder.glob(kind))
        files = [*folder.rglob("*.py"), *(file for file in data if file.is_file())]
        source |= {f"vococache/{file.relative_to(ROOT)}" for file in files if "__pycache__" not in file.parts}
    assert shipped == source


def test_wheel_imports_beside_a_users_own_model_py(wheel, tmp_path):
    (tmp_path / "model.py").write_text("raise AssertionError('the user\\'s own model.py was imported')\n")
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    printed = run_python(
        "import vococache.model, vococache.storage; print(vococache.model.__file__)", tmp_path, PYTHONPATH=str(site)
    )
    assert Path(printed.strip()) == site / "vococache" / "model" / "__init__.py"


ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_error_survives_pickling(error):
    """Ray carries errors between processes; one that cannot be rebuilt there hides its own message."""
    copy = pickle.loads(pickle.dumps(error("expected A, found B")))
    assert type(copy) is error
    assert str(copy) == "expected A, found B"


@pytest.mark.parametrize("error", [e for e in ERRORS if e is not errors.VoCoError], ids=lambda e: e.__name__)
def test_error_is_also_a_builtin_one(error):
    """Callers who know nothing of this package catch ValueError, OSError and the like."""
    own = {Exception, BaseException, object}
    assert issubclass(error, errors.VoCoError)
    assert any(vars(builtins).get(base.__name__) is base for base in error.__mro__ if base not in own)
