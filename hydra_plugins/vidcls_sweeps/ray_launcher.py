"""``hydra/launcher=ray``: each job of a sweep is a Ray task, on this machine or on a running cluster.

Hydra's own plugin needs AWS libraries and an older cloudpickle, and retries a job that was killed three times.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class RayLauncherConf:
    """The arguments of ``ray.init`` and ``ray.remote``."""

    _target_: str = "hydra_plugins.vidcls_sweeps.ray_launcher.RayLauncher"
    init: dict[str, Any] = field(default_factory=lambda: {"address": None, "include_dashboard": False})
    # No retries: a job that dies has written into its folder, and is continued by sweep.resume=DIR.
    remote: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1, "num_gpus": 0, "max_retries": 0})


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="vidcls")


def _job(context: HydraContext, task: TaskFunction, config: DictConfig, state: Any) -> JobReturn:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # where srun has started Ray: this job is no process of that one's
    setup_globals()
    Singleton.set_state(state)
    return run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


class RayLauncher(Launcher):
    """Runs jobs as Ray tasks; one that dies is a failed job and does not stop the others."""

    def __init__(self, init: DictConfig, remote: DictConfig) -> None:
        self.init: Any = OmegaConf.to_container(init, resolve=True)
        self.remote: Any = OmegaConf.to_container(remote, resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs at the same time, as far as Ray has room, and returns their results."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray  # late: Hydra imports every plugin at every start

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            ray.init(**self.init)
        job, state, running = ray.remote(**self.remote)(_job), Singleton.get_state(), []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.num, config.hydra.job.id = number, f"{config.hydra.job.name}_{number}"
            running.append(job.remote(self.context, self.task, config, state))
        return [_result(ray, reference) for reference in running]


def _result(ray: Any, reference: Any) -> JobReturn:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        failed = JobReturn(status=JobStatus.FAILED)
        failed.return_value = error
        return failed
