"""Ranks the jobs of a sweep, finished or not; tables and plots go to DIR/report.

python report.py sweep=DIR                              from val metrics alone
python report.py sweep=DIR test_best=true               also test the winner on the test split, once
python report.py sweep=[DIR,DIR]                        the results of cross_validate.py side by side
python report.py sweep=[DIR,DIR] average=true           and of the average of their predictions
"""

import hydra
from omegaconf import DictConfig

from vidcls.cli import folders_of, quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf/report", config_name="report")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """Reads the sweep, tests its winner if asked to, and writes the report."""
    # Imported here: folders and options are checked before pandas and torch are imported.
    from rich.console import Console

    from vidcls.errors import UserError, check_flag
    from vidcls.sweeps.fold_plan import are_cross_validations
    from vidcls.sweeps.jobs import check_sweep

    console, folders = Console(), folders_of("sweep", cfg.sweep)
    for option in ("test_best", "average"):
        check_flag(option, cfg[option])
    for folder in folders:
        check_sweep(folder, "sweep")  # before pandas is imported
    if cfg.average and len(folders) == 1:
        expected, remedy = "several cross-validations in sweep, for average=true", "Give sweep=[DIR,DIR]."
        raise UserError(expected, f"one folder: {folders[0]}", remedy, "average")
    if are_cross_validations(folders):
        from vidcls.sweeps.fold_results import print_results, read_cross_validation

        print_results([read_cross_validation(folder) for folder in folders], console, cfg.average)
        return

    from vidcls.sweeps.tables import read_sweep

    sweep = read_sweep(folders[0])

    from vidcls.sweeps.sweep_report import write_report
    from vidcls.sweeps.winner import record_test, winner_to_test

    if cfg.test_best and (winner := winner_to_test(sweep)) is not None:
        from vidcls.evaluation.results import evaluate_run

        job = sweep.folder / str(winner["job"])
        record_test(sweep, winner, evaluate_run(job, cfg.accelerator, trusted_packages(cfg), console))
    write_report(sweep, console)


if __name__ == "__main__":
    quote_overrides("sweep")
    main()
