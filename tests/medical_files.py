"""DICOM and NIfTI files for tests, with names of people in their headers."""

from pathlib import Path
from typing import Any

import numpy as np

SECRET = "Quasimodo^Ottilie"
"""Whose name the headers hold."""
NUMBER, BIRTH = "MRN-4711-X", "19370229"


def save_dicom(file: Path, values: Any, photometric: str = "MONOCHROME2", **elements: Any) -> Path:
    """A DICOM file of `values`: (height, width), (frames, height, width), or (height, width, 3)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    values = np.asarray(values)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.4"
    data.PatientName, data.PatientID = SECRET, NUMBER
    colours = values.ndim == 3 and values.shape[-1] == 3
    data.SamplesPerPixel = 3 if colours else 1
    data.PhotometricInterpretation = photometric
    if colours:
        data.PlanarConfiguration = 0
    elif values.ndim == 3:
        data.NumberOfFrames = len(values)
    data.Rows, data.Columns = values.shape[:2] if colours else values.shape[-2:]
    bits = values.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(file, enforce_file_format=True)
    return file


def save_nifti(file: Path, values: Any, affine: Any = None, scale: Any = None) -> Path:
    """A NIfTI file whose description holds a name."""
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(values), np.eye(4) if affine is None else affine)
    image.header["descrip"] = SECRET.encode()
    if scale is not None:
        image.header.set_slope_inter(*scale)
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, file)
    return file
