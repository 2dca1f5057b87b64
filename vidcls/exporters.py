"""A trained network as one file that runs without this package: uint8 frames in, probabilities out."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vidcls.data.store import StoreEntryError
from vidcls.errors import UserError
from vidcls.files import hash_file
from vidcls.prediction.run import LoadedRun
from vidcls.training.run_folder import best_checkpoint
from vidcls.training.spec import RunSpec
from vidcls.training.transforms import Preprocess, resize_frames

METADATA_FILE = "vidcls.json"  # in a .pt2: torch.export.load(path, extra_files=files) fills files["vidcls.json"]
TOLERANCE = 1e-5
CHECKED_CLIPS = 16
CHECKED_AT_ONCE = 4  # clips of high resolution would otherwise fill the memory

Classify = Callable[[UInt8[np.ndarray, "B T H W 3"]], Float[np.ndarray, "B K"]]


class ExportedClassifier(nn.Module):
    """The exported computation: preprocessing without augmentation, the network, softmax; on the CPU."""

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.eval()

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B K"]:
        # Not model(...), as a compiled model cannot be exported.
        return self.model.forward(self.preprocess(frames)).float().softmax(dim=1)

    @torch.inference_mode()
    def classify(self, frames: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B K"]:
        return self(torch.from_numpy(frames)).numpy()


def describe(spec: RunSpec, checkpoint_sha256: str) -> dict[str, str]:
    """The metadata of an exported file; ``classes`` is a JSON list."""
    store = {"store_num_frames": spec.store.stored_frames, "store_resolution": spec.store.stored_resolution}
    data = {name: str(value) for name, value in (asdict(spec.clip) | store).items() if value is not None}
    return {"classes": json.dumps(spec.classes), **data, "checkpoint_sha256": checkpoint_sha256}


def stored_clips(
    run: LoadedRun, cache_dir: str | None, max_clips: int = CHECKED_CLIPS
) -> UInt8[np.ndarray, "N T H W 3"]:
    """The middle clip of each of up to ``max_clips`` test and val videos of a run, as stored in ``cache_dir``.

    Raises:
        UserError: none of these videos is stored.
    """
    videos = run.videos(cache_dir=cache_dir)
    held_out = [(dataset, row) for dataset in map(videos.dataset, ("test", "val")) for row in range(len(dataset))]
    clips: list[np.ndarray] = []
    for dataset, row in held_out:
        if len(clips) < max_clips:
            with suppress(StoreEntryError):  # missing or damaged
                clips.append(dataset.frames(row))
    if not clips:
        raise UserError(
            "decoded test or validation videos of the run, to check the export on",
            f"none of {len(held_out)} in {videos.store.folder}",
            "Start in the folder the run was trained in, pass cache_dir=DIR, or decode them again: "
            "python evaluate.py run=DIR split=test.",
            "no-stored-videos",
        )
    return np.stack(clips)


def export_onnx(classifier: ExportedClassifier, path: Path, metadata: dict[str, str], example: Tensor) -> None:
    """Writes an ONNX file; ``example`` [2, T, R, R, 3] fixes T and R, not the batch size."""
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
    """Writes a ``torch.export`` archive (.pt2); arguments as above."""
    program = torch.export.export(classifier, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def open_onnx(path: Path) -> Classify:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(["probabilities"], {"frames": frames})[0]


def open_torch(path: Path) -> Classify:
    program = torch.export.load(path).module()
    return lambda frames: program(torch.from_numpy(frames)).detach().numpy()


def check_parity(
    reference: Classify,
    exported: Classify,
    clips: UInt8[np.ndarray, "N T H W 3"],
    resolution: int,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest absolute difference between two networks' probabilities; the exported one gets resized clips.

    The first clip goes alone and the others in batches, so that a batch size frozen into a file shows.

    Raises:
        UserError: it is above the tolerance, or NaN.
    """
    worst = 0.0
    for batch in np.split(clips, range(1, len(clips), CHECKED_AT_ONCE)):
        differences = np.abs(reference(batch) - exported(resize(batch, resolution)))
        worst = float(np.maximum(worst, differences.max()))  # keeps NaN
    if not worst <= tolerance:
        raise UserError(
            f"the exported network to agree with the trained one within {tolerance:g}",
            f"probabilities that differ by up to {worst:.3g} over {len(clips)} clips",
            "Nothing was kept; try the other format.",
            "export-differs",
        )
    return worst


def resize(clips: UInt8[np.ndarray, "N T H W 3"], resolution: int) -> UInt8[np.ndarray, "N T R R 3"]:
    resized = resize_frames(torch.from_numpy(clips).movedim(-1, 2), resolution)
    return np.ascontiguousarray(resized.movedim(2, -1).numpy())


def export_run(run: LoadedRun, format: str, output: Path, cache_dir: str | None) -> tuple[float, int]:
    """Writes a run's network to ``output``; returns the largest difference and the number of clips."""
    if (precision := str(run.config.trainer.precision)) not in ("32", "32-true"):
        warnings.warn(
            f"The exported network computes in float32, the run in {precision}: expect differences", stacklevel=2
        )
    classifier = ExportedClassifier(run.model.float(), run.preprocess)
    metadata = describe(run.spec, hash_file(best_checkpoint(run.folder)))
    # predict.py cuts longer videos into windows.
    metadata["max_whole_seconds"] = str(run.default_options().max_whole_seconds)
    clips = stored_clips(run, cache_dir)
    return export_checked(classifier, format, output, metadata, clips), len(clips)


def export_checked(
    classifier: ExportedClassifier,
    format: str,
    output: Path,
    metadata: dict[str, str],
    clips: UInt8[np.ndarray, "N T H W 3"],
) -> float:
    """Writes ``output`` only if the file agrees with the network on ``clips``; returns the largest difference.

    Raises:
        UserError: ``output`` cannot be written, or the two disagree: see `check_parity`.
    """
    write, read = (export_onnx, open_onnx) if format == "onnx" else (export_torch, open_torch)
    resolution = classifier.preprocess.resolution
    # Two clips, as torch.export would take a batch of one for a constant.
    example = torch.from_numpy(resize(np.repeat(clips[:1], 2, axis=0), resolution))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            part = Path(folder, "model.onnx" if format == "onnx" else "model.pt2")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's exporter warns about torch's own LSTM
                write(classifier, part, metadata, example)
            difference = check_parity(classifier.classify, read(part), clips, resolution)
            os.replace(part, output)
    except OSError as error:
        expected = "output to be a file that can be written"
        raise UserError(expected, str(error), "Choose another output=FILE.", "output") from error
    return difference
