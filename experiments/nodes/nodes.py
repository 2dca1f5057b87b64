"""Training over two machines, by torchrun and as srun starts it: the same metrics, and what ends when one of them dies.

See README.md. Writes results.json beside this file, or to --output.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.nodes.machines import CODE, ROOT, SHARED, Machine, two_machines
from vidcls.data.demo import draw_demo

HERE = Path(sys.executable)
PYTHON = str(CODE / HERE.relative_to(ROOT) if HERE.is_relative_to(ROOT) else HERE)  # as the machines see it
TIMEOUT = 20  # seconds that a process waits in a collective here, not ten minutes
OPTIONS = [
    *("data=folder", f"data.source={SHARED}/clips/rtp", f"cache_dir={SHARED}/cache", "data.num_frames=4"),
    *("data.resolution=16", "data.decode.workers=1", "model.encoder.channels=[4,8]", "model.lstm.hidden_size=8"),
    *("model.dropout=0.0", "trainer.accelerator=cpu", "trainer.max_epochs=4", "figures=false"),
]
STRATEGY = "{_target_: lightning.pytorch.strategies.DDPStrategy, timeout: {_target_: datetime.timedelta, seconds: %d}}"
STAGES = ("decoding", "epoch", "validation", "checkpoint", "test")


class Run:
    """One run on both machines, ``per_node`` processes each."""

    def __init__(self, machines: Sequence[Machine], shared: Path, name: str, launcher: str, per_node: int = 1) -> None:
        self.machines, self.shared, self.name, self.launcher = machines, shared, name, launcher
        self.folder, self.per_node = shared / name, per_node
        self.processes: list[tuple[subprocess.Popen[bytes], Path, Machine]] = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *overrides: str, of_second: Sequence[str] = ()) -> None:
        """By the launcher: one torchrun on each machine, or each process as srun starts it."""
        script = str(CODE / "train.py")
        for node, machine in enumerate(self.machines):
            given = [*overrides, *(of_second if node else ())]
            if self.launcher == "torchrun":
                rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=alpha:29500"]
                command = [
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    f"--nproc-per-node={self.per_node}",
                    *rendezvous,
                ]
                self._start(machine, [PYTHON, *command, script, *given], {}, str(node))
                continue
            for local in range(self.per_node):
                rank = node * self.per_node + local
                variables: dict[str, int | str] = {"JOB_NAME": "train.sh", "NODELIST": "alpha,beta"}
                variables |= {
                    "PROCID": rank,
                    "LOCALID": local,
                    "NODEID": node,
                    "NTASKS": 2 * self.per_node,
                    "NNODES": 2,
                }
                variables |= {"STEP_NUM_TASKS": 2 * self.per_node, "NTASKS_PER_NODE": self.per_node, "JOB_ID": 4321}
                environment = {f"SLURM_{variable}": str(value) for variable, value in variables.items()}
                self._start(machine, [PYTHON, script, *given], environment, str(rank))

    def _start(self, machine: Machine, command: list[str], environment: dict[str, str], name: str) -> None:
        log = self.shared / f"{self.name}.{name}.log"
        self.processes.append((machine.start(command, log, environment), log, machine))

    def new(self, *overrides: str, of_second: Sequence[str] = ()) -> None:
        ddp = ["trainer=ddp", f"trainer.devices={self.per_node}", "trainer.num_nodes=2"]
        self.start(*OPTIONS, *ddp, f"run_dir={SHARED}/{self.name}", *overrides, of_second=of_second)

    def end(self, limit: float = 300) -> list[dict[str, Any]]:
        """Waits for all processes; of each its machine, exit code, seconds from now, and the lines that say why."""
        started, seconds = time.monotonic(), dict[int, float]()
        while len(seconds) < len(self.processes) and time.monotonic() - started < limit:
            for index, (process, _, machine) in enumerate(self.processes):
                if index not in seconds and (process.poll() is not None or not machine.alive):
                    seconds[index] = round(time.monotonic() - started, 1)
            time.sleep(0.1)
        found = []
        for index, (process, log, machine) in enumerate(self.processes):
            said = re.findall(r"^(?:error: .*\[|interrupted)([\w-]*)", log.read_text(errors="replace"), re.MULTILINE)
            found.append({"machine": machine.name, "code": process.poll(), "seconds": seconds.get(index), "said": said})
        self.processes = []
        return found

    def workers(self, node: int) -> list[int]:
        """Process ids of train.py itself."""
        own = self.machines[node].pids(str(CODE / "train.py"))
        return [pid for pid in own if "torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_text()]

    def agents(self, node: int) -> list[int]:
        return [pid for pid in self.machines[node].pids("torch.distributed.run")]


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise SystemExit("the stage was not reached")
        time.sleep(0.05)


def kill(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def difference(shared: Path, one: str, other: str) -> float:
    """The largest difference between the learning curves and the losses of val and test of two runs."""
    tables, metrics = [], []
    for name in (one, other):
        with (shared / name / "history.csv").open() as file:
            tables.append([float(value) for row in list(csv.reader(file))[1:] for value in row])
        content = json.loads((shared / name / "metrics.json").read_text())
        metrics.append([content[split]["loss"] for split in ("val", "test")])
    pairs = [*zip(*tables, strict=True), *zip(*metrics, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def equal_metrics(shared: Path) -> dict[str, Any]:
    """Runs on two machines beside one process with the same batches, and one that is stopped and goes on."""
    found: dict[str, Any] = {}
    with two_machines(shared) as machines:
        for total in (2, 4):
            name = f"one_{total}"
            shutil.rmtree(shared / name, ignore_errors=True)
            options = [*OPTIONS, f"data.batch_size={total}", f"run_dir={SHARED}/{name}"]
            log = shared / f"{name}.log"
            assert machines[0].start([PYTHON, str(CODE / "train.py"), *options], log).wait() == 0
        for launcher, per_node in (("torchrun", 1), ("torchrun", 2), ("srun", 1), ("srun", 2)):
            run = Run(machines, shared, f"{launcher}_{per_node}", launcher, per_node)
            run.new("data.batch_size=1")
            assert all(process["code"] == 0 for process in run.end()), run.name
            found[run.name] = difference(shared, f"one_{2 * per_node}", run.name)
        run = Run(machines, shared, "stopped", "srun")
        run.new("data.batch_size=1")
        wait_for(lambda: (run.folder / "history.csv").exists())
        for node in (0, 1):  # as at the end of a job's time
            kill(run.workers(node), signal.SIGTERM)
        found["stopped"] = run.end()
        run.start(f"resume={SHARED}/stopped")
        assert all(process["code"] == 0 for process in run.end())
        found["resumed"] = difference(shared, "srun_1", "stopped")
    return found


def events() -> dict[str, Callable[[Run], None]]:
    """What happens to the second machine, unless the name says otherwise."""

    def silence(run: Run, node: int) -> None:
        run.machines[node].unplug()
        run.machines[node].kill()

    return {
        "process killed": lambda run: kill(run.workers(1), signal.SIGKILL),
        "first process killed": lambda run: kill(run.workers(0), signal.SIGKILL),
        "process gets SIGTERM": lambda run: kill(run.workers(1), signal.SIGTERM),
        "process gets Ctrl-C": lambda run: kill(run.workers(1), signal.SIGINT),
        "torchrun killed": lambda run: kill(run.agents(1), signal.SIGKILL),
        "torchrun gets SIGTERM": lambda run: kill(run.agents(1), signal.SIGTERM),
        "machine without power": lambda run: silence(run, 1),
        "first machine without power": lambda run: silence(run, 0),
        "cable pulled": lambda run: run.machines[1].unplug(),
    }


def one_case(shared: Path, launcher: str, event: str, stage: str) -> dict[str, Any]:
    marker = shared / "reached"
    marker.unlink(missing_ok=True)
    with two_machines(shared) as machines:
        run = Run(machines, shared, "case", launcher)
        pause = ["+callbacks.pause._target_=experiments.nodes.pause.Pause", f"+callbacks.pause.stage={stage}"]
        cache = "cache_of_case" if stage == "decoding" else "cache"
        shutil.rmtree(shared / "cache_of_case", ignore_errors=True)
        strategy = f"trainer.strategy={STRATEGY % TIMEOUT}"
        run.new(*pause, f"+callbacks.pause.marker={SHARED}/reached", strategy, f"cache_dir={SHARED}/{cache}")
        decoded = lambda: any((shared / "cache_of_case").rglob("*.safetensors"))  # noqa: E731
        wait_for(decoded if stage == "decoding" else marker.exists)
        time.sleep(0.5)
        events()[event](run)
        ends = run.end(limit=600)
        left = {machine.name: len(machine.pids("train.py")) for machine in machines if machine.alive}
    return {"launcher": launcher, "event": event, "stage": stage, "ends": ends, "left": left}


def main() -> None:
    """Measures what is asked for, and writes the results after each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--event", nargs="*", default=list(events()), help="of those that the README names")
    parser.add_argument("--stage", nargs="*", default=["epoch"], choices=STAGES)
    parser.add_argument("--launcher", nargs="*", default=["torchrun", "srun"])
    parser.add_argument("--equal", action="store_true", help="compare metrics as well")
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"cases": []}
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        draw_demo(shared / "clips", seed=0, creators=6, videos_per_creator=6)
        if arguments.equal:
            results["equal"] = equal_metrics(shared)
            print(results["equal"], flush=True)
        for launcher in arguments.launcher:
            for event in arguments.event:
                for stage in arguments.stage:
                    if launcher == "srun" and "torchrun" in event:
                        continue
                    results["cases"].append(one_case(shared, launcher, event, stage))
                    print(results["cases"][-1], flush=True)
                    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
