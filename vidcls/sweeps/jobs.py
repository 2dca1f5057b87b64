"""A multirun: one folder for all jobs, one decode, no test set, and a record of what became of each job.

Hydra calls `Sweep` in the process that was started, and `job` where the jobs run, which may be another machine. Light:
imported before torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vidcls.cli import in_sweep, run_folder
from vidcls.errors import UserError, find_user_error
from vidcls.metrics.objectives import LOWER_IS_BETTER

FORMAT = 1
NAME_LENGTH = 120
OURS = {"sweep.resume", "run_dir", "test"}  # what a job is told and a sweep's record does not depend on

OmegaConf.register_new_resolver(
    "direction", lambda objective: "minimize" if LOWER_IS_BETTER.get(objective) else "maximize", replace=True
)


def job_name(overrides: str) -> str:
    """A folder's name from ``knob=value,knob=value``: the last part of each knob's name, where that is enough.

    Example:
        >>> job_name("data.num_frames=8,model.lstm.hidden_size=32")
        'num_frames=8,hidden_size=32'
        >>> job_name("data.source=/clips"), job_name("")
        ('source=_clips-0e3d53', 'job')
    """
    pairs = [text.partition("=")[::2] for text in re.split(r",(?=[\w.@/]+=)", overrides) if text]
    short = [knob.rpartition(".")[2] for knob, _ in pairs]
    names = short if len(set(short)) == len(short) else [knob for knob, _ in pairs]
    told = ",".join(f"{name}={value}" for name, (_, value) in zip(names, pairs, strict=True)) or "job"
    safe = re.sub(r"[^\w=,.+-]", "_", told)[:NAME_LENGTH]
    # What was altered or cut might meet another job's name.
    return safe if safe == told else f"{safe}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


OmegaConf.register_new_resolver("job_name", job_name, replace=True)


class Sweep(Callback):
    """Prepares a multirun before its jobs are made, and says at the end what became of them."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Writes sweep.json, and tells all jobs where to write, to share one decode and to leave the test set alone."""
        try:
            self._begin(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Exception:  # of which Hydra would warn, and start jobs that may see the test set
            traceback.print_exc()
            sys.exit(1)

    def _begin(self, config: DictConfig) -> None:
        task = config.hydra.overrides.task
        given = _parse([f"{knob}={value}" for knob, value in (config.hydra.sweeper.get("params") or {}).items()])
        given |= _parse(list(task))
        swept = {knob: override for knob, override in given.items() if override.is_sweep_override()}
        for knob in ("resume", *OURS - {"sweep.resume"}):
            if knob in given:
                raise UserError(
                    f"a sweep without {knob}=, which each job has from the sweep",
                    str(given[knob].input_line),
                    "Leave it out. `sweep.resume=DIR` continues a sweep, `report.py test_best=true` tests its winner.",
                )
        if config.objective not in LOWER_IS_BETTER:
            raise UserError(
                f"objective to be one of {', '.join(LOWER_IS_BETTER)}", config.objective, "Choose one of these."
            )
        folder = Path(config.hydra.sweep.dir).absolute()
        lines = [str(override.input_line) for knob, override in given.items() if knob not in OURS]
        record = {
            "format": FORMAT,
            "overrides": lines,
            "swept": list(swept),
            "objective": config.objective,
            "planned": _planned(config, swept),
        }
        if config.sweep.resume is not None:
            _check_same(folder, record, {knob: str(o.input_line) for knob, o in given.items() if knob not in swept})
        _claim(folder, json.dumps(record, indent=2) + "\n", again=config.sweep.resume is not None)

        shared = _shared_store(config, given)
        task += [*shared, "test=false", "run_dir=${hydra:sweep.dir}/${hydra:sweep.subdir}"]
        names = [knob for knob in given if knob not in swept] + [text.partition("=")[0] for text in [*shared, *OURS]]
        excluded = ",".join(sorted({f"'{name}'" for name in names}))
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]")
        jobs = "jobs" if record["planned"] is None else f"{record['planned']} jobs"
        stored = f", which share one decode ({', '.join(shared)})" if shared else ""
        print(f"Sweep over {', '.join(swept) or 'nothing'}: {jobs} in {folder}{stored}", flush=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Runs where the job runs."""
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            # joblib's workers call themselves so, and no child of theirs knows what that is: decoding needs children.
            multiprocessing.set_start_method("spawn", force=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Prints a count and the failed jobs; exit code 1 where there are any."""
        folder = Path(config.hydra.sweep.dir).absolute()
        jobs = [path.parent for path in sorted(folder.glob("*/job.json"))]
        done = [job for job in jobs if (job / "metrics.json").exists()]
        print(f"{len(done)} of {len(jobs)} jobs done: {folder}")
        failed = [job for job in jobs if (job / "error.txt").exists()]
        for job in failed:
            print(f"  failed: {job.name}: {(job / 'error.txt').read_text().splitlines()[-1]}")
        print(f"Ranking and figures: python report.py sweep={folder}", flush=True)
        if failed:
            print(f"{len(failed)} jobs failed; the same command with sweep.resume={folder} tries them again")
            sys.exit(1)


def _parse(overrides: list[str]) -> dict[str, Override]:
    """By knob: of two for one knob the last counts."""
    hydra = GlobalHydra.instance().hydra  # knows what model=glob(*) stands for; there is none where jobs run elsewhere
    parsed = OverridesParser.create(hydra.config_loader if hydra else None).parse_overrides(overrides)
    return {override.key_or_group: override for override in parsed}


def _planned(config: DictConfig, swept: dict[str, Override]) -> int | None:
    """How many jobs; None where a sampler decides."""
    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return None
    return math.prod(len(list(override.sweep_string_iterator())) for override in swept.values())


def _claim(folder: Path, text: str, again: bool) -> None:
    """Makes the folder this sweep's."""
    folder.mkdir(parents=True, exist_ok=True)
    if again:
        (folder / ".sweep.json").write_text(text)
        (folder / ".sweep.json").replace(folder / "sweep.json")  # whole or not at all
        return
    try:
        with (folder / "sweep.json").open("x") as file:  # fails where the file exists, whoever came first
            file.write(text)
    except FileExistsError:
        raise UserError(
            "a folder that no other sweep has used",
            f"{folder}, which holds a sweep.json",
            f"Choose another one, or continue that sweep with sweep.resume={folder}.",
        ) from None


def _check_same(folder: Path, record: dict[str, Any], fixed: dict[str, str]) -> None:
    """A continued sweep may get more values of the same knobs; all else must be as it was."""
    path = folder / "sweep.json"
    if not path.is_file():
        raise UserError("the folder of a sweep in sweep.resume", f"{folder}, without sweep.json", "Check the path.")
    before = json.loads(path.read_text())
    wanted = {text for text in before["overrides"] if _name(text) not in before["swept"]}
    now = {text for knob, text in fixed.items() if knob not in OURS}
    if set(before["swept"]) != set(record["swept"]) or wanted != now or before["objective"] != record["objective"]:
        raise UserError(
            f"the command of that sweep: {' '.join(before['overrides'])}",
            " ".join(record["overrides"]),
            "Only the values of swept knobs may differ. Start a new sweep for anything else.",
        )


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _shared_store(config: DictConfig, given: dict[str, Override]) -> list[str]:
    """The ``data.store.*`` overrides with which all jobs read the same stored frames."""
    frames, sizes = (_values(given, f"data.{name}") for name in ("num_frames", "resolution"))
    shared = []
    if frames and config.data.store.num_frames is None:
        # Evenly spaced frames stay evenly spaced only where each count divides the stored one.
        shared.append(f"data.store.num_frames={math.lcm(*frames)}")
    if sizes and config.data.store.resolution is None:
        shared.append(f"data.store.resolution={max(sizes)}")
    return shared


def _values(given: dict[str, Override], knob: str) -> list[int]:
    """The whole numbers that a knob takes; none where it is not swept, or over an interval."""
    values = given[knob].value() if knob in given else None
    if isinstance(values, ChoiceSweep | RangeSweep):
        values = [value for value in given[knob].sweep_iterator() if isinstance(value, int) and value > 0]
    return values if isinstance(values, list) else []


def job(main: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    """Lets an entry point be a job of a sweep: finished ones are not run again, failures are recorded, others go on.

    The job of an interrupted sweep is resumed. Gives the objective, or NaN where the job failed. Outside a sweep the
    entry point is as it was.
    """

    @functools.wraps(main)
    def as_job(cfg: DictConfig) -> float | None:
        if not in_sweep():
            return main(cfg)
        folder = run_folder().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # two processes may want the same job; the second finds it done
            value = _finished(folder, cfg.objective)
            if value is not None:
                print(f"{folder.name}: done before", flush=True)
                return value
            if (folder / "config.yaml").exists():
                cfg.resume = str(folder)
            print(f"{folder.name}: {'continued' if cfg.resume else 'started'}", flush=True)
            _record(folder)
            try:
                with _alone(folder):
                    return main(cfg)
            except Exception as error:
                message = find_user_error(error)
                reason = message or _root(error)
                trace = "" if message else "".join(traceback.format_exception(error))
                (folder / "error.txt").write_text(f"{trace}{reason}\n")
                print(f"{folder.name}: failed: {reason}", file=sys.stderr, flush=True)
                return math.nan

    return as_job


def _root(error: BaseException) -> str:
    """What went wrong at first, in one line: Hydra wraps it in several of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _finished(folder: Path, objective: str) -> float | None:
    path = folder / "metrics.json"
    if not path.exists():
        return None
    value = json.loads(path.read_text())["val"][objective]
    return math.nan if value is None else float(value)


def _record(folder: Path) -> None:
    """Writes job.json: what this job was told, and what of it was swept."""
    (folder / "error.txt").unlink(missing_ok=True)
    told = [text for text in HydraConfig.get().overrides.task if _name(text) not in OURS]
    swept = json.loads((folder.parent / "sweep.json").read_text())["swept"]
    values = {knob: override.value() for knob, override in _parse(told).items() if knob in swept}
    knobs = {knob: values[knob] for knob in swept}
    (folder / "job.json").write_text(json.dumps({"knobs": knobs, "overrides": told}, indent=2, default=str) + "\n")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Gives a job the process as a run of its own would find it, whatever the launcher or the last job left there.

    Lightning starts a process per further device with this one's command line: one job's, not the sweep's.
    """
    arguments, environment = sys.argv, dict(os.environ)
    escaped = str(folder).replace("'", "\\'")
    sys.argv = [str(Path(__file__).parents[2] / "train.py"), f"resume='{escaped}'"]
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
