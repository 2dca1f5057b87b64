"""Three machines made of namespaces: does engine=ray give the results of engine=local, or one clear line?

    sudo PYTHONPATH=. python experiments/scale/machines.py RUN [--only NAME ...]

RUN is a run folder. Each machine has an address and a link of its own to a bridge, a host name, processes, a /tmp and a
/dev/shm; all see one folder at the same path. In each scenario Ray is started on them, something is wrong with one, and
predict.py (or train.py) runs on one of them, once more where it has not ended well. Everything ends with this program.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from experiments.scale.clips import make_clips
from experiments.scale.lab import (
    ENVIRONMENT,
    NAMESPACES,
    S3,
    SHARED,
    SMALL,
    Lab,
    Machine,
    Namespaces,
)
from experiments.tools import ROOT, machine, needed_clips

HERE = Path(__file__).parent


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
