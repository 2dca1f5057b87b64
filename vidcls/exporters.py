"""A trained network as one file that runs without this package: uint8 frames in, probabilities out."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.transforms import v2

from vidcls.data.store import StoreEntryError
from vidcls.errors import UserError, check_choice
from vidcls.files import hash_file
from vidcls.prediction.predictor import LoadedRun
from vidcls.training.spec import RunSpec
from vidcls.training.transforms import Preprocess

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2"}
"""The formats, and what their files are called unless the user says otherwise."""
METADATA_FILE = "vidcls.json"
"""Where a .pt2 holds the metadata: ``torch.export.load(path, extra_files=files)`` fills ``files["vidcls.json"]``."""
TOLERANCE = 1e-5
CHECKED_CLIPS = 16
CHECKED_AT_ONCE = 4  # clips of high resolution would otherwise fill the memory

Classify = Callable[[UInt8[np.ndarray, "B T H W 3"]], Float[np.ndarray, "B K"]]


class ExportedClassifier(nn.Module):
    """What an exported file computes: preprocessing without augmentation, the network, softmax.

    Args:
        model: [B, T, 3, R, R] to logits [B, K], on the CPU.
        preprocess: uint8 [B, T, H, W, 3] to what the model takes.
    """

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.eval()

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B K"]:
        """Probabilities, float32, rows sum to 1."""
        # The model's own forward, also where compile=true has put a compiled one before it, which cannot be exported.
        return self.model.forward(self.preprocess(frames)).float().softmax(dim=1)

    @torch.inference_mode()
    def classify(self, frames: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B K"]:
        """`forward` from array to array."""
        return self(torch.from_numpy(frames)).numpy()


def describe(spec: RunSpec, checkpoint_sha256: str) -> dict[str, str]:
    """A file's metadata: all that is needed to feed it and to read its answer. ``classes`` is a JSON list.

    Where ``num_clips`` is above 1 its user averages the probabilities of so many clips of ``clip_seconds``. Where that
    is missing, a clip is a whole video.
    """
    store = {"store_num_frames": spec.store.stored_frames, "store_resolution": spec.store.stored_resolution}
    data = {name: str(value) for name, value in (vars(spec.clip) | store).items() if value is not None}
    return {"classes": json.dumps(spec.classes), **data, "checkpoint_sha256": checkpoint_sha256}


def stored_clips(
    trained: LoadedRun, cache_dir: str | None, most: int = CHECKED_CLIPS
) -> UInt8[np.ndarray, "N T H W 3"]:
    """A clip of each of up to ``most`` test and validation videos of a run, as its test saw them.

    Args:
        trained: the run.
        cache_dir: where decoded frames are kept; None: where the run's config.yaml says.
        most: N, at most.

    Raises:
        UserError: the store holds none of these videos.
    """
    datamodule = trained.videos(cache_dir=cache_dir)
    datamodule.load_manifest(trained.manifest)
    clips: list[np.ndarray] = []
    held_out = [(dataset, row) for dataset in map(datamodule.dataset, ("test", "val")) for row in range(len(dataset))]
    for dataset, row in held_out:
        if len(clips) == most:
            break
        try:
            clips.append(dataset.frames(row))
        except StoreEntryError:
            continue  # missing or damaged: others will do
    if not clips:
        raise UserError(
            "decoded test or validation videos of the run, to check the export on",
            f"none of {len(held_out)} in {datamodule.store.folder}",
            "Start from the folder the run was trained in, give cache_dir=DIR, or decode them again: "
            "python evaluate.py run=DIR split=test.",
        )
    return np.stack(clips)


def export_onnx(classifier: ExportedClassifier, path: Path, metadata: dict[str, str], example: Tensor) -> None:
    """Writes an ONNX file with one input ``frames``, one output ``probabilities``, and ``metadata_props``.

    Args:
        classifier: on the CPU.
        path: the file.
        metadata: text by name.
        example: uint8 [2, T, R, R, 3]. T and R are fixed by it; the batch size is not.
    """
    program = torch.onnx.export(
        classifier,
        (example,),
        input_names=["frames"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)  # one file, weights inside


def export_torch(classifier: ExportedClassifier, path: Path, metadata: dict[str, str], example: Tensor) -> None:
    """Writes a ``torch.export`` archive (.pt2) that holds the metadata as `METADATA_FILE`; arguments as above."""
    program = torch.export.export(classifier, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def open_onnx(path: Path) -> Classify:
    """An ONNX file as a function of arrays."""
    import onnxruntime  # only here, as no other use of the package needs it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(["probabilities"], {"frames": frames})[0]


def open_torch(path: Path) -> Classify:
    """A ``torch.export`` archive as a function of arrays."""
    program = torch.export.load(path).module()
    return lambda frames: program(torch.from_numpy(frames)).detach().numpy()


def check_parity(
    reference: Classify,
    exported: Classify,
    clips: UInt8[np.ndarray, "N T H W 3"],
    resolution: int,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest absolute difference between two networks' probabilities.

    The reference gets the clips as they are stored, and the exported one resized, as its users will do it. The first
    clip goes alone and the others in batches, so that a batch size frozen into a file shows.

    Raises:
        UserError: it is above the tolerance, or not a number.
    """
    worst = 0.0
    starts = [0, *range(1, len(clips), CHECKED_AT_ONCE)]
    for start, stop in zip(starts, [*starts[1:], len(clips)], strict=True):
        batch = clips[start:stop]
        differences = np.abs(reference(batch) - exported(resize(batch, resolution)))
        worst = float(np.maximum(worst, differences.max()))  # keeps NaN
    if not worst <= tolerance:
        raise UserError(
            f"the exported network to agree with the trained one within {tolerance:g}",
            f"probabilities that differ by up to {worst:.3g} over {len(clips)} clips",
            "Nothing was kept; try the other format.",
        )
    return worst


def resize(clips: UInt8[np.ndarray, "N T H W 3"], resolution: int) -> UInt8[np.ndarray, "N T R R 3"]:
    """Clips at a network's resolution, exactly as `vidcls.training.transforms.Preprocess` resizes stored ones."""
    if clips.shape[2:4] == (resolution, resolution):
        return clips
    channels_first = torch.from_numpy(clips).movedim(-1, 2)
    resized = v2.functional.resize(channels_first, [resolution, resolution], antialias=True)
    return np.ascontiguousarray(resized.movedim(2, -1).numpy())


def export_trained(trained: LoadedRun, format: str, output: Path, cache_dir: str | None) -> tuple[float, int]:
    """Writes a run's best network to ``output``; gives the largest difference and over how many clips.

    Raises:
        UserError: see `stored_clips` and `export_checked`.
    """
    classifier = ExportedClassifier(trained.model, trained.preprocess)
    metadata = describe(trained.spec, hash_file(trained.folder / "checkpoints" / "best.ckpt"))
    clips = stored_clips(trained, cache_dir)
    return export_checked(classifier, format, output, metadata, clips), len(clips)


def export_checked(
    classifier: ExportedClassifier,
    format: str,
    output: Path,
    metadata: dict[str, str],
    clips: UInt8[np.ndarray, "N T H W 3"],
) -> float:
    """Writes ``output`` only where the file agrees with the network on ``clips``; gives the largest difference.

    Raises:
        UserError: the format is unknown, ``output`` cannot be written, or the two disagree: see `check_parity`.
    """
    check_choice("format", format, tuple(FILES))
    write, read = (export_onnx, open_onnx) if format == "onnx" else (export_torch, open_torch)
    resolution = classifier.preprocess.resolution
    # Two clips: torch.export takes a batch of one for a constant.
    example = torch.from_numpy(resize(np.repeat(clips[:1], 2, axis=0), resolution))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            part = Path(folder, FILES[format])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch's exporter says of torch's own LSTM
                write(classifier, part, metadata, example)
            difference = check_parity(classifier.classify, read(part), clips, resolution)
            os.replace(part, output)
    except OSError as error:
        raise UserError("output to be a file that can be written", str(error), "Give another output=.") from error
    return difference
