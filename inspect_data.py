"""Shows what a source holds: one page for the browser, and a map of the videos for TensorBoard's projector.

python inspect_data.py data=folder data.source=PATH output=DIR
python inspect_data.py run=DIR output=DIR               a run's videos, mapped by the features of its network

Videos are decoded as train.py does with the same options, which then finds them in the store.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, trusted_packages, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="inspect_data")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a source to a page about it."""
    # Imported here: options are checked before torch is imported.
    from rich.console import Console

    from vidcls.errors import UserError, check_seed
    from vidcls.prediction.journal import check_output
    from vidcls.training.run_folder import check_run_options

    console, output, run = Console(), Path(str(cfg.output)), None
    check_seed("seed", cfg.seed)
    check_output(output)
    if cfg.run is None:
        options = instantiate(cfg.data)
    else:
        check_run_options(cfg)
        if given := [
            text for text in HydraConfig.get().overrides.task if text.startswith(("data", "cache_dir", "engine"))
        ]:
            expected = "run=DIR without options of the data, which are those of the run"
            raise UserError(expected, f"also {' '.join(given)}", "Leave those out, or run=.", "run-overrides")

        from vidcls.prediction.loading import load_run

        run = load_run(cfg.run, trusted_packages(cfg))
        if run.reference is None:
            remedy = "Train again, or leave run= out: the map is then of color and motion."
            raise UserError("a run that keeps clip vectors", f"{run.name} without any", remedy, "run-without-vectors")
        options = run.videos().options

    from vidcls.data.decoding.headers import read_headers
    from vidcls.data.preparation import frame_store, survey_videos

    manifest, problem = survey_videos(options, console)
    headers = read_headers(list(manifest["file"]), options.decode)

    # torch is imported from here on
    from vidcls.inspection.clip_map import map_videos, write_projector
    from vidcls.inspection.data_page import write_page

    store = frame_store(options)
    videos = map_videos(manifest, store, cfg.seed, run, cfg.accelerator)
    page = write_page(output, options.source, manifest, headers, problem, videos, store, cfg.seed)
    write_projector(output / "tensorboard", videos, store)
    console.print(f"The page is {page}; for its map: tensorboard --logdir {output}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    quote_overrides("debug")
    main()
