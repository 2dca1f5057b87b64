"""Two machines, one file system: do commands on both give what they give alone on a local disk, or one clear line?

python experiments/torture/shared_machines.py --behaviours nfs no_locks --scenarios train predict

Each behaviour is a `network_fs.Behaviour`; each scenario gives two commands at once, or one after the other, on two
machines that mount the same folder. Exit code 1 where a result differs, or a command ends with a traceback or not at
all. Needs Linux and root; whatever it mounts is unmounted at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from helpers.warm_python import start_server, warm_python  # type: ignore[import-not-found]

from experiments.torture.network_fs import Behaviour, mounted
from experiments.torture.torture import HUNG, ROOT, outcome, results

TIMEOUT = 240
NFS = Behaviour(attribute_seconds=30, negative_seconds=30, write_to_lock=True, silly_rename=True, locks_of_the_dead=20)
BEHAVIOURS = {
    "local": Behaviour(),
    "nfs": NFS,
    "nfs_nolock": Behaviour(**vars(NFS) | {"locks": "local"}),
    "nfs_lockd_down": Behaviour(**vars(NFS) | {"locks": "ENOLCK"}),
    "smb": Behaviour(
        attribute_seconds=1,
        negative_seconds=1,
        write_to_lock=True,
        links=False,
        ignore_case=True,
        forbidden=':*?"<>|\\',
        rename_over_open="EBUSY",
    ),
    "lustre_noflock": Behaviour(attribute_seconds=1, locks="ENOSYS"),
    "no_locks": Behaviour(locks="nothing"),
    "gluster": Behaviour(attribute_seconds=5, negative_seconds=5, close_to_open=False),
    "s3fs": Behaviour(
        attribute_seconds=30,
        negative_seconds=30,
        close_to_open=False,
        late_seconds=5,
        locks="local",
        mmap=False,
        links=False,
        coarse_times=True,
        exclusive=False,
    ),
    "no_mmap": Behaviour(mmap=False),
    "no_flock": Behaviour(locks="EOPNOTSUPP", links=False),
    "clock_ahead": Behaviour(clock_offset=120, coarse_times=True),
    "clock_behind": Behaviour(clock_offset=-120, coarse_times=True),
}
for operation, error in [
    ("write", "ENOSPC"), ("write", "EDQUOT"), ("fsync", "ENOSPC"), ("close", "EDQUOT"), ("write", "EIO"),
    ("fsync", "EIO"), ("read", "EIO"), ("rename", "EXDEV"), ("rename", "EBUSY"), ("open", "ESTALE"), ("read", "ESTALE"),
]:  # fmt: skip
    BEHAVIOURS[f"{operation}_{error}"] = Behaviour(faults=[[operation, error, 30, 10**9]])
    BEHAVIOURS[f"{operation}_{error}_once"] = Behaviour(faults=[[operation, error, 30, 1]])

DATA = ["data=folder", "data.num_frames=4", "data.resolution=16", "data.decode.workers=1"]
TRAIN = [*DATA, "trainer.accelerator=cpu", "trainer.max_epochs=2", "figures=false"]
SMALL = ["model=cnn_mean", "model.encoder.channels=[4]"]
WINDOWS = ["predict.max_whole_seconds=1", "predict.window_seconds=1", "predict.stride_seconds=0.05"]


@dataclass
class Machines:
    """Two machines that see the folder ``disk`` of a server at the same path ``shared``."""

    root: Path
    points: list[Path]  # where each of them mounts it
    command: Callable[[str], None]  # to the server, see `network_fs.serve`
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    def start(self, machine: int, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = (
            os.environ
            | variables
            | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{ROOT}:{Path(__file__).parent / 'machine'}",
                "VIDCLS_MACHINE": f"{self.points[machine]}:{self.shared}:machine-{'ab'[machine]}",
            }
        )
        number = len(self.started)
        with (self.root / f"stdout{number}").open("wb") as out, self.err(number).open("wb") as err:
            process = subprocess.Popen(
                [warm_python(), str(ROOT / arguments[0]), *arguments[1:]],
                cwd=self.root / "home",
                env=environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def err(self, number: int) -> Path:
        return self.root / f"stderr{number}"

    def wait(self, *processes: subprocess.Popen[bytes]) -> list[str]:
        """How processes end: "finished", or their last line."""
        ends, deadline = [], time.monotonic() + TIMEOUT
        for process in processes:
            number = self.started.index(process)
            try:
                code = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(process)
                code = HUNG
            text = self.err(number).read_text()
            end = outcome(code, text)
            lines = [line for line in text.splitlines() if "[" in line] or text.splitlines() or [""]
            ends.append(
                end if end in ("finished", "killed") else f"{end} {code}: {lines[-1]}".replace(f"{self.root}/", "")
            )
            if end in ("traceback", "hung"):
                print(text[-3000:], flush=True)
        return ends

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def once(self, machine: int, *arguments: str) -> list[str]:
        return self.wait(self.start(machine, *arguments))

    def train(self, run: str, *more: str) -> list[str]:
        places = [f"data.source={self.shared}/clips", f"cache_dir={self.shared}/cache", f"run_dir={self.shared}/{run}"]
        return ["train.py", *TRAIN, *places, *(more or SMALL)]

    def until(self, path: Path, *processes: subprocess.Popen[bytes]) -> None:
        """Waits until a file is on the server's disk, or all these processes have ended."""
        while not (self.disk / path).exists() and any(process.poll() is None for process in processes):
            time.sleep(0.02)


def frozen(shared: Path) -> list[str]:
    """A frozen encoder, whose features are cached."""
    model = ["model=encoder_head", "model.encoder.name=timm/test_resnet", "model.encoder.trainable_from=none"]
    return [*model, f"model.encoder.weights={shared}/weights.pth", "model/head=pool", "data.resolution=32"]


Found = tuple[list[str], dict[str, object]]


def two_trainings(m: Machines) -> Found:
    """Two runs that share a cache of frames and features."""
    more = frozen(m.shared)
    ends = m.wait(*(m.start(number, *m.train(f"run{number}", *more)) for number in (0, 1)))
    return ends, {f"run{number}": results("train", m.disk / f"run{number}") for number in (0, 1)}


def one_folder(m: Machines) -> Found:
    """Two runs that are told to write into one folder."""
    ends = m.wait(*(m.start(number, *m.train("run")) for number in (0, 1)))
    return ends, results("train", m.disk / "run")


def ingest_and_folds(m: Machines) -> Found:
    """A page about the videos and a cross-validation, which decode the same videos."""
    places = [f"data.source={m.shared}/clips", f"cache_dir={m.shared}/cache"]
    page = m.start(0, "inspect_data.py", *DATA, *places, f"output={m.shared}/page")
    folds = ["folds=3", "repeats=1", "trainer.max_epochs=1", f"output={m.shared}/folds"]
    ends = m.wait(page, m.start(1, "cross_validate.py", *TRAIN, *SMALL, *places, *folds))
    files = {"page": m.disk / "page" / "data.html", "folds": m.disk / "folds" / "out_of_fold.csv"}
    return ends, {name: path.read_text() for name, path in files.items()}


def two_predictions(m: Machines) -> Found:
    """Two predictions into one output; then once more."""
    command = ["predict.py", f"run={m.shared}/trained", f"input={m.shared}/clips", f"output={m.shared}/out", *WINDOWS]
    ends = m.wait(*(m.start(number, *command) for number in (0, 1)))
    if "finished" not in ends:
        ends += m.once(0, *command)
    return ends, results("predict", m.disk / "out")


def two_parts_of_a_sweep(m: Machines) -> Found:
    """A sweep, which a second machine continues while the first still works on it."""
    script, *options = [*m.train("sweep")[: -1 - len(SMALL)], *SMALL]
    command = [script, "-m", *options, "optim.lr=0.001,0.01,0.02"]
    first = m.start(0, *command, f"hydra.sweep.dir={m.shared}/sweep")
    m.until(Path("sweep/optim.lr=0.001/config.yaml"), first)
    m.until(Path("sweep/lr=0.001/config.yaml"), first)
    ends = m.wait(first, m.start(1, *command, f"sweep.resume={m.shared}/sweep"))
    if "finished" not in ends:
        ends += m.once(0, *command, f"sweep.resume={m.shared}/sweep")
    return ends, results("train", m.disk / "sweep")


def interrupted(m: Machines, machine: int = 0) -> subprocess.Popen[bytes]:
    """A run that is at the end of its first epoch."""
    run = m.start(machine, *m.train("run"), *["trainer.max_epochs=6"])
    m.until(Path("run/checkpoints/last.ckpt"), run)
    return run


def two_resume(m: Machines) -> Found:
    """A killed run that both machines resume at once."""
    m.kill(interrupted(m))
    ends = m.wait(*(m.start(number, "train.py", f"resume={m.shared}/run") for number in (0, 1)))
    if "finished" not in ends:
        ends += m.once(0, "train.py", f"resume={m.shared}/run")
    return ends, results("train", m.disk / "run")


def dead_machine(m: Machines) -> Found:
    """A run whose machine dies, and which is resumed on the other; where it is still locked, again a little later."""
    run = interrupted(m)
    m.command("0")
    m.kill(run)
    ends = m.once(1, "train.py", f"resume={m.shared}/run")
    if "run-in-use" in ends[-1]:
        time.sleep(25)
        ends += m.once(1, "train.py", f"resume={m.shared}/run")
    return ends, results("train", m.disk / "run")


def dead_predictor(m: Machines) -> Found:
    """A prediction whose machine dies, and which is continued on the other."""
    command = ["predict.py", f"run={m.shared}/trained", f"input={m.shared}/clips", f"output={m.shared}/out", *WINDOWS]
    first = m.start(0, *command)
    m.until(Path("out/predict.json"), first)
    m.command("0")
    m.kill(first)
    ends = m.once(1, *command)
    if "output-in-use" in ends[-1]:
        time.sleep(25)
        ends += m.once(1, *command)
    return ends, results("predict", m.disk / "out")


def changed_videos(m: Machines) -> Found:
    """Videos that one machine has hashed, and the other replaces by others of the same size."""
    command = ["predict.py", f"run={m.shared}/trained", f"input={m.shared}/clips", f"output={m.shared}/out", *WINDOWS]
    places = [f"data.source={m.shared}/clips", f"cache_dir={m.shared}/cache"]
    ends = m.once(1, *command) + m.once(1, "inspect_data.py", *DATA, *places, f"output={m.shared}/page")
    one, two, three, *_ = sorted((m.points[0] / "clips").rglob("*.mp4"))
    one.write_bytes(three.read_bytes())
    new = two.with_name("new")
    new.write_bytes(three.read_bytes())
    new.replace(two)
    ends += m.once(1, *command) + m.once(1, "inspect_data.py", *DATA, *places, f"output={m.shared}/page2")
    found: dict[str, object] = {"page": (m.disk / "page2" / "data.html").read_text()}
    return ends, found | results("predict", m.disk / "out")


def two_nodes(m: Machines) -> Found:
    """One run, distributed over both machines as torchrun does it."""
    more = ["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = m.train("run", *frozen(m.shared), *more)
    processes = []
    for rank in (1, 0):
        processes.append(m.start(rank, *command, **launched, RANK=str(rank), GROUP_RANK=str(rank)))
        time.sleep(3)  # the second machine looks first
    return m.wait(*processes), results("train", m.disk / "run")


def one_archive(m: Machines) -> Found:
    """Two runs that extract the same .zip."""
    more = [*SMALL, f"data.source={m.shared}/clips.zip"]
    ends = m.wait(*(m.start(number, *m.train(f"run{number}", *more)) for number in (0, 1)))
    return ends, {f"run{number}": results("train", m.disk / f"run{number}") for number in (0, 1)}


def one_demo(m: Machines) -> Found:
    """Two runs that draw the same demo videos."""
    demo = ["data=demo", "data.demo.creators=3", "data.demo.videos_per_creator=3", f"data.source={m.shared}/demo"]
    ends = m.wait(*(m.start(number, *m.train(f"run{number}", *SMALL, *demo)) for number in (0, 1)))
    return ends, {f"run{number}": results("train", m.disk / f"run{number}") for number in (0, 1)}


def alone(m: Machines, *command: str, again: str = "") -> list[str]:
    """A command alone; one that fails is given once more (or resumed) when the disk is well again."""
    ends = m.once(0, *command)
    if ends != ["finished"]:
        m.command("heal")
        resumable = again and (m.disk / "run" / "config.yaml").exists()
        if again and not resumable:
            shutil.rmtree(m.disk / "run", ignore_errors=True)
        ends += m.once(0, *(["train.py", again] if resumable else command))
    return ends


def one_training(m: Machines) -> Found:
    """A run with cached features."""
    ends = alone(m, *m.train("run", *frozen(m.shared)), again=f"resume={m.shared}/run")
    return ends, results("train", m.disk / "run")


def one_prediction(m: Machines) -> Found:
    """A prediction in windows."""
    command = ["predict.py", f"run={m.shared}/trained", f"input={m.shared}/clips", f"output={m.shared}/out", *WINDOWS]
    return alone(m, *command), results("predict", m.disk / "out")


SCENARIOS: dict[str, Callable[[Machines], Found]] = {
    "two trainings": two_trainings,
    "one folder": one_folder,
    "ingest and folds": ingest_and_folds,
    "two predictions": two_predictions,
    "two parts of a sweep": two_parts_of_a_sweep,
    "two resume": two_resume,
    "dead machine": dead_machine,
    "dead predictor": dead_predictor,
    "changed videos": changed_videos,
    "two nodes": two_nodes,
    "one archive": one_archive,
    "one demo": one_demo,
    "one training": one_training,
    "one prediction": one_prediction,
}


def prepare(folder: Path) -> None:
    """What is on the disk before: videos, a finished run, and weights."""
    import timm

    from vidcls.data.demo import draw_demo

    folder.mkdir()
    draw_demo(folder / "drawn", seed=0, creators=4, videos_per_creator=3)
    (folder / "drawn" / "rtp").rename(folder / "clips")
    shutil.rmtree(folder / "drawn")
    clips = sorted((folder / "clips").rglob("*.mp4"))
    size = max(path.stat().st_size for path in clips) + 8
    for path in clips:  # all of one size, by a box that players skip
        rest = size - path.stat().st_size
        path.write_bytes(path.read_bytes() + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))
    shutil.make_archive(str(folder / "clips"), "zip", folder / "clips")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pth")
    places = [f"data.source={folder}/clips", f"cache_dir={folder}/cache", f"run_dir={folder}/trained"]
    subprocess.run([warm_python(), str(ROOT / "train.py"), *TRAIN, *SMALL, *places], check=True, capture_output=True)
    shutil.rmtree(folder / "cache")


def run_trial(template: Path, behaviour: Behaviour | None, scenario: Callable[[Machines], Found]) -> Found:
    """One scenario on a copy of ``template``; on a local disk without a behaviour."""
    root = Path(tempfile.gettempdir(), f"vidcls-shared-{os.getpid()}")  # always the same, as results hold paths
    root.mkdir()
    points = [root / "a", root / "b"]
    for path in (*points, root / "shared", root / "home"):
        path.mkdir()
    shutil.copytree(template, root / "disk")
    machines = Machines(root, points if behaviour else [root / "disk"] * 2, lambda _: None)
    try:
        with mounted(root / "disk", points, behaviour) if behaviour else nullcontext() as command:
            machines.command = command or machines.command
            try:
                return scenario(machines)
            except (OSError, KeyError) as error:
                return [*machines.wait(*machines.started), f"no results ({error})".replace(f"{root}/", "")], {}
            finally:
                for process in machines.started:
                    machines.kill(process)
    finally:
        shutil.rmtree(root)


def main() -> int:
    """Runs each scenario with each behaviour, and records how its commands ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behaviours", nargs="+", default=list(BEHAVIOURS), choices=list(BEHAVIOURS))
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("shared_machines.json"))
    options = parser.parse_args()
    if os.geteuid() or not os.access("/dev/fuse", os.W_OK):
        sys.exit("expected Linux, root and /dev/fuse, to mount a file system; got less")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # cleans up
    start_server()
    record: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="shared") as name:
        template = Path(name) / "template"
        prepare(template)
        for scenario in options.scenarios:
            run = SCENARIOS[scenario]
            ends, expected = run_trial(template, None, run)
            print(f"{scenario}, local disk: {ends}", flush=True)
            for behaviour in options.behaviours:
                started = time.monotonic()
                ends, found = run_trial(template, BEHAVIOURS[behaviour], run)
                refused = any("no results" in end for end in ends) and any("error line" in end for end in ends)
                differs = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
                differs = [] if refused else differs
                result = "refused" if refused else f"DIFFERENT {differs}" if differs else "the same result"
                failed |= bool(differs) or any(kind in end for kind in ("traceback", "hung") for end in ends)
                record.setdefault(scenario, {})[behaviour] = {"ends": ends, "result": result}
                print(f"{scenario}, {behaviour}: {result} {ends} {time.monotonic() - started:.0f} s", flush=True)
                options.output.write_text(json.dumps(record, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
