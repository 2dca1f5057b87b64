"""reference.safetensors: projected clip vectors of the videos that a run was validated on, to compare new ones with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from vidcls.errors import UserError, one_line
from vidcls.files import hash_file, write_atomically
from vidcls.models.classifiers import Classifier
from vidcls.tensor_file import TENSOR_FILE_ERRORS, TensorFile
from vidcls.training.run_folder import best_checkpoint

MAX_COMPONENTS = 16


@dataclass(frozen=True)
class Reference:
    """Clip vectors of known videos in P principal components."""

    mean: Float[np.ndarray, " E"]
    components: Float[np.ndarray, "P E"]
    vectors: Float[np.ndarray, "N P"]
    sha256s: list[str]  # of the N videos


def reference_path(folder: Path) -> Path:
    """Runs of earlier versions, with compiled or with custom networks have none."""
    return folder / "reference.safetensors"


def fit_reference(vectors: Float[np.ndarray, "N E"], sha256s: list[str]) -> Reference:
    """Projects clip vectors on their principal components, each with the sign that makes its largest entry positive."""
    mean = vectors.mean(axis=0)
    components = np.linalg.svd(vectors - mean, full_matrices=False)[2][:MAX_COMPONENTS]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
    return Reference(mean, components, (vectors - mean) @ components.T, sha256s)


def write_reference(folder: Path, reference: Reference) -> None:
    """Writes reference.safetensors, with the identity of best.ckpt."""
    arrays = {name: getattr(reference, name).astype(np.float32) for name in ("mean", "components", "vectors")}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    arrays["sha256s"] = np.array([list(bytes.fromhex(sha256)) for sha256 in reference.sha256s], np.uint8)
    write_atomically(reference_path(folder), save(arrays, {"model": hash_file(best_checkpoint(folder))[:12]}))


def read_reference(folder: Path, identity: str, model: Classifier) -> Reference | None:
    """The reference of a run; None if it has none, or one of weights with another ``identity``.

    Raises:
        UserError: the file is damaged.
    """
    path = reference_path(folder)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as opened:
            file = TensorFile(opened)
            arrays = {name: file.get_tensor(name) for name in ("mean", "components", "vectors", "sha256s")}
            if file.metadata().get("model") != identity:
                return None
        (size,), (count, width), (videos, depth) = (arrays[name].shape for name in ("mean", "components", "vectors"))
        fits = (width, depth, arrays["sha256s"].shape) == (size, count, (videos, 32)) and videos > 0
        fits = fits and type(model) is Classifier and model.output.in_features == size
        finite = all(np.isfinite(arrays[name]).all() for name in ("mean", "components", "vectors"))
        if not (fits and finite):
            raise ValueError("arrays that do not fit together")
    except TENSOR_FILE_ERRORS as error:
        got = f"{path}: {one_line(error)}"
        remedy = "Restore it; without the file, new videos are not compared with those of training."
        raise UserError("the reference.safetensors of a run", got, remedy, "bad-reference") from error
    sha256s = [bytes(row).hex() for row in arrays.pop("sha256s")]
    return Reference(**arrays, sha256s=sha256s)
