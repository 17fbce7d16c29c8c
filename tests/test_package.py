"""What a user gets: the wheel, in an environment that does not see the checkout."""

import json
import os
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"foolbox", "jsonargparse", "matplotlib", "pandas", "plotly", "scipy", "torchattacks", "torchvision"}
HEAVY |= {"transformers", "wandb", "wandb_workspaces"}
IMPORTS = """
import json, sys, time
import lightning.pytorch
before, start = set(sys.modules), time.process_time()
import lightning_flatness
seconds = time.process_time() - start
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
found = {"file": lightning_flatness.__file__, "seconds": seconds, "new": new}
"""
FIT = """
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor

class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3)

    def forward(self, inputs):
        return self.head(inputs)

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.rand(32, 4), torch.randint(3, (32,))), 16)
flatness = RelativeFlatnessMonitor()
trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[flatness, AttackMonitor(epsilon=0.1, masking=False)])
trainer.fit(Classifier(), loader, loader)
assert flatness.history()[-1]["flatness/relative_flatness"] > 0
with open("found.json", "w") as file:
    json.dump(found, file)
"""

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str | Path) -> str:
    """Output of a command in ``folder``, where nothing leads to the checkout or to an account."""
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name and name != "PYTHONPATH"}
    finished = subprocess.run(  # noqa: S603 - our own commands
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in an environment of its own."""
    folder = tmp_path_factory.mktemp("dist")
    run(ROOT, "uv", "build", "--quiet", "--wheel", "--out-dir", folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands of an environment that holds the wheel, and sees what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(folder, "uv", "pip", "install", "--quiet", "--no-deps", "--offline", "--python", python, wheel)
    site = run(folder, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # The checkout is not found by this: only .pth files in site-packages itself are read.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_archives_hold_what_belongs_to_the_package(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    files = (ROOT / "lightning_flatness").rglob("*")
    assert packed == {str(file.relative_to(ROOT)) for file in files if file.is_file() and file.suffix != ".pyc"}


@pytest.fixture(scope="module")
def fitted(scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the log of a fit, and with what its process found when it imported the package."""
    folder = tmp_path_factory.mktemp("fit")
    run(folder, scripts / "python", "-c", IMPORTS + FIT)
    return folder


def test_import_is_light(fitted: Path) -> None:
    found = json.loads((fitted / "found.json").read_text())
    assert not Path(found["file"]).is_relative_to(ROOT)
    assert set(found["new"]) & HEAVY == set()  # beyond what Lightning brings
    assert found["seconds"] < 0.6  # CPU time, which hardly changes on a busy machine


def test_command_compares_what_a_fit_has_logged(scripts: Path, fitted: Path) -> None:
    run(fitted, scripts / "lightning-flatness", "compare", "lightning_logs", "--output", "report.html")
    assert "relative_flatness" in (fitted / "report.html").read_text("utf-8")
