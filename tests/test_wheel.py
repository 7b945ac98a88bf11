"""The wheel, built and installed elsewhere, carries all that it needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import synthkd

ROOT = Path(__file__).parent.parent
ASK = """
import json, synthkd
from synthkd.recipe import pipeline_path
from synthkd.core.resources import shipped
kinds = {}
for kind in ("pipelines", "assets"):
    files = [p for p in shipped(kind).rglob("*") if p.is_file()]
    kinds[kind] = {p.relative_to(shipped(kind)).as_posix(): p.stat().st_size for p in files}
print(json.dumps({"package": synthkd.__file__, "default": str(pipeline_path("synthkd")), **kinds}))
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; its error text when it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target")
    run(*install, target, wheel, cwd=target)
    return target


def test_an_installed_wheel_finds_the_pipelines_and_assets_of_the_checkout(installed, tmp_path):
    answer = json.loads(run("-c", ASK, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(answer["package"]).is_relative_to(installed)
    assert Path(answer["default"]).is_relative_to(installed)
    for kind in ("pipelines", "assets"):
        folder = ROOT / kind
        kept = {
            p.relative_to(folder).as_posix(): p.stat().st_size
            for p in folder.rglob("*")
            if p.is_file() and p.suffix not in (".py", ".pyc")  # data, not the scripts that made it
        }
        assert kept and kept.items() <= answer[kind].items()


def test_an_installed_wheel_tells_its_version(installed, tmp_path):
    printed = run("-m", "synthkd", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert synthkd.__version__ in printed


def test_the_wheel_holds_the_package_the_licence_the_types_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "synthkd",
        f"synthkd-{synthkd.__version__}.dist-info",
    }
    assert "synthkd/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    # a package below _data would shadow ours in an editable install
    assert not [name for name in names if "/_data/" in name and name.endswith("__init__.py")]


def test_the_library_of_an_installed_wheel_distils_elsewhere(installed, tmp_path):
    """The example of the checkout, run where there is no checkout."""
    example = tmp_path / "example.py"
    example.write_text((ROOT / "examples" / "distil_your_network.py").read_text())
    ask = "import synthkd, example; result = example.main(2000, 'run'); print(synthkd.__file__)"
    said = run("-W", "ignore", "-c", ask, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(said.splitlines()[-1]).is_relative_to(installed)
    assert (tmp_path / "run" / "student.safetensors").is_file()
