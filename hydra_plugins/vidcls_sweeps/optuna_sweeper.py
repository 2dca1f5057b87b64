"""``hydra/sweeper=optuna``: an Optuna sampler proposes the jobs of a sweep from the results of earlier ones.

Hydra's own plugin needs Optuna 2 and an old SQLAlchemy, ends a sweep at the first job without a value, and proposes the
same jobs again when a seeded study is continued.
"""

# No `from __future__ import annotations`: Hydra runs plugin modules before they are in sys.modules, where dataclasses
# look their annotations up.
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vidcls.errors import UserError, one_line
from vidcls.sweeps.jobs import callback_errors_exit, parse_overrides


@dataclass
class OptunaSweeperConf:
    """Options under ``hydra.sweeper``."""

    _target_: str = "hydra_plugins.vidcls_sweeps.optuna_sweeper.OptunaSweeper"
    # One of optuna.samplers; it gets the seed below.
    sampler: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "optuna.samplers.TPESampler", "_partial_": True, "constant_liar": True}
    )
    seed: int | None = None
    direction: str = "${direction:${objective}}"
    storage: str = "sqlite:///${hydra.sweep.dir}/study.db"
    study_name: str = "sweep"
    n_trials: int = 20  # in total: a continued sweep runs the missing and the failed ones
    n_jobs: int = 1  # proposed and launched at a time
    # option: choice(1,2), range(1,5), interval(0.1,1) or tag(log,interval(1e-4,1e-2))
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="vidcls")


class OptunaSweeper(Sweeper):
    """Asks an Optuna study for jobs, runs them in batches, and reports their objectives to it."""

    def __init__(self, **options: Any) -> None:
        self.options = OptunaSweeperConf(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: Any = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the missing trials; a job without a finite objective counts as failed."""
        import optuna  # late: Hydra imports every plugin at every start
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options: Any = self.options
        # The command line replaces what the configuration sweeps.
        given = parse_overrides([*(f"{option}={values}" for option, values in options.params.items()), *arguments])
        swept = {option: override for option, override in given.items() if override.is_sweep_override()}
        with callback_errors_exit():
            space = {option: _distribution(override) for option, override in swept.items()}
        fixed = [str(override.input_line) for option, override in given.items() if option not in space]
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=options.storage, study_name=options.study_name, direction=options.direction, load_if_exists=True
        )
        for left in study.get_trials(states=[TrialState.RUNNING]):  # by a sweep that was interrupted
            study.tell(left.number, state=TrialState.FAIL)
            study.enqueue_trial(left.params)  # so that its job is continued
        # Another seed for a continued study, whose sampler would otherwise propose its first jobs again.
        study.sampler = options.sampler(seed=None if options.seed is None else options.seed + len(study.trials))
        missing = options.n_trials - len(study.get_trials(states=[TrialState.COMPLETE]))
        while missing > 0:
            trials = [study.ask(space) for _ in range(min(missing, options.n_jobs))]
            jobs = [
                [
                    *(f"{_key(swept[option])}={value}" for option, value in trial.params.items()),
                    *fixed,
                    self._address(trial),
                ]
                for trial in trials
            ]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                value = _value(result)
                study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
            missing -= len(trials)

    def _address(self, trial: Any) -> str:
        """An override by which `vidcls.sweeps.pruning.Pruning` finds the trial of its job."""
        address = {"storage": self.options.storage, "study_name": self.options.study_name, "trial": trial._trial_id}
        return f"+hydra.job.env_set.OPTUNA_TRIAL='{json.dumps(address)}'"


def _value(result: JobReturn) -> float | None:
    """The objective of a job; None if it failed. Raises what kept a job from starting."""
    try:
        value = result.return_value
    except Exception as error:
        if not type(error).__module__.startswith("ray."):  # else its process has died, and the others go on
            raise
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _key(override: Override) -> str:
    return str(override.input_line).partition("=")[0]  # with the + of an option that conf/ does not have


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: Any = override.value()
    integers = all(isinstance(getattr(values, name, 1), int) for name in ("start", "end", "stop", "step"))
    try:
        if override.is_interval_sweep():
            kind = IntDistribution if integers else FloatDistribution
            return kind(values.start, values.end, log="log" in values.tags)
        if override.is_range_sweep() and integers:
            return IntDistribution(values.start, values.stop - 1, step=values.step)
        return CategoricalDistribution(list[Any](override.sweep_iterator(transformer=Transformer.encode)))
    except ValueError as error:
        expected, got = f"values of {_key(override)} to search among", f"{override.input_line}: {one_line(error)}"
        raise UserError(expected, got, "Correct the range; a logarithm starts above 0.", "search-space") from error
