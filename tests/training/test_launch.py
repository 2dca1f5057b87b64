"""How the processes of a run find each other, by torchrun or srun, and what ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import lightning as L
import pytest
import torch
from helpers.commands import ROOT, start_train, train
from helpers.runs import metrics_of
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import OmegaConf

from vidcls.cli import compose_config, launched_processes
from vidcls.data.datamodule import VideoDataModule
from vidcls.data.options import DataOptions
from vidcls.errors import UserError
from vidcls.training import launch
from vidcls.training.loop import COLLECTIVE_TIMEOUT, build_trainer
from vidcls.training.options import check_train_options
from vidcls.training.processes import SameRun, check_same

TWO_OF_SRUN = {
    "SLURM_JOB_ID": "4321",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "localhost",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NAME": "train.sh",
}


def torchrun(processes: int, on_each: int) -> dict[str, str]:
    return {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(on_each)}


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


# ---- signs of life


@pytest.fixture
def first(tmp_path: Path) -> launch.SignOfLife:
    """Of a first process, which does not begin by itself."""
    return launch.SignOfLife(tmp_path)


def wait(folder: Path, prepared: bool = False) -> str:
    """The code of the error that ends the wait; "" if the process may go on."""
    try:
        launch.wait_for_first(folder, prepared, silent_seconds=1.5)
    except UserError as error:
        return error.code
    return ""


def test_a_process_goes_on_when_the_first_one_is_ready(tmp_path: Path, first: launch.SignOfLife) -> None:
    first.start()
    assert wait(tmp_path) == ""
    first.tell(launch.PREPARED)
    assert wait(tmp_path, prepared=True) == ""
    first.tell(launch.ENDED)


def test_a_process_waits_as_long_as_the_first_one_lives(tmp_path: Path, first: launch.SignOfLife) -> None:
    first.start()
    Timer(3, first.tell, [launch.PREPARED]).start()
    started = time.monotonic()
    assert wait(tmp_path, prepared=True) == "" and time.monotonic() - started > 2.5
    first.tell(launch.ENDED)


def test_the_wait_ends_with_the_first_process(tmp_path: Path, first: launch.SignOfLife) -> None:
    first.start()
    Timer(0.7, first.tell, [launch.ENDED]).start()
    assert wait(tmp_path, prepared=True) == "lost-process"


def test_the_wait_ends_when_the_first_process_is_killed(tmp_path: Path) -> None:
    """It cannot say so, as on a machine without power."""
    text = f"from pathlib import Path; from vidcls.training.launch import *; SignOfLife(Path({str(tmp_path)!r})).run()"
    first = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT)
    while not (tmp_path / launch.SIGN_OF_LIFE).exists():
        time.sleep(0.1)
    Timer(2, first.kill).start()
    assert wait(tmp_path, prepared=True) == "lost-process" and first.wait() == -signal.SIGKILL


@pytest.mark.parametrize("left", ["", f"{1:020} prepared", f"{1:020} ended   "])
def test_what_an_earlier_start_left_is_no_sign_of_life(tmp_path: Path, left: str) -> None:
    (tmp_path / "config.yaml").touch()
    if left:
        (tmp_path / launch.SIGN_OF_LIFE).write_text(left)
    assert wait(tmp_path) == wait(tmp_path, prepared=True) == "no-first-process"


# ---- what the trainer must fit


@pytest.mark.parametrize(
    ("environment", "trainer", "code"),
    [
        ({}, "devices=1", ""),
        ({}, "devices=2 strategy=ddp", ""),
        ({}, "devices=1 strategy=ddp num_nodes=2", "trainer.num_nodes"),
        (torchrun(2, 2), "devices=2 strategy=ddp", ""),
        (torchrun(2, 2), "devices='0,1' strategy=ddp", ""),
        (torchrun(2, 2), "devices=2", "torchrun"),
        (torchrun(4, 2), "devices=2 strategy=ddp", "torchrun"),
        (torchrun(4, 2), "devices=2 strategy=ddp num_nodes=2", ""),
        (torchrun(4, 2), "devices=4 strategy=ddp", "torchrun"),
        (torchrun(4, 2), "devices=1 strategy=ddp num_nodes=4", "torchrun"),
        (torchrun(4, 4), "devices=auto accelerator=cpu strategy=ddp", "torchrun"),
        (torchrun(4, 4), "devices=auto accelerator=gpu strategy=ddp", "torchrun"),
        (torchrun(8, 8), "devices=auto accelerator=gpu strategy=ddp", ""),
        (torchrun(8, 8), "devices=-1 strategy=ddp", ""),
        (TWO_OF_SRUN, "devices=1 strategy=ddp num_nodes=2", ""),
        (TWO_OF_SRUN, "devices=1", "srun"),
        (TWO_OF_SRUN, "devices=2 strategy=ddp", "srun"),
        (TWO_OF_SRUN | {"SLURM_NTASKS_PER_NODE": ""}, "devices=1 strategy=ddp num_nodes=2", "srun"),
        # An allocation of two tasks, in which nothing has been started by srun, or one task.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "devices=1", ""),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "devices=2 strategy=ddp", ""),
        (TWO_OF_SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, "devices=1", ""),
    ],
)
def test_the_trainer_fits_the_processes(
    environment: dict[str, str], trainer: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise videos would be shared out among processes that do not exist, or each would train alone."""
    use(monkeypatch, environment)
    for name in [name for name, value in environment.items() if not value]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    defaults = OmegaConf.create({"devices": 1, "accelerator": "auto"})
    options = OmegaConf.merge(defaults, OmegaConf.from_dotlist(trainer.split()))
    found = ""
    try:
        launch.check_launch(options)
    except UserError as error:
        found = error.code
    assert found == code


@pytest.mark.parametrize("environment", [torchrun(2, 1), TWO_OF_SRUN | {"SLURM_PROCID": "0"}])
def test_several_machines_need_a_folder(
    environment: dict[str, str], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would compose another name. One that is given is taken, and the next mistake is found."""
    use(monkeypatch, environment)
    result = train(*tiny)
    assert result.code == 2 and "[missing-option]" in result.stderr and len(result.stderr.splitlines()) == 1
    result = train(*tiny, f"run_dir={tmp_path / 'run'}")
    assert result.code == 2 and "a strategy and devices for the 2 processes" in result.stderr, result.stderr


def test_a_sweep_needs_one_process(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, TWO_OF_SRUN | {"SLURM_PROCID": "0"})
    result = train("-m", *tiny, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert result.code == 2 and "[launch]" in result.stderr and not (tmp_path / "sweep").exists()


def test_an_allocation_has_fewer_cpus_than_its_machine() -> None:
    """And as many decoding processes: one for each CPU of the machine would not fit its memory."""
    text = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    text += "from vidcls.memory import num_cpus; print(num_cpus())"
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True).stdout == "1\n"


def test_only_the_first_process_reads_the_source(tmp_path: Path) -> None:
    cfg = compose_config("train", "data=folder", f"data.source={tmp_path / 'elsewhere'}", f"run_dir={tmp_path}")
    check_train_options(cfg, reads_source=False)
    with pytest.raises(UserError):
        check_train_options(cfg)


# ---- Lightning


def test_an_allocation_is_not_taken_for_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning goes by SLURM_NTASKS, which a script has that does not use srun."""
    cfg = compose_config("train", f"run_dir={tmp_path}", "trainer.accelerator=cpu")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    trainer = build_trainer(cfg)
    assert isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    assert Path(trainer.default_root_dir) == tmp_path  # where Lightning looks for what a requeued job has left
    use(monkeypatch, TWO_OF_SRUN | {"SLURM_PROCID": "1"})
    environment = build_trainer(cfg)._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


def test_no_process_waits_for_ever_in_a_collective(tmp_path: Path) -> None:
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        cfg = compose_config("train", "trainer=ddp_sim", f"trainer.strategy={strategy}", f"run_dir={tmp_path}")
        assert build_trainer(cfg).strategy._timeout == COLLECTIVE_TIMEOUT  # type: ignore[attr-defined]
    assert build_trainer(cfg).strategy._ddp_kwargs == {"find_unused_parameters": True}  # type: ignore[attr-defined]


class HandlerInTraining(L.Callback):
    found: object = None

    def on_train_batch_start(self, *_: object) -> None:
        self.found = signal.getsignal(signal.SIGTERM)


def test_a_job_of_ray_is_no_process_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where srun has started Ray on each machine: all jobs on the second one would wait for a first process."""
    from hydra_plugins.vidcls_sweeps import ray_launcher

    use(monkeypatch, TWO_OF_SRUN | {"SLURM_PROCID": "1"})
    seen: list[tuple[bool, int]] = []
    monkeypatch.setattr(ray_launcher, "setup_globals", lambda: None)
    monkeypatch.setattr(ray_launcher.Singleton, "set_state", lambda _: None)
    monkeypatch.setattr(ray_launcher, "run_job", lambda *_: seen.append((launch.is_rank_zero(), launched_processes())))
    ray_launcher._job(None, None, OmegaConf.create({}), None)  # type: ignore[arg-type]
    assert seen == [(True, 1)]


def test_sigterm_begins_no_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's handler does, which the other processes would not take part in."""
    from lightning.pytorch.demos.boring_classes import BoringModel

    monkeypatch.setenv("WORLD_SIZE", "2")
    before, seen = signal.getsignal(signal.SIGTERM), HandlerInTraining()
    same_run = SameRun(OmegaConf.create({}), VideoDataModule(DataOptions("clips", "cache")), None)
    trainer = L.Trainer(accelerator="cpu", devices=1, fast_dev_run=1, callbacks=[same_run, seen], logger=False)
    try:
        trainer.fit(BoringModel())
        assert getattr(seen.found, "__module__", "") == "vidcls.training.launch"
        assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None  # nor one before each step
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- processes that differ, or die


def test_the_first_difference_is_named() -> None:
    one, other = {"optim.lr": "0.1", "seed": "0"}, {"optim.lr": "0.1", "seed": "0", "model.heads": "2"}
    check_same([("alpha", one), ("alpha", one), ("beta", one)])
    for changed in (other, one | {"seed": "1"}):
        for every in ([("alpha", one), ("alpha", one), ("beta", changed)], [("beta", changed), ("alpha", one)]):
            with pytest.raises(UserError) as error:
                check_same(every)
            assert error.value.code == "different-processes" and "on beta" in str(error.value)


def test_processes_of_srun_train_one_run(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And refuse to where they differ. A job that is started again with resume= goes on."""
    use(monkeypatch, TWO_OF_SRUN | {"MASTER_PORT": "12931"})

    def start(rank: int, *overrides: str) -> subprocess.Popen[str]:
        use(monkeypatch, {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)})
        return start_train(*overrides, cwd=tmp_path)

    def ends(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
        return [(process.communicate(timeout=200)[1], process.returncode)[::-1] for process in processes]

    run = tmp_path / "run"
    ddp = [*tiny, "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", "figures=false", f"run_dir={run}"]
    for code, stderr in ends(start(0, *ddp), start(1, *ddp, "optim.lr=0.5")):
        assert code == 2 and "same optim.lr" in stderr and stderr.count("[different-processes]") == 1, stderr
    for code, stderr in ends(start(0, f"resume={run}"), start(1, f"resume={run}")):
        assert code == 0, stderr
    assert metrics_of(run)["test"]["n"] == 3 and not (run / launch.SIGN_OF_LIFE).exists()


def test_no_process_outlives_torchrun(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text(
        "import os, time\n"
        "from vidcls.errors import UserError\n"
        "from vidcls.training.launch import end_with_others\n"
        "end_with_others()\n"
        "open(os.environ['RANK'], 'w').close()\n"
        "try:\n    time.sleep(100)\n"
        "except Exception as error:\n    open('ended' + os.environ['RANK'], 'w').close()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "sleep.py"]
    agent = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def appear(*names: str) -> bool:
        deadline = time.monotonic() + 60
        while not (there := all((tmp_path / name).exists() for name in names)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return there

    assert appear("0", "1")
    agent.kill()
    assert appear("ended0", "ended1")
    agent.wait()
