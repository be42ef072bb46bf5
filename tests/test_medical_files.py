"""DICOM and NIfTI files as pictures: their values, slices, what is left out, and that no header
leaves.

The files are written with pydicom and nibabel, whose own arrays are the reference.
"""

import re
from logging import INFO, WARNING
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
from medical_files import BIRTH, NUMBER, SECRET, save_dicom, save_nifti
from running import fedpeft

from fedpeft import DataError, PlanError, read_plan
from fedpeft.data.images import Images
from fedpeft.data.inspect import inspect
from fedpeft.data.pictures import Pictures, pair
from fedpeft.data.table import HubTable
from fedpeft.data.volumes import choose_slice, volume_format
from fedpeft.errors import say_count

pydicom = pytest.importorskip("pydicom", reason="fedpeft[medical] is not installed")
nibabel = pytest.importorskip("nibabel", reason="fedpeft[medical] is not installed")


def grey(file: Path, window: Any = None, **keys: Any) -> Any:
    """The values of a file's picture of 8 bits."""
    pictures, _ = pair(Pictures([file], [0], **keys), Pictures([], []), window)
    return np.asarray(pictures[0])


def upright(file: Path, **keys: Any) -> Any:
    """The values as they are recorded."""
    return np.asarray(Pictures([file], [0], **keys).upright(0))


RAMP = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)


def test_rescaled_values_are_windowed(tmp_path: Path) -> None:
    """Stored 0 to 4000 with an intercept of −1000: from −1000 to 3000 Hounsfield units."""
    file = save_dicom(tmp_path / "ct.dcm", RAMP, RescaleSlope=1, RescaleIntercept=-1000)
    assert upright(file).tolist() == [[-1000, 0], [1000, 3000]]
    assert grey(file, (-1000.0, 1000.0)).tolist() == [[0, 128], [255, 255]]
    assert grey(file).tolist() == [[0, 64], [128, 255]]  # the least and the largest of all
    half = save_dicom(tmp_path / "h.dcm", RAMP, RescaleSlope="0.00025", RescaleIntercept=0)
    assert upright(half).dtype == np.float32
    assert grey(half).tolist() == [[0, 64], [128, 255]]  # fractions from 0 to 1


def test_the_files_own_window_is_the_standards(tmp_path: Path) -> None:
    """Centre 2048, width 4096: black up to 0, white from 4095 on (DICOM PS3.3, C.11.2.1.2.1)."""
    from pydicom.pixels.processing import apply_windowing

    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    file = save_dicom(
        tmp_path / "a.dcm", values, WindowCenter=[2048, 40], WindowWidth=[1024, 80], BitsStored=12,
        HighBit=11,
    )  # fmt: skip
    told = apply_windowing(values, pydicom.dcmread(file)) * (255 / 4095)
    assert np.abs(grey(file, "own").astype(float) - told).max() <= 1
    bare = save_dicom(tmp_path / "b.dcm", RAMP)
    assert grey(bare, "own").tolist() == grey(bare, "minmax").tolist() == [[0, 64], [128, 255]]


def test_monochrome_1_is_inverted(tmp_path: Path) -> None:
    deep = save_dicom(tmp_path / "a.dcm", RAMP, "MONOCHROME1", BitsStored=12, HighBit=11)
    assert grey(deep, (0.0, 4000.0)).tolist() == [[255, 191], [127, 0]]
    flat = save_dicom(tmp_path / "b.dcm", np.array([[0, 55], [200, 255]], np.uint8), "MONOCHROME1")
    assert grey(flat).tolist() == [[255, 200], [55, 0]]


def test_what_lies_beyond_the_scanners_circle_is_the_darkest(tmp_path: Path) -> None:
    values = np.array([[-2000, -1000], [0, 1000]], dtype=np.int16)
    file = save_dicom(tmp_path / "a.dcm", values, PixelPaddingValue=-2000)
    assert upright(file).tolist() == [[-1000, -1000], [0, 1000]]


def test_colours(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    assert grey(save_dicom(tmp_path / "a.dcm", values, "RGB")).tolist() == values.tolist()
    deep = save_dicom(tmp_path / "b.dcm", values.astype(np.uint16) * 256, "RGB")
    assert grey(deep).tolist() == values.tolist()
    from pydicom.pixels.processing import convert_color_space

    ybr = convert_color_space(values, "RGB", "YBR_FULL")
    back = grey(save_dicom(tmp_path / "c.dcm", ybr, "YBR_FULL")).astype(int)
    assert np.abs(back - values).max() <= 2
    with pytest.raises(DataError, match="in colours that are not read"):
        grey(save_dicom(tmp_path / "d.dcm", values, "HSV"))


def test_frames_and_what_each_of_them_says_of_itself(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    frames = np.stack([np.full((2, 4), 10 * k, np.uint16) for k in range(4)])

    def group(intercept: int) -> Any:
        inner, outer = Dataset(), Dataset()
        inner.RescaleSlope, inner.RescaleIntercept = 2, intercept
        outer.PixelValueTransformationSequence = Sequence([inner])
        return outer

    groups = Sequence([group(k) for k in range(4)])
    file = save_dicom(tmp_path / "a.dcm", frames, PerFrameFunctionalGroupsSequence=groups)
    assert upright(file)[0, 0] == 42  # the middle of four is the third: 2 · 20 + 2
    assert [upright(file, slice=k)[0, 0] for k in range(4)] == [0, 21, 42, 63]
    with pytest.raises(DataError, match="no slice 4"):
        upright(file, slice=4)


def test_nifti_slices_are_axial_and_as_radiologists_see_them(tmp_path: Path) -> None:
    """Values 100·right + 10·front + up, in 2 x 3 x 4; the front is at the top, the right of the
    patient at the left. Stored in any of three orientations it is the same."""
    right, front, up = np.meshgrid(range(2), range(3), range(4), indexing="ij")
    values = (100 * right + 10 * front + up).astype(np.int16)
    wanted = [[122, 22], [112, 12], [102, 2]]
    plain = save_nifti(tmp_path / "a.nii", values)
    assert upright(plain).tolist() == wanted
    flipped = save_nifti(tmp_path / "b.nii.gz", values[::-1, :, ::-1], np.diag([-1, 1, -1, 1]))
    assert upright(flipped).tolist() == wanted
    turned = np.zeros((4, 4))
    turned[0, 1] = turned[1, 2] = turned[2, 0] = turned[3, 3] = 1  # axes: up, right, front
    order = save_nifti(tmp_path / "c.nii", values.transpose(2, 0, 1), turned)
    assert upright(order).tolist() == wanted
    assert upright(order, slice=0).tolist() == [[120, 20], [110, 10], [100, 0]]
    content = {"bytes": (tmp_path / "b.nii.gz").read_bytes(), "path": "b.nii.gz"}
    assert np.asarray(Pictures([content], [0]).upright(0)).tolist() == wanted


def test_nifti_scales_sections_and_kinds(tmp_path: Path) -> None:
    values = np.array([[1, 2], [3, 4]], dtype=np.int16)
    scaled = save_nifti(tmp_path / "a.nii", values[..., None], scale=(0.5, -1))
    stored = np.asarray(nibabel.load(scaled).dataobj)[..., 0]
    assert upright(scaled).tolist() == stored.T[::-1, ::-1].tolist()
    # a coronal section, one place deep to the front: the head is at the top
    coronal = save_nifti(tmp_path / "b.nii", values[:, None, :])
    assert upright(coronal).tolist() == [[4, 2], [3, 1]]
    flat = save_nifti(tmp_path / "c.nii", values)
    assert upright(flat).tolist() == [[4, 2], [3, 1]]
    one = save_nifti(tmp_path / "d.nii", np.ones((2, 2, 1, 1), np.float32))
    assert upright(one).tolist() == [[1, 1], [1, 1]]
    small = save_nifti(tmp_path / "e.nii", values[..., None].astype(np.uint8))
    assert Pictures([small], [0]).upright(0).mode == "L"


def test_what_is_not_finite_in_a_volume_is_black_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scanners' masks leave NaN, which is no Hounsfield unit of 0: grey, between -1000 and 1000."""
    values = np.array([[-1000, np.nan], [1000, np.inf]], dtype=np.float32)[..., None]
    some = save_nifti(tmp_path / "a" / "some.nii", values)
    none = save_nifti(tmp_path / "a" / "none.nii", np.full((2, 2, 1), np.nan, np.float32))
    pictures, _ = pair(Pictures([some, none], range(2)), Pictures([], []), None)
    assert np.asarray(pictures[0]).tolist() == [[255, 0], [255, 0]]
    assert np.asarray(pictures[1]).tolist() == [[0, 0], [0, 0]]
    assert "without a finite value, and so black: 1 picture" in caplog.text


def write_bad(folder: Path) -> dict[str, int]:
    """Files of which no picture can be made, and by reason how many there are."""
    save_dicom(folder / "report.dcm", RAMP, PixelData=None, Rows=None, Columns=None)
    (folder / "noise.dcm").write_bytes(b"no DICOM at all")
    whole = save_dicom(folder / "cut.dcm", np.zeros((64, 64), np.uint16)).read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-1000])
    save_nifti(folder / "bold.nii.gz", np.zeros((3, 3, 3, 5), np.int16))
    whole = save_nifti(folder / "short.nii", np.zeros((9, 9, 9), np.int16)).read_bytes()
    (folder / "short.nii").write_bytes(whole[:-10])
    save_nifti(folder / "complex.nii", np.zeros((3, 3, 3), np.complex64))
    return {
        "DICOM files without pixels": 1,
        "files called .dcm that are no DICOM": 1,
        "broken DICOM files": 1,
        "NIfTI files of four dimensions or more": 1,
        "broken NIfTI files": 1,
        "NIfTI files of colours or complex numbers": 1,
    }


def write_scans(root: Path) -> dict[str, int]:
    """Two classes of scans; bright ones are ill."""
    for name, level in (("healthy", 200), ("ill", 3000)):
        for k in range(6):
            frames = np.full((3, 8, 8), level + k, np.uint16)
            frames[0] = k
            save_dicom(root / name / f"{k}.dcm", frames, RescaleSlope=1, RescaleIntercept=-1000)
        save_nifti(root / name / "x.nii.gz", np.full((8, 8, 5), level - 1000, np.int16))
    return write_bad(root / "ill")


def test_files_of_which_no_picture_can_be_made_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = write_scans(tmp_path)
    with caplog.at_level(WARNING, "fedpeft"):
        got = Images(str(tmp_path)).load()
    assert got.left_out == bad
    assert len(got.train) + len(got.test) == 14 and got.classes == ("healthy", "ill")
    for why in bad:
        [line] = [m for m in caplog.messages if f"left out: {say_count(1, why)}, first " in m]
        assert re.search(r"/ill/\w+\.(dcm|nii)", line)
    [told] = [m for m in caplog.messages if "several slices" in m]
    assert "14 of 20 medical files have several slices: the middle one is taken" in told
    values = {int(np.asarray(x).max()) for x in got.train.columns["image"]}
    assert values == {0, 255}  # a window of all: what differs by one of 2,800 is one grey
    first, *_ = got.train.columns["image"]
    assert first.size == (8, 8) and first.mode == "L"


def test_all_slices_are_examples_of_the_side_of_their_file(tmp_path: Path) -> None:
    write_scans(tmp_path)
    got = Images(str(tmp_path), slice="all", window=(-1000.0, 2100.0)).load()
    train, test = (set(side.columns["file"]) for side in (got.train, got.test))
    assert train and test and not train & test
    assert len(got.train) + len(got.test) == 12 * 3 + 2 * 5
    labels = got.train.labels
    assert labels is not None and len(labels) == len(got.train.columns["image"])
    place = got.train.columns["file"].index("ill/1.dcm")
    seen = [int(np.asarray(got.train.columns["image"][place + k])[0, 0]) for k in range(3)]
    assert seen == [0, 247, 247]  # the first frame is air
    assert got.train.columns["file"][place : place + 3] == ["ill/1.dcm"] * 3


def test_slices_of_one_file_are_not_on_both_sides() -> None:
    partition = {"name": "iid", "clients": 2, "held_out": 0.2}
    for name in ("images", "table"):
        data = {"name": name, "path": "scans", "slice": "all"}
        with pytest.raises(PlanError, match="slices of one file would be on both sides"):
            read_plan({"data": data, "partition": partition})
        read_plan({"data": {**data, "slice": 3}, "partition": partition})


def test_a_table_names_files(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a.dcm", RAMP)
    save_nifti(tmp_path / "b.nii.gz", np.zeros((2, 2, 3), np.int16))
    (tmp_path / "c.dcm").write_bytes(b"nothing")
    rows = ["scan,label", "a.dcm,yes", "b.nii.gz,no", "c.dcm,no", "a.dcm,yes"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    one = HubTable(str(tmp_path / "t.csv"), image="scan", test_fraction=0)
    got = one.load()
    assert got.left_out == {"files called .dcm that are no DICOM": 1}
    assert [picture.size for picture in got.train.columns["image"]] == [(2, 2)] * 3
    every = HubTable(str(tmp_path / "t.csv"), image="scan", test_fraction=0, slice="all").load()
    assert len(every.train) == 5 and every.train.labels is not None
    assert every.train.labels.tolist() == [1, 0, 0, 0, 1]
    # bytes without a name are known by how they begin
    held = {"bytes": (tmp_path / "a.dcm").read_bytes(), "path": None}
    assert np.asarray(Pictures([held], [0]).upright(0)).tolist() == RAMP.tolist()


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dicom(tmp_path / "a" / "0.dcm", RAMP)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(PlanError, match=r"pydicom reads: pip install 'fedpeft\[medical\]'"):
        Images(str(tmp_path)).load()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("A.DCM", "dicom"), ("x.nii", "nifti"), ("x.NII.GZ", "nifti"), ("x.png", ""),
     ("x.csv.gz", ""), ("nii", ""), ("x.dcm.gz", "")],
)  # fmt: skip
def test_formats_by_name(name: str, kind: str) -> None:
    assert volume_format(name) == kind


def test_bad_keys() -> None:
    assert [choose_slice("middle", n) for n in (1, 2, 3, 4)] == [0, 1, 1, 2]
    for chosen, match in (("last", '"middle", "all" or the number'), (-1, "counted from 0")):
        with pytest.raises(ValueError, match=match):
            Images("x", slice=chosen)
    with pytest.raises(ValueError, match='"percentile", "own" or'):
        Images("x", window="voi")


def write_odd_headers(root: Path) -> None:
    """Scans whose headers hold what the standard does not allow, so that pydicom quotes it."""
    write_scans(root)
    for k, file in enumerate(sorted(root.rglob("[0-9].dcm"))):
        odd = pydicom.dcmread(file)
        with catch_warnings():
            simplefilter("ignore")
            odd.add_new("PatientBirthDate", "DA", BIRTH + "?")
            odd.add_new("StudyInstanceUID", "UI", f"{NUMBER}.{k}")
            odd.save_as(file)
    assert SECRET.encode() in (root / "ill" / "1.dcm").read_bytes()
    with pytest.warns(UserWarning, match=f"{NUMBER}|{BIRTH}"):
        str(pydicom.dcmread(file))


def holds_secret(content: bytes) -> bool:
    return any(word.encode() in content for word in (SECRET, "Ottilie", NUMBER, BIRTH))


def test_nothing_of_a_header_is_logged_or_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_odd_headers(tmp_path)
    assert holds_secret(caplog.text.encode()), "pydicom logs it where nobody keeps it from that"
    caplog.clear()
    with caplog.at_level(INFO):
        got = Images(str(tmp_path), window="own", slice="all").load()
        lines = inspect(got).lines
        pictures = [*got.train.columns["image"], *got.test.columns["image"]]
    assert caplog.messages and len(pictures) == 46
    assert not holds_secret("\n".join([*caplog.messages, *lines]).encode())
    assert not any(holds_secret(repr(picture.info).encode()) for picture in pictures)


@pytest.mark.slow
def test_nothing_of_a_header_leaves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in what a run and an export write nor in what they show."""
    root = tmp_path / "scans"
    write_odd_headers(root)
    caplog.clear()
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'rounds = 1\nmethod = "head"\ncohort = 2\n'
        f'[data]\nname = "images"\npath = "{root}"\nwindow = "own"\nskip_unreadable = true\n'
        '[partition]\nname = "iid"\nclients = 2\n[local]\nlr = 0.1\n'
    )
    shown = []
    with caplog.at_level(INFO):
        for words in (
            ("doctor", root, "--out", tmp_path / "report.txt"),
            ("run", plan, "--out", tmp_path / "run"),
            ("export", tmp_path / "run", tmp_path / "exported"),
        ):
            ended = fedpeft(*words)
            assert ended.exit_code == 0, ended.output
            shown.append(ended.output)
    written = [file for file in tmp_path.rglob("*") if file.is_file() and root not in file.parents]
    assert len(written) > 8
    told = "\n".join([*shown, caplog.text]).encode()
    assert not any(map(holds_secret, [told, *(file.read_bytes() for file in written)]))
