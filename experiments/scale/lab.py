"""Three machines made of namespaces on one, for machines.py.

Each has an address and a link of its own to a bridge, a host name, processes, a /tmp and a /dev/shm; all see one folder
at the same path.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from experiments.tools import ROOT

FILES = ("predictions.csv", "segments.csv")
SHARED = Path("/mnt")  # the folder that all machines see
NAMES = ("one", "two", "three")  # Ray's head is on the first
NETWORK = "10.77.0"
NAMESPACES = ("--mount", "--uts", "--net", "--pid", "--ipc")
RAY = ("engine=ray", "engine.address=auto")
# Ray asks for a token where a machine has one, so all get the same.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
SMALL = "mkdir /tmp/small; mount -t tmpfs tmpfs /tmp/small -o size="
S3 = {"AWS_ENDPOINT_URL": f"http://{NETWORK}.9:5000", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
UPLOAD = f"""
import boto3, botocore, os, pathlib, time
os.chdir({str(SHARED)!r})
client, names = boto3.client("s3", region_name="us-east-1"), sorted(pathlib.Path("clips").iterdir())
for _ in range(60):
    try:
        client.create_bucket(Bucket="videos")
        break
    except botocore.exceptions.EndpointConnectionError:
        time.sleep(0.5)
for path in names:
    client.upload_file(str(path), "videos", path.name)
pathlib.Path("list.txt").write_text("".join("s3://videos/" + path.name + chr(10) for path in names))
"""


def shell(command: str) -> str:
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"expected a command that works; got {command}: {done.stderr.strip()}.")
    return done.stdout


class Namespaces:
    """Linux namespaces, which end with all processes, mounts and links in them when this object or program does."""

    def __init__(self, kinds: Sequence[str], setup: str) -> None:
        fork = ["--fork", "--kill-child"] if "--pid" in kinds else []
        script = f"{setup}\necho ready; exec sleep infinity"
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, *fork, "sh", "-ec", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            got = " ".join(self._holder.stderr.read().split())
            raise SystemExit(f"expected the rights to make namespaces, mounts and links; got {got}. Run it as root.")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0]) if fork else self._holder.pid
        self._enter = ["nsenter", "--target", str(self.pid), *kinds]

    def do(self, command: str) -> str:
        """What a shell command prints."""
        return shell(f"{shlex.join(self._enter)} sh -ec {shlex.quote(command)}")

    def start(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            given = {name: value for name, value in os.environ.items() if name != "TMPDIR"} | environment
            return subprocess.Popen([*self._enter, *command], stdout=file, stderr=file, env=given)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Machine(Namespaces):
    """Namespaces with a link to those of a switch."""

    def __init__(self, name: str, number: int, folder: Path, switch: Namespaces) -> None:
        self.name, self.address, self._switch, self._folder = name, f"{NETWORK}.{number}", switch, folder
        own = folder / f"tmp-{name}"
        own.mkdir()
        setup = [
            "mount --make-rprivate /",
            f"mount --bind {folder / 'shared'} {SHARED}",
            f"mount -t tmpfs -o size=4g,mode=1777 tmpfs {own}",
        ]
        if ROOT.is_relative_to("/tmp"):
            kept = own / ROOT.relative_to("/tmp")
            setup += [f"mkdir -p {kept}", f"mount --bind {ROOT} {kept}"]
        setup += [f"mount --rbind {own} /tmp", "mount -t tmpfs -o size=1g tmpfs /dev/shm", "mount -t proc proc /proc"]
        super().__init__(NAMESPACES, "\n".join([*setup, f"hostname {name}", "ip link set lo up"]))
        switch.do(f"ip link add name {name} type veth peer name eth0 netns {self.pid}")
        switch.do(f"ip link set dev {name} master switch up")
        self._connect("eth0")

    def _connect(self, device: str) -> None:
        self.do(f"ip address add {self.address}/24 dev {device}; ip link set {device} up")
        self.do(f"ip route add default via {NETWORK}.254")

    def link(self, state: str) -> None:
        """Sets the link ``up`` or ``down``."""
        self._switch.do(f"ip link set dev {self.name} {state}")

    def slow_down(self, seconds: float, loss: float, bits_per_second: float) -> None:
        """Replaces the link by one with this delay, loss and rate in each direction: two taps and a thread for each."""
        self.link("down")
        self.do("ip address flush dev eth0; ip link set eth0 down")
        taps = []
        for name, where in ((f"{self.name}-near", self), (f"{self.name}-far", self._switch)):
            tap = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH14x", name.encode(), 0x1002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
            shell(f"ip link set {name} netns {where.pid}")
            taps.append(tap)
        self._switch.do(f"ip link set dev {self.name}-far master switch up")
        self._connect(f"{self.name}-near")
        for source, target in (taps, taps[::-1]):
            arguments = source, target, seconds, loss, bits_per_second
            threading.Thread(target=relay, args=arguments, daemon=True).start()

    def start_ray(self, head: Machine | None, prefix: str = "", **environment: str) -> None:
        where = f"--address={head.address}:6379" if head else "--head --port=6379 --include-dashboard=false"
        options = f"--node-ip-address={self.address} --num-cpus=1 --object-store-memory=200000000"
        log = self._folder / f"ray-{self.name}.txt"
        command = ["sh", "-c", f"{prefix}exec {Path(sys.executable).parent}/ray start {where} {options}"]
        if self.start(command, log, ENVIRONMENT | environment).wait(120):
            raise SystemExit(f"expected Ray to start on {self.name}; got {log.read_text()}.")


def relay(source: int, target: int, seconds: float, loss: float, bits_per_second: float) -> None:
    """Passes frames on, late, without some of them, and not too many at a time."""
    waiting: list[tuple[float, int, bytes]] = []
    free, count = 0.0, 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([source], [], [], pause)[0]:
            frame, now = os.read(source, 65536), time.monotonic()
            if random.random() >= loss and free < now + 1:  # a queue of a second
                free, count = max(free, now) + 8 * len(frame) / bits_per_second, count + 1
                heapq.heappush(waiting, (free + seconds, count, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            with suppress(OSError):  # the link at the other end is down
                os.write(target, heapq.heappop(waiting)[2])


class Lab:
    """Three machines, a shared folder with a run and videos, and what the commands gave."""

    def __init__(self, stack: ExitStack, run: Path, videos: Path, local: Path, labelled: Path) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="machines-")))
        self.shared, self._stack, self._local = self.folder / "shared", stack, local
        shutil.copytree(run, self.shared / "run")
        shutil.copytree(videos, self.shared / "clips")
        shutil.copytree(labelled, self.shared / "labelled")
        setup = f"ip link add switch type bridge; ip address add {NETWORK}.254/24 dev switch; ip link set switch up"
        self._switch = self._add(Namespaces(["--net"], setup))
        self.one, self.two, self.three = (self._add(self._machine(name, at)) for at, name in enumerate(NAMES, 1))
        self.found: list[dict[str, Any]] = []

    def _add(self, made: Any) -> Any:
        self._stack.callback(made.close)
        return made

    def _machine(self, name: str, number: int) -> Machine:
        return Machine(name, number, self.folder, self._switch)

    def start_ray(self, **environment: str) -> None:
        self.one.start_ray(None, **environment)
        self.two.start_ray(self.one, **environment)
        self.three.start_ray(self.one, **environment)

    def serve_s3(self) -> None:
        """The videos behind an S3 server on a machine of its own, listed in list.txt."""
        server = self._add(self._machine("store", 9))
        moto = [f"{Path(sys.executable).parent}/moto_server", "-H", "0.0.0.0", "-p", "5000"]
        server.start(moto, self.folder / "moto.txt", {})
        if server.start([sys.executable, "-c", UPLOAD], self.folder / "upload.txt", S3).wait(120):
            raise SystemExit((self.folder / "upload.txt").read_text())

    def start(self, where: Machine, script: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        self._log, self._began = self.folder / "log.txt", time.monotonic()
        command = [sys.executable, f"{ROOT}/{script}", *options]
        return where.start(command, self._log, ENVIRONMENT | environment)

    def end(self, process: subprocess.Popen[bytes], same: Callable[[], bool]) -> bool:
        """Records how a command has ended; whether it has ended well."""
        try:
            code = process.wait(600)
        except subprocess.TimeoutExpired:
            process.kill()
            code = -1
        errors = [line for line in self._log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
        result: dict[str, Any] = {"exit": code, "seconds": round(time.monotonic() - self._began, 1)}
        result |= {"same": same()} if code == 0 else {"error": errors[-1] if errors else "no line"}
        self.found.append(result)
        print("  ", result, flush=True)
        return code == 0

    def predict(self, where: Machine, source: str = "clips", during: Callable[[], None] | None = None) -> bool:
        """Predicts on a machine; ``during`` is called while videos are read. Compares with engine=local."""
        options = [f"run={SHARED}/run", f"input={SHARED}/{source}", f"output={SHARED}/out", "accelerator=cpu", *RAY]
        process = self.start(where, "predict.py", *options, **(S3 if source == "list.txt" else {}))
        while process.poll() is None and not any("ray::Reader.read" in self._processes(at) for at in self._machines()):
            time.sleep(0.2)
        if during:
            during()

        def same() -> bool:
            texts = [((self.shared / "out" / name).read_text(), (self._local / name).read_text()) for name in FILES]
            return all(found.replace("s3://videos/", "") == expected for found, expected in texts)

        return self.end(process, same)

    def train(self, where: Machine, **environment: str) -> bool:
        """Ingests and trains for an epoch; compares manifest and store with those of engine=local."""
        options = ["model=cnn_lstm", "data=folder", f"data.source={SHARED}/labelled", "trainer.max_epochs=1"]
        for name, engine in (("local", ()), ("ray", RAY)):
            own = [f"cache_dir={SHARED}/cache-{name}", f"run_dir={SHARED}/train-{name}", "trainer.accelerator=cpu"]
            process = self.start(where, "train.py", *options, *own, *engine, **environment)
            if name == "local":
                process.wait()

        def contents(name: str) -> list[bytes]:
            entries = sorted((self.shared / f"cache-{name}").rglob("*.safetensors"), key=lambda path: path.name)
            return [(self.shared / f"train-{name}" / "manifest.csv").read_bytes(), *(e.read_bytes() for e in entries)]

        return self.end(process, lambda: contents("ray") == contents("local"))

    def _machines(self) -> list[Machine]:
        return [self.one, self.two, self.three]

    @staticmethod
    def _processes(where: Machine) -> str:
        return where.do("ps axo args")
