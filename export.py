"""Writes a run's network into one file that runs without this package: uint8 frames in, probabilities out.

python export.py run=DIR                                for onnxruntime: DIR/export/model.onnx
python export.py run=DIR format=torch_export            for torch alone: DIR/export/model.pt2
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """One file, kept only if it says what the network says."""
    from rich.console import Console

    from vidcls import exporters
    from vidcls.errors import check_choice
    from vidcls.prediction.predictor import load_run

    check_choice("format", cfg.format, tuple(exporters.FILES))
    trained = load_run(Path(str(cfg.run)), trusted_packages(cfg))
    output = (
        Path(str(cfg.output)) if cfg.output is not None else Path(str(cfg.run), "export", exporters.FILES[cfg.format])
    )
    cache_dir = None if cfg.cache_dir is None else str(cfg.cache_dir)
    difference, clips = exporters.export_trained(trained, cfg.format, output, cache_dir)
    console = Console()
    console.print(f"Parity: max abs difference {difference:.2g} over {clips} clips", soft_wrap=True)
    console.print(f"Wrote {output}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    quote_overrides("run", "output", "cache_dir")
    main()
