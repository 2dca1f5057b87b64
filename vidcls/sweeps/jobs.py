"""Multiruns: one folder, one shared decode, no use of the test set, and a record of how each job ended.

Hydra calls `SweepCallback` in the main process, and `resumable_job` in the processes of jobs.
"""

import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vidcls.cli import check_overrides, in_sweep, quote, run_folder, short_names, sweep_resume_command
from vidcls.data.urls import refuse_credentials
from vidcls.errors import UserError, check_choice, find_user_error
from vidcls.files import claim_file, locked, write_atomically
from vidcls.metrics import LOWER_IS_BETTER
from vidcls.sweeps.shared import shared_settings, shared_store, swept_sizes
from vidcls.training.launch import check_alone
from vidcls.training.run_config import named_packages

FORMAT = 1
MAX_NAME_LENGTH = 120
RESERVED_OVERRIDES = ("run_dir", "test", "sweep.resume", "output")  # not part of a sweep's identity

OmegaConf.register_new_resolver(
    "direction", lambda objective: "minimize" if LOWER_IS_BETTER.get(objective) else "maximize", replace=True
)


def job_name(overrides: str) -> str:
    """The name of a job's folder, from its swept overrides ``option=value,option=value``.

    >>> job_name("data.num_frames=8,model.lstm.hidden_size=32")
    'num_frames=8,hidden_size=32'
    """
    pairs = [text.partition("=")[::2] for text in re.split(r",(?=[\w.@/]+=)", overrides) if text]
    names = short_names([option for option, _ in pairs])
    full = ",".join(f"{name}={value}" for name, (_, value) in zip(names, pairs, strict=True)) or "job"
    safe = re.sub(r"[^\w=,.+-]", "_", full)[:MAX_NAME_LENGTH]
    # The hash, as an altered or truncated name could equal another job's.
    return safe if safe == full else f"{safe}-{hashlib.sha256(full.encode()).hexdigest()[:6]}"


OmegaConf.register_new_resolver("job_name", job_name, replace=True)


@contextmanager
def callback_errors_exit() -> Iterator[None]:
    """Ends the process if a callback fails: Hydra would only warn, and start jobs that use the test set."""
    try:
        yield
    except Exception as error:
        if (user_error := find_user_error(error)) is None:
            traceback.print_exc()
            sys.exit(1)
        print(f"error: {user_error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def end_on_ctrl_c(config: DictConfig) -> None:
    """From now on Ctrl-C between two jobs, in Hydra's own code, ends a sweep as it does within a job."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if kind is not KeyboardInterrupt:
            return sys.__excepthook__(kind, error, trace)
        folder = Path(config.hydra.sweep.dir).absolute()
        print(f"interrupted; continue with: {sweep_resume_command(config, folder)}", file=sys.stderr)
        sys.exit(130)

    sys.excepthook = end


class SweepCallback(Callback):
    """Prepares a multirun before its jobs are composed, and prints at the end how they ended."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Makes the folder of a single run, which Hydra would do with a traceback where it cannot."""
        with callback_errors_exit():
            folder = Path(config.hydra.run.dir)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                expected, remedy = "run_dir= to be a folder that can be made", "Choose another run_dir=DIR."
                raise UserError(expected, f"{folder}: {error.strerror}", remedy, "run_dir") from error

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with callback_errors_exit():
            check_overrides(config, config.hydra)
            prepare_sweep(config)
        end_on_ctrl_c(config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            # The start method of joblib's workers, which their child processes, such as decoding workers, do not know.
            multiprocessing.set_start_method("spawn", force=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        jobs = [path.parent for path in sorted(folder.glob("*/job.json"))]
        done = [job for job in jobs if (job / "metrics.json").exists()]
        failed = [job for job in jobs if job not in done and (job / "error.txt").exists()]
        print(f"{len(done)} of {len(jobs)} jobs done: {folder}")
        for job in failed:
            print(f"  failed: {job.name}: {(job / 'error.txt').read_text().splitlines()[-1]}")
        print(f"Ranking and plots: python report.py sweep={folder}", flush=True)
        if failed:
            print(f"{len(failed)} jobs failed; rerun the same command with sweep.resume={folder} to retry them")
            sys.exit(1)


def prepare_sweep(config: DictConfig) -> None:
    """Writes sweep.json, and adds overrides so that all jobs share one decode and none uses the test set."""
    check_alone()
    overrides = config.hydra.overrides
    given = parse_overrides([f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()])
    given |= parse_overrides(list(overrides.task))
    if reserved := sorted({"resume", "run_dir", "test"} & set(given)):
        raise UserError(
            f"a sweep without {reserved[0]}=, which the sweep sets for each job",
            str(given[reserved[0]].input_line),
            "Leave it out. `sweep.resume=DIR` continues a sweep, `report.py test_best=true` tests its winner.",
            "reserved-override",
        )
    for option, override in given.items():
        refuse_credentials(option, str(override.input_line))  # which sweep.json would keep
    swept = [option for option, override in given.items() if override.is_sweep_override()]
    if other := [option for option in swept if option == "data.classes" or option.startswith("data.split.")]:
        raise UserError(
            "the same classes and val videos in all jobs, as others cannot be ranked",
            str(given[other[0]].input_line),
            "Start a sweep for each of its values.",
            "swept-held-out-videos",
        )
    folder = Path(config.hydra.sweep.dir).absolute()
    record = {
        "format": FORMAT,
        "overrides": [str(o.input_line) for option, o in given.items() if option not in RESERVED_OVERRIDES],
        "swept": swept,
        "objective": check_choice("objective", config.objective, tuple(LOWER_IS_BETTER)),
        "planned": None if (names := _job_names(config, given)) is None else len(names),
    }
    record["settings"] = shared_settings(config, given)
    record["store"] = shared = shared_store(config, given)
    if config.sweep.resume is not None:
        record["store"] = shared = _continue(folder, record, given, config)
    elif not claim_file(folder / "sweep.json", _json_text(record)):
        remedy = f"Choose another one, or continue that sweep with sweep.resume={folder}."
        raise UserError("a folder that no other sweep has used", str(folder), remedy, "used-sweep-dir")
    overrides.task += [*shared, "test=false", "run_dir=${hydra:sweep.dir}/${hydra:sweep.subdir}"]
    not_in_job_name = {*given, *RESERVED_OVERRIDES, *(text.partition("=")[0] for text in shared)} - set(swept)
    keys = ",".join(f"'{option}'" for option in sorted(not_in_job_name))
    overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
    count = "jobs" if record["planned"] is None else f"{record['planned']} jobs"
    apart = "data.num_frames" in swept and config.data.store.num_frames is None and "num_frames" not in "".join(shared)
    each = " for each data.num_frames" if apart else ""
    stored = f", which share one decode{each} ({', '.join(shared)})" if shared else ""
    print(f"Sweep over {', '.join(swept) or 'nothing'}: {count} in {folder}{stored}", flush=True)


def check_sweep(folder: Path, option: str) -> None:
    """Raises `UserError` if ``option`` does not name a sweep. Imports nothing heavy."""
    if not (folder / "sweep.json").is_file():
        raise UserError(
            f"the folder of a sweep in {option}",
            f"{folder} without sweep.json",
            "Name a folder that `python train.py -m ...` has made, such as runs/sweep/...",
            "no-sweep",
        )


def parse_overrides(overrides: Sequence[str]) -> dict[str, Override]:
    """Hydra overrides by option; later ones win."""
    hydra = GlobalHydra.instance().hydra  # needed to expand model=glob(*); a job in another process has none
    parsed = OverridesParser.create(hydra.config_loader if hydra else None).parse_overrides(list(overrides))
    return {override.key_or_group: override for override in parsed}


def _job_names(config: DictConfig, given: dict[str, Override]) -> set[str] | None:
    """The names of all jobs; None where a sampler chooses them."""
    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return None
    swept = [override for override in given.values() if override.is_sweep_override()]
    values = [[f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()] for one in swept]
    return {job_name(",".join(sorted(job))) for job in itertools.product(*values)}  # sorted, as Hydra does


def _continue(folder: Path, record: dict[str, Any], given: dict[str, Override], config: DictConfig) -> list[str]:
    """Replaces sweep.json by ``record``, which may have other values of the swept options, but no other difference.

    Returns the shared store of the sweep, which must not change, as new jobs would use other frames.
    """
    check_sweep(folder, "sweep.resume")
    before = read_json(folder / "sweep.json", "overrides", "swept", "objective", "planned")
    if _identity(before) != _identity(record):
        raise UserError(
            f"the command of that sweep: {' '.join(before['overrides'])}",
            " ".join(record["overrides"]),
            "Only the values of swept options may differ. Start a new sweep for anything else.",
            "another-sweep",
        )
    then, now = before.get("settings", {}), record["settings"]  # those of earlier versions have none
    then |= {f"decoding.{name}": version for name, version in before.get("decoding", {}).items()}  # as they wrote it
    if changed := [key for key in now if key in then and then[key] != now[key]]:
        raise UserError(
            f"the settings that the sweep was started with: {changed[0]}={then[changed[0]]}",
            f"{changed[0]}={now[changed[0]]} now",
            "Restore it, or start a new sweep: jobs of other settings cannot be ranked with these.",
            "another-sweep",
        )
    given_before = parse_overrides(before["overrides"])
    shared: list[str] = before["store"] if "store" in before else shared_store(config, given_before)
    for text in shared:
        name, _, kept = text.removeprefix("data.store.").partition("=")
        for value in swept_sizes(given, name):
            if value > int(kept) or (name == "num_frames" and int(kept) % value):
                raise UserError(
                    f"values of data.{name} that the frames which that sweep has stored can serve",
                    f"{value}, where data.store.{name} is {kept}",
                    "Leave it out, or start a new sweep: results on differently chosen frames cannot be compared.",
                    "another-decoding",
                )
    if (names := _job_names(config, given)) is not None:
        started = {path.parent.name for path in folder.glob("*/job.json")}
        record["planned"] = len(names | started)
        if left_out := sorted((_job_names(config, given_before) or set()) - names - started):
            print(f"left out: {len(left_out)} jobs of the earlier command that never started, such as {left_out[0]}")
    write_atomically(folder / "sweep.json", _json_text(record | {"store": shared}).encode())
    return list(shared)


def _json_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The content of a sweep's JSON file; raises `UserError` if it is damaged or lacks one of ``keys``."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and set(keys) <= set(content):
            return content
        problem = f"no {', '.join(keys)} in {path}"
    except (OSError, ValueError) as error:
        problem = f"{path}: {error}"
    remedy = f"Remove {path.parent}, and continue the sweep." if path.name == "job.json" else "Restore the file."
    raise UserError(f"a complete {path.name}", problem, remedy, f"damaged-{path.stem}")


def _identity(record: dict[str, Any]) -> tuple[set[str], set[str], str]:
    is_search = record["planned"] is None  # Optuna cannot continue a study with other values
    # Without quotes, as the same path may be quoted or not.
    texts = [re.sub(r"[\\'\"]", "", text) for text in record["overrides"]]
    fixed = {text for text in texts if is_search or _option(text) not in record["swept"]}
    return set(record["swept"]), fixed, record["objective"]


def _option(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def resumable_job(main: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    """Decorates an entry point: in a sweep, finished jobs are skipped and interrupted ones resumed.

    A failed job is recorded and returns NaN, so that the others continue.
    """

    @functools.wraps(main)
    def run_job(cfg: DictConfig) -> float | None:
        if not in_sweep():
            return main(cfg)
        folder = run_folder().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", "another process that runs this job"):
            if (folder / "metrics.json").exists():
                print(f"{folder.name}: already finished, skipping", flush=True)
                value = json.loads((folder / "metrics.json").read_text())["val"][cfg.objective]
                return math.nan if value is None else float(value)
            if (folder / "config.yaml").exists():
                cfg.resume = str(folder)
            print(f"{folder.name}: {'continued' if cfg.resume else 'started'}", flush=True)
            _write_job(folder)
            try:
                with _isolated_for_ddp(folder, cfg):
                    return main(cfg)
            except Exception as error:
                reason = (user_error := find_user_error(error)) or _first_cause(error)
                if user_error is None or user_error.code != "other-process":  # which may yet finish it
                    trace = "" if user_error else "".join(traceback.format_exception(error))
                    write_atomically(folder / "error.txt", f"{trace}{reason}\n".encode(errors="backslashreplace"))
                print(f"{folder.name}: failed: {reason}", file=sys.stderr, flush=True)
                return math.nan

    return run_job


def _first_cause(error: BaseException) -> str:
    """The original error, which Hydra wraps, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write_job(folder: Path) -> None:
    """Writes job.json: the overrides of this job, and the values of the swept options."""
    (folder / "error.txt").unlink(missing_ok=True)
    overrides = [text for text in HydraConfig.get().overrides.task if _option(text) not in RESERVED_OVERRIDES]
    given, swept = parse_overrides(overrides), read_json(folder.parent / "sweep.json", "swept")["swept"]
    content = {"knobs": {option: given[option].value() for option in swept}, "overrides": overrides}
    write_atomically(folder / "job.json", _json_text(content).encode())


@contextmanager
def _isolated_for_ddp(folder: Path, cfg: DictConfig) -> Iterator[None]:
    """Makes Lightning's DDP work in a job.

    DDP starts others with the command line of this process, which must be the job's. What it leaves, environment
    variables and a process group, is removed before the next job in this process.
    """
    arguments, environment = sys.argv, dict(os.environ)
    foreign = sorted(named_packages(cfg) - {"vidcls", "lightning", "torch", "optuna"})
    trust = [f"trust=[{','.join(foreign)}]"] if foreign else []
    sys.argv = [str(Path(__file__).parents[2] / "train.py"), f"resume={quote(str(folder))}", *trust]
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
