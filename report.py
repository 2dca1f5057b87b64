"""Ranks a sweep, finished or not: tables, pictures and words in DIR/report.

python report.py sweep=DIR                              from val figures alone
python report.py sweep=DIR test_best=true               and the winner on the test split, once
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf/report", config_name="report")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a sweep's folder to its answer."""
    # Imported here: testing decodes, and decoding processes import this file again.
    from rich.console import Console

    from vidcls.sweeps.sweep_report import write_report
    from vidcls.sweeps.tables import read_sweep
    from vidcls.sweeps.winner import judge_winner

    console = Console()
    sweep = read_sweep(Path(str(cfg.sweep)))
    if cfg.test_best:
        judge_winner(sweep, cfg.accelerator, console)
    write_report(sweep, console)


if __name__ == "__main__":
    quote_overrides("sweep")
    main()
