"""predict.py with DICOM files: scores, privacy, and the two files of --dicom-out."""

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import run_script, sentence_of
from dicom_files import PATIENT, dicom, file_of, save
from pydicom.sr.codedict import codes

import pylon

CAVEAT = "Research use only, not a diagnosis"
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


@pytest.fixture(scope="module")
def checkpoint(trained_once) -> Path:
    return trained_once / "save/pylon/0/best"


@pytest.fixture(scope="module")
def images(phantom, tmp_path_factory) -> Path:
    """One radiograph as PNG and as DICOM of several kinds, and what else an export holds."""
    folder = tmp_path_factory.mktemp("export")
    image = cv2.imread(str(next((phantom / "images").glob("*.png"))), cv2.IMREAD_GRAYSCALE)
    values = image.astype(np.uint16) * 16 + 8  # the middle of what each level stands for
    cv2.imwrite(str(folder / "eight.png"), image)
    wide = {"WindowCenter": 2056, "WindowWidth": 4081}  # from 8 to 255 * 16 + 8
    save(dicom(values, 12, **wide), folder / "twelve.dcm")
    inverse = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2040}
    (folder / "sub").mkdir()
    save(dicom(4095 - values, 12, **{**wide, **inverse}), folder / "sub/IM000001")
    signed = (values.astype(int) - 2048).astype(np.int16)
    rescaled = {"RescaleSlope": "1", "RescaleIntercept": "2048"}
    save(dicom(signed, 16, **rescaled, **wide, ViewPosition="LL"), folder / "signed")
    save(dicom(image, 8, ImageComments=PATIENT["PatientID"]), folder / "eight.dcm")
    (folder / "notes.txt").write_text("no image")
    (folder / "DICOMDIR").write_bytes(file_of(dicom(image, 8))[:132])
    return folder


def predict(checkpoint, *arguments, cwd, code=0):
    arguments = (*arguments, "--checkpoint", checkpoint, "--device", "cpu", "--num-workers", 0)
    return run_script("predict.py", *arguments, cwd=cwd, code=code)


@pytest.fixture(scope="module")
def plain(checkpoint, images, tmp_path_factory) -> tuple[Path, str]:
    """Results without --dicom-out, and what was printed."""
    cwd = tmp_path_factory.mktemp("plain")
    done = predict(checkpoint, images, "--save-maps", "--save-coco", cwd=cwd)
    return cwd / "predictions", done.stdout + done.stderr


@pytest.fixture(scope="module")
def written(checkpoint, images, tmp_path_factory) -> Path:
    """Results with --dicom-out."""
    cwd = tmp_path_factory.mktemp("written")
    predict(checkpoint, images, "--dicom-out", "--no-overlays", "--top", 3, cwd=cwd)
    return cwd / "predictions"


def test_scores_are_those_of_the_png(plain, images):
    out, printed = plain
    rows = pd.read_csv(out / "predictions.csv").set_index(["image", "label"])
    expected = ["eight.dcm", "eight.png", "signed", "sub/IM000001", "twelve.dcm"]
    assert sorted(rows.index.get_level_values("image").unique()) == expected
    for image in expected:
        pd.testing.assert_frame_equal(rows.loc[image], rows.loc["eight.png"])
    assert "note: 1 image of lateral views (see the manifest)" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["lateral views"] == ["signed"]
    counts = {"8 bits": 2, "12 bits": 2, "16 bits": 1, "stored in colour, read as grey": 0}
    assert manifest["pixels"]["counts"] == counts
    assert manifest["pixels"]["windows"]["twelve.dcm"] == [2056, 4081]


def test_nothing_of_the_patient_is_in_the_results(plain):
    out, printed = plain
    contents = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for value in PATIENT.values():
        for part in (value, value.replace("^", " "), value.split("^")[0]):
            assert part.encode() not in contents
            assert part not in printed


def read_pair(written, image):
    name = f"{image}.dcm"
    capture = pydicom.dcmread(written / "captures" / name)
    return capture, highdicom.sr.srread(written / "reports" / name)


def test_both_files_are_in_the_study(written, images):
    seen = set()
    for image in ("twelve.dcm", "sub/IM000001", "eight.dcm"):
        source = pydicom.dcmread(images / image)
        for made in read_pair(written, image):
            for name in (*PATIENT, "PatientSex", "StudyInstanceUID"):
                assert made[name].value == source[name].value
            assert made.SeriesInstanceUID != source.SeriesInstanceUID
            for uid in (made.SOPInstanceUID, made.SeriesInstanceUID):
                assert uid.is_valid
                assert uid not in seen
                seen.add(uid)
            assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
            assert made.ContentQualification == "RESEARCH"
            assert CAVEAT in made.SeriesDescription
            assert source.SOPInstanceUID in str(made)
    assert not (written / "captures/eight.png.dcm").exists()
    assert not (written / "overlays").exists()


def test_capture_shows_the_maps(written):
    capture, _ = read_pair(written, "twelve.dcm")
    picture = capture.pixel_array
    assert picture.dtype == np.uint8
    assert picture.shape[1] > 4 * 360  # the radiograph and three maps
    assert (picture.std(axis=2) > 10).any()  # colours
    assert capture.SourceImageSequence[0].ReferencedSOPClassUID.name.startswith("Digital X-Ray")
    assert CAVEAT in str(capture.ImageComments)


def test_report_has_findings_and_regions(written, checkpoint, images):
    _, report = read_pair(written, "twelve.dcm")
    rows = pd.read_csv(written / "predictions.csv").set_index(["image", "label"]).loc["twelve.dcm"]
    drawn = rows["score"].nlargest(3).index
    prediction = pylon.Predictor(checkpoint, "cpu")(images / "twelve.dcm")
    source = pydicom.dcmread(images / "twelve.dcm")

    # the regions of the classes drawn
    groups = report.content.get_planar_roi_measurement_groups()
    assert {group.tracking_identifier for group in groups} == set(drawn)
    for group in groups:
        label = group.tracking_identifier
        row = rows.loc[label]
        assert group.roi.graphic_type.value == "POLYLINE"
        corners = group.roi.value
        assert (corners[0] == corners[-1]).all()
        low = np.floor(corners.min(axis=0))
        high = np.ceil(corners.max(axis=0))
        box = [row.box_x, row.box_y, row.box_x + row.box_w, row.box_y + row.box_h]
        assert [*low, *high] == box
        outline = prediction.finding(label)["outline"]
        np.testing.assert_allclose(corners[:-1], outline, atol=1e-3)
        image = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID

    # the probability of every class, and what found it
    others = report.content.get_image_measurement_groups()
    assert {group.tracking_identifier for group in (*groups, *others)} == set(rows.index)
    for group in (*groups, *others):
        row = rows.loc[group.tracking_identifier]
        [probability] = group.get_measurements(name=codes.DCM.Probability)
        assert probability.value == pytest.approx(row["score"], abs=1e-6)
        called = group.get_qualitative_evaluations(name=codes.DCM.PresenceOfProperty)
        expected = [codes.DCM.Absent, codes.DCM.Present]
        known = [] if np.isnan(row["present"]) else [expected[int(row["present"])]]
        assert [each.value for each in called] == known
    text = (written / "reports/twelve.dcm.dcm").read_bytes().decode("ascii", "ignore")
    assert text.count(CAVEAT) > len(rows)
    weights = json.loads((written / "manifest.json").read_text())["weights_sha256"]
    assert f"weights sha256 {weights}" in text
    effusion = [each for each in (*groups, *others) if each.tracking_identifier == "Effusion"]
    assert effusion[0].finding_type == codes.SCT.PleuralEffusion


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs Debian's dicom3tools")
def test_dciodvfy_finds_no_error(written):
    for path in sorted(written.glob("[cr]*/**/*.dcm")):
        found = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        lines = (found.stdout + found.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        warnings = [line for line in lines if line.startswith("Warning") and "DICOMDIR" not in line]
        # of codes of our own, and of a side that a chest has not
        assert all("<99PYLON>" in line or "<Laterality>" in line for line in warnings), warnings


def test_second_run_makes_other_instances(written, checkpoint, images, tmp_path):
    shutil.copytree(written, tmp_path / "predictions")
    before = read_pair(written, "eight.dcm")
    arguments = (images, "--dicom-out", "--no-overlays", "--top", 3)
    assert "0 to predict" in predict(checkpoint, *arguments, cwd=tmp_path).stdout
    (tmp_path / "predictions/reports/eight.dcm.dcm").unlink()
    assert "1 to predict" in predict(checkpoint, *arguments, cwd=tmp_path).stdout
    after = read_pair(tmp_path / "predictions", "eight.dcm")
    for one, other in zip(before, after, strict=True):
        assert one.SOPInstanceUID != other.SOPInstanceUID
        assert one.StudyInstanceUID == other.StudyInstanceUID


def test_rows_are_kept_where_nothing_can_be_written(checkpoint, images, tmp_path):
    image = pydicom.dcmread(images / "eight.dcm")
    folder = tmp_path / "odd"
    folder.mkdir()
    image.PatientSex = "U"  # common, though not in the standard
    image.PatientName = "Ñandú José=Ж"  # without ^, of which highdicom would warn, with the name
    image.SpecificCharacterSet = "ISO_IR 192"
    save(image, folder / "fine.dcm")
    image[(0x0010, 0x0030)]._value = "1605-01-16"
    save(image, folder / "birth.dcm")
    del image.StudyInstanceUID, image.PatientBirthDate
    save(image, folder / "no study.dcm")
    (folder / "no image.dcm").write_bytes(b"")
    done = predict(checkpoint, folder, "--dicom-out", "--save-maps", cwd=tmp_path, code=1)
    out = tmp_path / "predictions"
    unwritten = {
        "birth.dcm": f"the PatientBirthDate of {folder / 'birth.dcm'} is not valid, so that "
        "nothing can be written to its study; correct it, or leave out --dicom-out",
        "no study.dcm": f"{folder / 'no study.dcm'} has no StudyInstanceUID, so that nothing can "
        "be written to its study; leave out --dicom-out",
    }
    for reason in unwritten.values():
        assert f"not written: {reason}\n" in done.stderr
    assert sentence_of(done) == (
        "error: 1 of 4 images could not be read; not all files of 2 of 4 images could be written; "
        "the others are done. Names and reasons are in predictions/manifest.json"
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert {each["image"]: each["reason"] for each in manifest["unwritten"]} == unwritten
    assert [each["image"] for each in manifest["unreadable"]] == ["no image.dcm"]

    # the rows, and all other files
    rows = pd.read_csv(out / "predictions.csv").set_index("image")
    assert sorted(set(rows.index)) == ["birth.dcm", "fine.dcm", "no study.dcm"]
    for name in unwritten:
        as_fine = rows.loc["fine.dcm"].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows.loc[name].reset_index(drop=True), as_fine)
        assert (out / f"maps/{name}.npz").exists()
        assert (out / f"overlays/{name}.png").exists()
        assert not (out / f"captures/{name}.dcm").exists()
    capture = pydicom.dcmread(out / "captures/fine.dcm.dcm")
    assert str(capture.PatientName).startswith("Ñandú José")
    assert "José" not in done.stdout + done.stderr
    assert "1.2.826" not in done.stdout + done.stderr  # UIDs of pydicom
    assert capture.PatientSex == ""


def test_odd_files_are_noted_by_name(checkpoint, images, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm", "fine.dcm"):
        image = pydicom.dcmread(images / "twelve.dcm")
        image.PresentationLUTShape = "IDENTITY" if name == "fine.dcm" else "INVERSE"
        if name == "a.dcm":
            image.WindowWidth = 0
        save(image, folder / name)
    cv2.imwrite(str(folder / "alpha.png"), np.zeros((64, 48, 4), np.uint8))
    done = predict(checkpoint, folder, "--no-overlays", cwd=tmp_path)
    manifest = json.loads((tmp_path / "predictions/manifest.json").read_text())
    contradiction = "of MONOCHROME2 with the presentation LUT shape INVERSE, which contradict: "
    unusable = "with a window or VOI LUT that cannot be used, and was left out"
    one_level = "of a single grey level, so that the scores mean nothing"
    assert manifest["notes on images"] == {
        contradiction + "read as MONOCHROME2": ["a.dcm", "b.dcm"],
        unusable: ["a.dcm"],
        one_level: ["alpha.png"],
    }
    assert f"note: 2 images {contradiction}read as MONOCHROME2 (see the manifest)" in done.stdout
    assert f"note: 1 image {unusable} (see the manifest)" in done.stdout
    assert f"note: 1 image {one_level} (see the manifest)" in done.stdout
    prediction = pylon.Predictor(checkpoint, "cpu")(folder / "alpha.png")
    assert prediction.notes == (one_level,)

    # check_data.py, too
    names = ["fine.dcm", "a.dcm", "b.dcm", "alpha.png"]
    table = pd.DataFrame({"path": names, "patient_id": range(4), "Mass": [0, 1, 0, 1]})
    table.to_csv(folder / "table.csv", index=False)
    done = run_script("tools/check_data.py", "--table", folder / "table.csv", cwd=tmp_path)
    assert f"a.dcm and 1 more are {contradiction}" in done.stdout
    assert f"a.dcm is {unusable}" in done.stdout
    assert f"alpha.png is {one_level}" in done.stdout


def test_windows_on_the_command_line(checkpoint, images, tmp_path):
    folder = ("--window", "1000.5", "200", "--no-overlays")
    predict(checkpoint, images / "signed", images / "twelve.dcm", *folder, cwd=tmp_path)
    manifest = json.loads((tmp_path / "predictions/manifest.json").read_text())
    assert manifest["pixels"]["windows"] == {"signed": [1000.5, 200], "twelve.dcm": [1000.5, 200]}
    done = predict(checkpoint, images / "signed", "--window", "-600", "0", cwd=tmp_path, code=2)
    assert "--window must be a centre and a width of at least 1, not -600.0 0.0" in sentence_of(
        done
    )


def test_tables_take_dicom(images, checkpoint, tmp_path):
    for name in ("eight.png", "twelve.dcm", "signed", "eight.dcm"):
        shutil.copy(images / name, tmp_path / name)
    names = ["eight.png", "twelve.dcm", "signed", "eight.dcm"]
    table = pd.DataFrame({"path": names, "patient_id": range(4), "Mass": [0, 1, 0, 1]})
    table.to_csv(tmp_path / "table.csv", index=False)
    done = run_script("tools/check_data.py", "--table", tmp_path / "table.csv", cwd=tmp_path)
    assert "signed is lateral by the DICOM files" in done.stdout
