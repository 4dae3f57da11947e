"""What the package promises as a package: light import, names, complete distributions, links."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vared2_fx as vr

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "vared2_fx/report/page").iterdir())
MODULES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "vared2_fx").rglob("*.py"))


def test_every_public_name_is_there_and_documented():
    for name in vr.__all__:
        assert getattr(vr, name).__doc__, name


def test_import_starts_no_cuda_and_prints_nothing():
    code = "import vared2_fx, torch; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_links_lead_to_the_passes_and_the_zoo():
    for name in ("passes", "zoo"):
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).readlink() == Path("vared2_fx") / name


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_distributions_hold_every_module_and_the_weights(distributions):
    (wheel,) = distributions.glob("*.whl")
    (sdist,) = distributions.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as files:
        in_sdist = {name.split("/", 1)[1] for name in files.getnames() if "/" in name}
    needed = {*MODULES, "vared2_fx/py.typed", "vared2_fx/zoo/weights/vared2_demo.safetensors", *PAGES}
    assert needed <= in_wheel
    assert needed <= in_sdist
    assert {name.split("/")[0] for name in in_wheel if not name.startswith("vared2_fx-")} == {"vared2_fx"}


def test_every_module_imports_from_the_wheel(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    names = [path[:-3].replace("/", ".").removesuffix(".__init__") for path in MODULES if "__main__" not in path]
    code = f"import importlib, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += f"for name in {names!r}: importlib.import_module(name)\n"
    code += f"import vared2_fx; assert vared2_fx.__file__.startswith({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
