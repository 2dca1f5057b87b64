"""Three machines made of namespaces: does engine=ray give the results of engine=local, or one clear line?

    sudo PYTHONPATH=. python experiments/scale/machines.py RUN [--only NAME ...]

RUN is a run folder. Each machine has an address and a link of its own to a bridge, a host name, processes, a /tmp and a
/dev/shm; all see one folder at the same path. In each scenario Ray is started on them, something is wrong with one, and
predict.py (or train.py) runs on one of them, once more where it has not ended well. Everything ends with this program.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import json
import os
import random
import secrets
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

import torch

from experiments.scale.clips import make_clips
from experiments.tools import ROOT, machine, needed_clips

HERE = Path(__file__).parent
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


def cut(where: Machine, seconds: float | None) -> Callable[[], None]:
    """Takes a link down while videos are read, for a time or for ever."""

    def act() -> None:
        time.sleep(2)
        where.link("down")
        if seconds:
            time.sleep(seconds)
            where.link("up")

    return act


def driver_elsewhere(lab: Lab) -> None:
    lab.start_ray()
    lab.predict(lab.two)
    lab.train(lab.three)


def videos_in_s3(lab: Lab) -> None:
    lab.serve_s3()
    lab.start_ray(**S3)
    lab.predict(lab.two, source="list.txt")


def no_credentials(lab: Lab) -> None:
    lab.serve_s3()
    lab.one.start_ray(None, **S3)
    lab.two.start_ray(lab.one, **S3)
    lab.three.start_ray(lab.one)
    lab.predict(lab.one, source="list.txt")


def copies(lab: Lab) -> None:
    for at in (lab.two, lab.three):
        for name in ("clips", "labelled"):
            at.do(f"cp -pr {SHARED}/{name} /tmp/{name}; mount --bind /tmp/{name} {SHARED}/{name}")
    lab.start_ray()
    lab.predict(lab.one)
    lab.train(lab.one)


def older_copies(lab: Lab) -> None:
    """All of them, so that no other machine can be asked."""
    for at in (lab.one, lab.two):
        at.do(f"cp -pr {SHARED}/clips /tmp; cp {SHARED}/clips/000050.mp4 /tmp/clips/000049.mp4")
        at.do(f"mount --bind /tmp/clips {SHARED}/clips")
    lab.start_ray()
    lab.predict(lab.three)


def absent_videos(lab: Lab) -> None:
    for name in ("clips", "labelled"):
        lab.three.do(f"mkdir -p /tmp/none; mount --bind /tmp/none {SHARED}/{name}")
    lab.start_ray()
    lab.predict(lab.one)
    lab.train(lab.one)


def full_disk(lab: Lab) -> None:
    lab.three.do(f"{SMALL}16k; head -c 1M /dev/zero > /tmp/small/x || :")
    lab.one.start_ray(None)
    lab.two.start_ray(lab.one)
    lab.three.start_ray(lab.one, TMPDIR="/tmp/small")
    lab.predict(lab.one)


def small_disk(lab: Lab) -> None:
    """It has room for one or two of the videos that are fetched."""
    lab.serve_s3()
    lab.three.do(f"{SMALL}500k")
    lab.one.start_ray(None, **S3)
    lab.two.start_ray(lab.one, **S3)
    lab.three.start_ray(lab.one, TMPDIR="/tmp/small", **S3)
    lab.predict(lab.one, source="list.txt")


def other_package(lab: Lab) -> None:
    found = next(Path(torch.__file__).parents[1].glob("torch-*.dist-info"))
    lab.three.do(f"cp -r {found} /tmp/torch; sed -i 's/^Version: .*/Version: 2.0.0/' /tmp/torch/METADATA")
    lab.three.do(f"mount --bind /tmp/torch {found}")
    lab.start_ray()
    lab.predict(lab.one)


def without_vidcls(lab: Lab) -> None:
    lab.three.do(f"mkdir /tmp/none; mount --bind /tmp/none {ROOT}/vidcls")
    lab.start_ray()
    lab.predict(lab.one)


def other_settings(lab: Lab) -> None:
    lab.one.start_ray(None)
    lab.two.start_ray(lab.one, TZ="Asia/Tokyo", LC_ALL="C", PYTHONUTF8="0")
    lab.three.start_ray(lab.one, "umask 077; ", TZ="America/New_York", LANG="C", PYTHONIOENCODING="latin-1")
    lab.predict(lab.three)
    lab.train(lab.two, TZ="Asia/Tokyo", LC_ALL="C")


def no_memory(lab: Lab) -> None:
    """Ray kills what it starts there."""
    lab.one.start_ray(None)
    lab.two.start_ray(lab.one)
    lab.three.start_ray(lab.one, RAY_memory_usage_threshold="0.01")
    lab.predict(lab.one)


def slow_link(lab: Lab) -> None:
    """200 ms there and back, 5 % loss, 10 Mbit/s."""
    lab.three.slow_down(0.1, 0.05, 1e7)
    lab.start_ray()
    lab.predict(lab.one)


def joining(lab: Lab) -> None:
    lab.one.start_ray(None)
    lab.predict(lab.one, during=lambda: lab.two.start_ray(lab.one))


def half_cut(lab: Lab) -> None:
    """The machine of the command and that of a reader reach the head, but not each other."""

    def cut_off() -> None:
        lab.three.do(f"sleep 2; ip route add blackhole {lab.two.address}")

    lab.start_ray()
    lab.predict(lab.two, during=cut_off)


def partition(which: str, seconds: float | None) -> Callable[[Lab], None]:
    def scenario(lab: Lab) -> None:
        lab.start_ray()
        at = {"reader": lab.three, "driver": lab.two, "head": lab.one}[which]
        where = lab.one if which == "reader" else lab.two
        if not lab.predict(where, during=cut(at, seconds)) and seconds:
            time.sleep(10)
            if not lab.predict(lab.two):  # as the error says
                for each in (lab.two, lab.three) if which == "head" else (lab.two,):
                    each.do(f"{Path(sys.executable).parent}/ray stop --force || :")
                    each.start_ray(lab.one)
                lab.predict(lab.two)

    return scenario


def head_dies(lab: Lab) -> None:
    def kill() -> None:
        lab.one.do("sleep 2; kill -9 $(pidof gcs_server)")

    lab.start_ray()
    lab.predict(lab.two, during=kill)
    for at in (lab.one, lab.two, lab.three):
        at.do(f"{Path(sys.executable).parent}/ray stop --force || :")
    lab.start_ray()
    lab.predict(lab.two)


SCENARIOS: dict[str, Callable[[Lab], None]] = {
    "driver_elsewhere": driver_elsewhere,
    "videos_in_s3": videos_in_s3,
    "no_credentials": no_credentials,
    "copies": copies,
    "older_copies": older_copies,
    "absent_videos": absent_videos,
    "full_disk": full_disk,
    "small_disk": small_disk,
    "other_package": other_package,
    "without_vidcls": without_vidcls,
    "other_settings": other_settings,
    "no_memory": no_memory,
    "slow_link": slow_link,
    "joining": joining,
    "half_cut": half_cut,
    "head_dies": head_dies,
}
SCENARIOS |= {
    f"{which}_cut_{seconds or 'for_ever'}": partition(which, seconds)
    for which in ("reader", "driver", "head")
    for seconds in (5, 60, None)
    if (which, seconds) != ("head", None)
}


def main() -> None:
    """Prints and records how the commands of each scenario have ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--videos", type=int, default=60)
    arguments = parser.parse_args()
    ENVIRONMENT["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    Namespaces(NAMESPACES, "mount --make-rprivate /; ip link set lo up").close()  # or the end, in one line
    results = HERE / "machines.json"
    with tempfile.TemporaryDirectory(prefix="machines-") as text:
        folder = Path(text)
        make_clips(folder / "clips", arguments.videos, damaged=arguments.videos // 10)
        for number, path in enumerate(sorted(needed_clips().rglob("*.mp4"))[::6]):
            target = folder / "labelled" / ("val" if number % 4 == 0 else "train") / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        options = [f"run={arguments.run}", f"input={folder}/clips", f"output={folder}/local", "accelerator=cpu"]
        subprocess.run([sys.executable, ROOT / "predict.py", *options], check=True, stdout=subprocess.DEVNULL)
        for name in arguments.only:
            print(name, flush=True)
            with ExitStack() as stack:
                lab = Lab(stack, arguments.run, folder / "clips", folder / "local", folder / "labelled")
                SCENARIOS[name](lab)
            known = json.loads(results.read_text()) if results.exists() else {}
            known |= {"machine": machine(), "videos": arguments.videos}
            known["scenarios"] = {**known.get("scenarios", {}), name: lab.found}
            results.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
