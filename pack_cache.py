"""Moves the cache's many small files into a few large ones, which are read faster and copied to other machines faster.

python pack_cache.py cache_dir=DIR

Commands that use the cache work as before, also meanwhile; what they add are small files again, until the next call.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vidcls.cli import quote_overrides, user_errors_exit


@hydra.main(version_base="1.3", config_path="conf", config_name="pack_cache")
@user_errors_exit
def main(cfg: DictConfig) -> None:
    """Packs each store in the cache."""
    from vidcls.data.packs import find_stores, pack_store
    from vidcls.errors import UserError

    folder = Path(str(cfg.cache_dir))
    stores = find_stores(folder)
    if not stores:
        remedy = "Give cache_dir=DIR, the folder of earlier runs."
        raise UserError("a cache with decoded frames or features", f"none in {folder}", remedy, "cache_dir")
    for store in stores:
        print(f"{store}: {pack_store(store):,} entries packed", flush=True)


if __name__ == "__main__":
    quote_overrides("debug")
    main()
