"""``hydra/sweeper=optuna``: a sampler proposes the jobs of a sweep, and learns from those that are done.

Hydra's own Optuna plugin takes Optuna 2 only, whose storages need an SQLAlchemy of years ago; it ends a sweep at the
first job without a value, and proposes the same jobs again when a seeded study is continued.
"""

# No `from __future__ import annotations` here: Hydra runs plugin modules before they are in sys.modules, and
# dataclasses look annotations up there.
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaSweeperConf:
    """The study of a sweep."""

    _target_: str = "hydra_plugins.vidcls_sweeps.optuna_sweeper.OptunaSweeper"
    # A sampler of optuna.samplers; its seed comes from the sweeper.
    sampler: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "optuna.samplers.TPESampler", "_partial_": True, "constant_liar": True}
    )
    seed: int | None = None
    direction: str = "${direction:${objective}}"
    storage: str = "sqlite:///${hydra.sweep.dir}/study.db"
    study_name: str = "sweep"
    # In total: a continued sweep runs those that are missing. Failed ones do not count when it is continued.
    n_trials: int = 20
    # Proposed, and handed to the launcher, at a time.
    n_jobs: int = 1
    # What to sweep: knob: choice(1,2), range(1,5), interval(0.1,1) or tag(log,interval(1e-4,1e-2)).
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="vidcls")


class OptunaSweeper(Sweeper):
    """Asks a study for jobs, runs them in batches, and tells it how they went."""

    def __init__(
        self,
        sampler: Any,
        seed: int | None,
        direction: Any,
        storage: str,
        study_name: str,
        n_trials: int,
        n_jobs: int,
        params: dict[str, str],
    ) -> None:
        self.sampler, self.seed, self.direction, self.storage = sampler, seed, direction, storage
        self.study_name, self.n_trials, self.n_jobs, self.params = study_name, n_trials, n_jobs, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config: Any = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials that are missing; a job without a finite value counts as failed."""
        import optuna  # late: Hydra imports every plugin at every start
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        params = [f"{knob}={values}" for knob, values in self.params.items()]
        # By knob, so that the command line replaces what the configuration sweeps.
        knobs = {o.key_or_group: o for o in OverridesParser.create().parse_overrides([*params, *arguments])}
        space = {knob: _distribution(override) for knob, override in knobs.items() if override.is_sweep_override()}
        fixed = [str(override.input_line) for knob, override in knobs.items() if knob not in space]
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=self.storage, study_name=self.study_name, direction=self.direction, load_if_exists=True
        )
        for left in study.get_trials(states=[TrialState.RUNNING]):  # by a sweep that was killed
            study.tell(left.number, state=TrialState.FAIL)
        # A sampler with the seed of before would propose its first jobs again.
        study.sampler = self.sampler(seed=None if self.seed is None else self.seed + len(study.trials))
        missing = self.n_trials - len(study.get_trials(states=[TrialState.COMPLETE]))
        while missing > 0:
            trials = [study.ask(space) for _ in range(min(missing, self.n_jobs))]
            jobs = [
                [*(f"{knob}={value}" for knob, value in trial.params.items()), *fixed, self._address(trial)]
                for trial in trials
            ]
            results: Sequence[JobReturn | None] = [None] * len(trials)
            try:
                results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            finally:
                for trial, result in zip(trials, results, strict=True):
                    value = _value(result)
                    study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
            missing -= len(trials)

    def _address(self, trial: Any) -> str:
        """Tells a job where it can report to while it runs: see `vidcls.training.callbacks.Pruning`."""
        address = {"storage": self.storage, "study_name": self.study_name, "trial": trial._trial_id}
        return f"+hydra.job.env_set.OPTUNA_TRIAL='{json.dumps(address)}'"


def _value(result: JobReturn | None) -> float | None:
    """What a job gave; None where it failed."""
    if result is None or result.status != JobStatus.COMPLETED or not isinstance(result.return_value, float):
        return None
    return result.return_value if math.isfinite(result.return_value) else None


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: Any = override.value()
    whole = [isinstance(getattr(values, name, 1), int) for name in ("start", "end", "stop", "step")]
    if isinstance(override.value(), IntervalSweep):
        kind = IntDistribution if all(whole) else FloatDistribution
        return kind(values.start, values.end, log="log" in values.tags)
    if isinstance(override.value(), RangeSweep) and all(whole):
        return IntDistribution(values.start, values.stop - 1, step=values.step)
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)
