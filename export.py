"""Exports a run's network to one file that runs without this package: uint8 frames in, probabilities out.

python export.py run=DIR                                for onnxruntime: DIR/export/model.onnx
python export.py run=DIR format=torch_export            for torch alone: DIR/export/model.pt2
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, trusted_packages, user_errors_exit

DEFAULT_FILES = {"onnx": "model.onnx", "torch_export": "model.pt2"}


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """Writes the file, if its probabilities are those of the network."""
    from vidcls.errors import check_choice
    from vidcls.training.run_folder import check_run_options

    check_choice("format", cfg.format, tuple(DEFAULT_FILES))
    run_dir = check_run_options(cfg)
    output = Path(str(cfg.output)) if cfg.output is not None else run_dir / "export" / DEFAULT_FILES[cfg.format]

    from rich.console import Console  # torch is imported from here on

    from vidcls.exporters import export_run
    from vidcls.prediction.loading import load_run

    run = load_run(run_dir, trusted_packages(cfg))
    difference, clips = export_run(run, cfg.format, output, None if cfg.cache_dir is None else str(cfg.cache_dir))
    console = Console()
    console.print(f"Parity: max abs difference {difference:.2g} over {clips} clips", soft_wrap=True)
    console.print(f"Wrote {output}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    quote_overrides("debug")
    main()
