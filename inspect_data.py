"""Shows what a source holds: one page for the browser, and a map of the videos for TensorBoard's projector.

python inspect_data.py data=folder data.source=PATH output=DIR

Videos are decoded as train.py does with the same options, which then finds them in the store.
"""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="inspect_data")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """From a source to a page about it."""
    # Imported here: decoding processes import this file again. Options are checked before torch is imported.
    from rich.console import Console

    from vidcls.errors import check_integer
    from vidcls.prediction.journal import check_output

    console, output = Console(), Path(str(cfg.output))
    check_integer("seed", cfg.seed, minimum=0)
    check_output(output)
    options = instantiate(cfg.data)

    from vidcls.data.decoding.headers import read_headers
    from vidcls.data.preparation import frame_store, survey_videos

    manifest, problem = survey_videos(options, console)
    headers = read_headers(list(manifest["file"]), options.decode)

    # torch is imported from here on
    from vidcls.inspection.clip_map import map_videos, write_projector
    from vidcls.inspection.data_page import write_page

    store = frame_store(options)
    videos = map_videos(manifest, store, cfg.seed)
    page = write_page(output, options.source, manifest, headers, problem, videos, store, cfg.seed)
    write_projector(output / "tensorboard", videos, store)
    console.print(f"The page is {page}; for its map: tensorboard --logdir {output}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    quote_overrides("data.source", "output", "cache_dir", "debug")
    main()
