"""Two machines on this one: a network, a host name, processes and a /tmp of its own each, and one shared folder.

Linux namespaces, joined by a virtual cable. Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOSTS = ("alpha", "beta")
SHARED = Path("/mnt")  # where both see the shared folder
CODE = SHARED / "code"  # and the repository, as their own /tmp may hide it


class Machine:
    """One of the machines; its first process keeps its namespaces alive, and all others end with it."""

    def __init__(self, number: int, shared: Path) -> None:
        self.name, self.address, self.shared = HOSTS[number], f"10.77.0.{number + 1}", shared
        names = "\n".join(f"10.77.0.{index + 1} {name}" for index, name in enumerate(HOSTS))
        script = f"""
            set -e
            hostname {self.name}
            mount --bind {shared} {SHARED}
            mkdir -p {CODE}
            mount --bind {ROOT} {CODE}
            printf '127.0.0.1 localhost\\n{names}\\n' > {SHARED}/.hosts
            mount --bind {SHARED}/.hosts /etc/hosts
            mount -t tmpfs tmpfs /tmp
            ip link set lo up
            echo ready
            exec sleep infinity
        """
        command = ["setpriv", "--pdeathsig", "KILL"]  # nothing stays if this process is killed
        command += ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.holder = subprocess.Popen([*command, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.name} did not start")
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.init = int(children[0])

    def enter(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.init}", "--net", "--uts", "--mount", "--pid", *command]

    def start(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command in the shared folder; output goes to ``log``."""
        given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        given |= {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1", **(environment or {})}
        inside = self.enter("sh", "-c", f'cd {SHARED} && exec "$@"', "sh", *command)
        with log.open("wb") as file:
            return subprocess.Popen(inside, stdout=file, stderr=subprocess.STDOUT, env=given, start_new_session=True)

    def run(self, *command: str) -> str:
        return subprocess.run(self.enter(*command), check=True, capture_output=True, text=True).stdout

    def pids(self, text: str) -> list[int]:
        """The process ids, as this system counts them, of commands with ``text`` in them."""
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == own and text in (path / "cmdline").read_text().replace("\0", " "):
                    found.append(int(path.name))
            except OSError:
                continue
        return sorted(found)

    def unplug(self) -> None:
        """Without a word to the other machine."""
        self.run("ip", "link", "set", "eth0", "down")

    def kill(self) -> None:
        """All of its processes at once."""
        os.kill(self.init, signal.SIGKILL)
        self.holder.wait()

    @property
    def alive(self) -> bool:
        return self.holder.poll() is None


@contextmanager
def two_machines(shared: Path | None = None) -> Iterator[tuple[Machine, Machine]]:
    """Two machines joined by a cable, which see the folder ``shared`` as /mnt."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        sys.exit("expected root with CAP_SYS_ADMIN and CAP_NET_ADMIN, to make namespaces; got neither")
    with tempfile.TemporaryDirectory() as folder:
        machines = tuple(Machine(number, shared or Path(folder)) for number in range(2))
        try:
            ends = [arg for machine in machines for arg in ("peer", "name", "eth0", "netns", str(machine.init))][1:]
            subprocess.run(["ip", "link", "add", *ends[1:4], "type", "veth", "peer", *ends[5:]], check=True)
            for machine in machines:
                machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
                machine.run("ip", "link", "set", "eth0", "up")
            yield machines[0], machines[1]
        finally:
            for machine in machines:
                if machine.alive:
                    machine.kill()
