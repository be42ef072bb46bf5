"""DICOM files as pictures. Only what pixels need is read of the header (see `volumes`, which
imports this where such files are)."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import get_expected_length, get_nr_frames, pixel_array

from fedpeft.data.depth import INVERTED, WINDOW, as_deep
from fedpeft.data.volumes import UnreadableVolume, header_unquoted

NO_DICOM = "files called .dcm that are no DICOM"
NO_PIXELS = "DICOM files without pixels"
BROKEN = "broken DICOM files"
NO_DECODER = "DICOM files compressed in a way that no installed decoder reads"
COLOURS = "DICOM files in colours that are not read"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, eq=False)
class DicomFile:
    """The frames of a file.

    Grey values are in the units of the file's rescale slope and intercept, such as Hounsfield
    units. A picture's `info` has the window that the file names for display, if any, and whether
    low values are bright.
    """

    header: Any
    count: int

    def picture(self, at: int) -> Any:
        """One frame: of grey values with 8 bits as they are, else integers or floats; of colours
        with 8 bits each.

        Raises:
          UnreadableVolume: it cannot be decoded.
        """
        with header_unquoted():
            try:
                return self._picture(at)
            except UnreadableVolume:
                raise
            except Exception:  # decoders raise what they like, and quote what they read
                packed = self.header.file_meta.TransferSyntaxUID.is_compressed
                raise UnreadableVolume(NO_DECODER if packed else BROKEN) from None

    def _picture(self, at: int) -> Any:
        values = pixel_array(self.header, index=at)
        kind = str(self.header.PhotometricInterpretation).strip()
        if kind in GREY and values.ndim == 2:
            return self._grey(values, at, inverted=kind == GREY[0])
        return Image.fromarray(_eight_bits(self._colours(values, kind), self.header))

    def _colours(self, values: Any, kind: str) -> Any:
        """Red, green and blue, (height, width, 3)."""
        if kind == "PALETTE COLOR":
            return apply_color_lut(values, self.header)[..., :3]
        # pydicom makes RGB of YBR
        if values.ndim != 3 or values.shape[-1] != 3 or not kind.startswith(("RGB", "YBR")):
            raise UnreadableVolume(COLOURS)
        return values

    def _grey(self, values: Any, at: int, inverted: bool) -> Any:
        outside = values == self.header.get("PixelPaddingValue")
        slope = self._number(at, "PixelValueTransformationSequence", "RescaleSlope", 1.0)
        intercept = self._number(at, "PixelValueTransformationSequence", "RescaleIntercept", 0.0)
        if values.dtype == np.uint8 and (slope, intercept) == (1, 0):
            return Image.fromarray(255 - values if inverted else values)
        if "ModalityLUTSequence" in self.header:
            scaled = apply_modality_lut(values, self.header)
        else:
            scaled = values * slope + intercept
        if np.any(outside) and not np.all(outside):
            # What lies beyond a scanner's circle is no tissue, and would be what is darkest.
            scaled = np.where(outside, scaled[~outside].min(), scaled)
        picture = Image.fromarray(as_deep(scaled))
        picture.info |= {INVERTED: inverted, WINDOW: self._window(at)}
        return picture

    def _window(self, at: int) -> tuple[float, float] | None:
        """The first window that the file names, as its ends (DICOM PS3.3, C.11.2.1.2)."""
        center, width = (
            self._number(at, "FrameVOILUTSequence", keyword, None)
            for keyword in ("WindowCenter", "WindowWidth")
        )
        if center is None or width is None or width <= 0:
            return None
        exact = self._value(at, "FrameVOILUTSequence", "VOILUTFunction") == "LINEAR_EXACT"
        if exact or width <= 1:
            return center - width / 2, center + width / 2
        return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2

    def _number(self, at: int, sequence: str, keyword: str, default: Any) -> Any:
        """A number of the header, the first of several."""
        found = self._value(at, sequence, keyword)
        if isinstance(found, str | bytes) or not hasattr(found, "__len__"):
            return default if found in (None, "") else float(found)
        return float(found[0]) if len(found) else default

    def _value(self, at: int, sequence: str, keyword: str) -> Any:
        """An element of the header itself, of a frame, or of what all frames share."""
        if keyword in self.header:
            return self.header.get(keyword)
        frames = self.header.get("PerFrameFunctionalGroupsSequence") or []
        shared = self.header.get("SharedFunctionalGroupsSequence") or []
        for group in [*frames[at : at + 1], *shared[:1]]:
            inside = group.get(sequence)
            if inside and keyword in inside[0]:
                return inside[0].get(keyword)
        return None


def open_dicom(source: Path | bytes) -> DicomFile:
    """Read a file; pixels are decoded later.

    Raises:
      UnreadableVolume: why no picture can be made of it.
    """
    with header_unquoted():
        try:
            header = dcmread(BytesIO(source) if isinstance(source, bytes) else source)
            return DicomFile(header, _count_frames(header))
        except InvalidDicomError:
            raise UnreadableVolume(NO_DICOM) from None
        except UnreadableVolume:
            raise
        except Exception:  # whatever a broken header makes pydicom raise
            raise UnreadableVolume(BROKEN) from None


def _count_frames(header: Any) -> int:
    """How many frames there are, of pixels that are all there and can be decoded."""
    held = next((name for name in PIXELS if name in header), None)
    if held is None or not header.get("Rows") or not header.get("Columns"):
        raise UnreadableVolume(NO_PIXELS)
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise UnreadableVolume(NO_DECODER)
    plain = held == PIXELS[0] and not syntax.is_compressed
    if plain and len(header.PixelData) < get_expected_length(header):
        raise UnreadableVolume(BROKEN)
    return int(get_nr_frames(header, warn=False))


def _eight_bits(values: Any, header: Any) -> Any:
    """Colours of more bits by their upper 8."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    palette = header.get("RedPaletteColorLookupTableDescriptor")
    bits = int(palette[2]) if palette is not None else int(header.BitsStored)
    return np.ascontiguousarray(values >> max(0, bits - 8)).astype(np.uint8)
