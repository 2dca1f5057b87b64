"""Ranks the jobs of a sweep, finished or not; tables and plots go to DIR/report.

python report.py sweep=DIR                              from val metrics alone
python report.py sweep=DIR test_best=true               also test the winner on the test split, once
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf/report", config_name="report")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """Reads the sweep, tests its winner if asked to, and writes the report."""
    # Imported here: testing decodes, and decode workers import this file again.
    from rich.console import Console

    from vidcls.sweeps.jobs import check_sweep

    console, folder = Console(), Path(str(cfg.sweep))
    check_sweep(folder, "sweep")  # before pandas is imported

    from vidcls.sweeps.tables import read_sweep

    sweep = read_sweep(folder)

    from vidcls.sweeps.sweep_report import write_report
    from vidcls.sweeps.winner import test_winner

    if cfg.test_best:
        test_winner(sweep, cfg.accelerator, trusted_packages(cfg), console)
    write_report(sweep, console)


if __name__ == "__main__":
    quote_overrides("sweep")
    main()
