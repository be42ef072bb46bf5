"""Blood cells of three owners, as pictures with masks and as DICOM files, and a SegFormer with
random weights.

    python -m tools.cell_pictures FOLDER --data TABLES

reads TABLES/bloodcells (docs/guide/plans.md says what is in it) and writes FOLDER/cells
(`SPLIT/OWNER/images` with `masks` beside them), FOLDER/cells-dicom (grey pictures of 12 bits,
`metadata.csv`) and FOLDER/tiny-segformer. Owners have slides of their own.

Nobody drew the masks. A pixel belongs to the cell if its green is below Otsu's threshold of the
picture and it hangs together with the picture's middle; other dark parts do not count. So a model
learns a threshold, the middle and the kind of the cell, and nothing about segmentation by experts
can be concluded from it.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OWNERS = ("north", "south", "west")
LABELS = ("background", "red cell", "white cell", "platelet")
UNCOUNTED = 255
MIDDLE = slice(20, 44)
"""Of 64 pixels a side."""
BITS = 12


@dataclass(frozen=True)
class Cell:
    """A picture (64, 64, 3) of 8 bits, its kind from 0, and to whom it belongs."""

    pixels: NDArray[np.uint8]
    kind: int
    split: str
    owner: str
    name: str


def read_cells(data: Path) -> Iterator[Cell]:
    """All cells. The slides of a split are dealt out in turn, so that no owner shares one."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from PIL import Image

    for split in ("train", "test"):
        rows = pq.read_table(data / "bloodcells" / f"{split}.parquet").to_pylist()
        slides = sorted({row["slide"] for row in rows})
        owners = {slide: OWNERS[at % len(OWNERS)] for at, slide in enumerate(slides)}
        for number, row in enumerate(rows):
            picture = Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")
            owner, name = owners[row["slide"]], f"{number:04}"
            yield Cell(np.asarray(picture), int(row["label"]), split, owner, name)


def otsu(values: NDArray[np.uint8]) -> int:
    """The value up to which pixels are dark, by Otsu (1979): it parts them with the largest
    variance between both sides."""
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = (sums[-1] * below / below[-1] - sums) ** 2 / (below * (below[-1] - below))
    return int(np.nan_to_num(spread).argmax())


def mask_of(cell: Cell) -> NDArray[np.uint8] | None:
    """The number of each pixel's label (64, 64), 255 for dark parts apart from the middle; None
    where the middle has none."""
    from scipy import ndimage

    green = cell.pixels[..., 1]
    dark = ndimage.binary_fill_holes(green <= otsu(green))
    parts, _ = ndimage.label(dark)
    inside = parts[MIDDLE, MIDDLE]
    if not inside.any():
        return None
    largest = np.bincount(inside[inside > 0]).argmax()
    mask = np.where(dark, UNCOUNTED, 0)
    return np.where(parts == largest, cell.kind + 1, mask).astype(np.uint8)


def write_masks(cells: list[Cell], folder: Path) -> int:
    """Pictures and masks; gives how many have no mask and are left out."""
    from PIL import Image

    left_out = 0
    for cell in cells:
        mask = mask_of(cell)
        if mask is None:
            left_out += 1
            continue
        for kind, values in (("images", cell.pixels), ("masks", mask)):
            file = folder / cell.split / cell.owner / kind / f"{cell.name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    return left_out


def write_dicom(cells: list[Cell], folder: Path) -> None:
    """The cells in grey as DICOM files with a window for display, and metadata.csv."""
    rows = []
    for cell in cells:
        name = f"{cell.split}/{cell.owner}/{cell.name}.dcm"
        save_grey(folder / name, cell.pixels.mean(-1) * (2**BITS - 1) / 255)
        rows.append((name, LABELS[cell.kind + 1], cell.owner))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "label", "owner"), *rows])


def save_grey(file: Path, values: NDArray[Any]) -> None:
    """One grey DICOM file of 12 bits, shown from its least to its largest value."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    grey = values.round().astype(np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[file.as_posix()])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta[0x00020003].value
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = grey.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, BITS, BITS - 1
    data.PixelRepresentation = 0
    least, most = int(grey.min()), int(grey.max())
    data.WindowCenter, data.WindowWidth = (least + most + 1) / 2, most - least + 1
    data.PixelData = grey.astype("<u2").tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(file, enforce_file_format=True)


def write_model(folder: Path, seed: int = 1) -> None:
    """A SegFormer of three stages with random weights, for 64 pixels a side."""
    import torch
    from transformers import SegformerConfig, SegformerImageProcessor, SegformerModel

    config = SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        sr_ratios=[4, 2, 1],
        hidden_sizes=[16, 32, 64],
        patch_sizes=[5, 3, 3],
        strides=[2, 2, 2],
        num_attention_heads=[1, 2, 4],
        mlp_ratios=[2, 2, 2],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    SegformerModel(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="the folder with `bloodcells`")
    given = parser.parse_args()
    if not (given.data / "bloodcells" / "train.parquet").is_file():
        parser.error(
            f"{given.data} has no bloodcells/train.parquet: docs/guide/plans.md says what it holds"
        )
    cells = list(read_cells(given.data))
    left_out = write_masks(cells, given.folder / "cells")
    write_dicom(cells, given.folder / "cells-dicom")
    write_model(given.folder / "tiny-segformer")
    print(f"{len(cells):,} cells; without a mask, and left out there: {left_out}")


if __name__ == "__main__":
    main()
