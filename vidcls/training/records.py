"""What training and evaluation both write about a split: predictions, the worst errors, dashboard images."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from vidcls.data.videos import Videos
from vidcls.files import csv_bytes, write_atomically
from vidcls.metrics.predictions import Predictions
from vidcls.plots.run_plots import strips_figure
from vidcls.plots.style import Figure

WORST_SHOWN = 6


def write_predictions(path: Path, rows: pd.DataFrame, predictions: Predictions, classes: Sequence[str]) -> None:
    """Writes a .csv of path, label, predicted, and the probability of each class under its name."""
    table = pd.DataFrame({"path": rows["path"], "label": rows["label"]})
    table["predicted"] = [classes[k] for k in predictions.predicted]
    for k, name in enumerate(classes):
        table[name] = [f"{p:.9g}" for p in predictions.probabilities[:, k]]  # nine digits hold a float32 exactly
    write_atomically(path, csv_bytes(table))


def worst_errors_figure(videos: Videos, split: str, predictions: Predictions) -> Figure:
    """Frames of the most confident errors of a split, as the network sees them."""
    dataset, rows, classes = videos.dataset(split), videos.rows(split), videos.classes
    captions, worst = [], predictions.worst_errors(WORST_SHOWN)
    for row in worst:
        k = int(predictions.predicted[row])
        probability = predictions.probabilities[row, k]
        captions.append(f"{rows['path'][row]}: {rows['label'][row]} predicted as {classes[k]} ({probability:.2f})")
    title = f"{split}: the most confident of {len(predictions.worst_errors())} errors among {len(rows)} videos"
    return strips_figure([dataset.frames(row) for row in worst], captions, title)


def log_picture(writer: SummaryWriter, tag: str, path: Path, step: int) -> None:
    """Shows a PNG in TensorBoard as it is: ``add_figure`` would draw and compress it again."""
    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=path.read_bytes())
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
