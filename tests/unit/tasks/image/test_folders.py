"""Pictures as callers send them: what is understood, and everything that is wrong with it, at once."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.card import Card
from app.tasks.image.codec import ImageCodec
from app.tasks.image.folders import check, find, prepare, prepared

CARD = Card(
    name="toy",
    folder=Path("/nowhere"),
    task="image-classification",
    source={"kind": "module", "entry": "Toy"},
    input={"resize": (8, 8), "crop": 8},
    about={"licence": "x"},
)


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def lay(root: Path, **counts: int) -> Path:
    """So many pictures in each folder, all different."""
    for number, (folder, count) in enumerate(counts.items()):
        place = root / folder.replace("__", "/")
        place.mkdir(parents=True)
        for index in range(count):
            (place / f"{index:03}.png").write_bytes(png(number * 100 + index))
    return root


def test_class_folders_are_split_by_class_and_seed(tmp_path: Path):
    root = lay(tmp_path, cats=10, dogs=20)
    found, again, other = (find(root, 0.2, seed) for seed in (1, 1, 2))
    assert found.labels == ["cats", "dogs"] and not found.problems and not found.warnings
    assert found.report()["train"] == {"cats": 8, "dogs": 16} and found.report()["val"] == {"cats": 2, "dogs": 4}
    assert found.val == again.val != other.val
    assert not {path for path, _ in found.val} & {path for path, _ in found.train}


@pytest.mark.parametrize("name", ["val", "valid", "test"])
def test_a_split_of_its_own_is_kept(tmp_path: Path, name: str):
    root = lay(tmp_path, train__cats=3, train__dogs=3, **{f"{name}__cats": 1, f"{name}__dogs": 2})
    assert find(root, 0.5, 0).report()["val"] == {"cats": 1, "dogs": 2}


def test_a_test_part_is_left_alone_where_val_chooses(tmp_path: Path):
    root = lay(tmp_path / "folders", train__a=2, train__b=2, val__a=1, val__b=1, test__a=3, test__b=3)
    found = find(root, 0.5, 0)
    assert found.report()["val"] == {"a": 1, "b": 1} and "test/ is left alone" in found.warnings[0]
    table = lay(tmp_path / "table", all=5)
    rows = [
        "file,label,split",
        "all/000.png,a,",
        "all/001.png,b,train",
        "all/002.png,a,val",
        "all/003.png,b,val",
        "all/004.png,a,test",
    ]
    (table / "labels.csv").write_text("\n".join(rows))
    found = find(table, 0.5, 0)
    assert found.report()["val"] == {"a": 1, "b": 1} and "1 rows of test are left alone" in found.warnings[0]


def test_classes_may_be_called_as_parts_are(tmp_path: Path):
    found = find(lay(tmp_path, test=4, val=4, cats=4), 0.25, 0)
    assert found.labels == ["cats", "test", "val"] and not found.warnings and not found.problems


def test_pictures_and_a_table(tmp_path: Path):
    lay(tmp_path, all=4)
    (tmp_path / "labels.csv").write_text(
        "file,label,split\nall/000.png,a,\nall/001.png,b,train\nall/002.png,a,val\nall/003.png,b,valid\n"
    )
    found = find(tmp_path, 0.5, 0)
    assert found.report()["train"] == {"a": 1, "b": 1} == found.report()["val"]


def tables(root: Path, **rows: str) -> Path:
    for name, numbers in rows.items():
        lines = [f"all/{number:0>3}.png,{'ab'[int(number) % 2]}" for number in numbers.split()]
        (root / f"{name}.csv").write_text("\n".join(["file,label", *lines]))
    return root


def test_several_tables_are_parts_by_their_names(tmp_path: Path):
    root = tables(lay(tmp_path, all=10), train="0 1 2 3", Val="4 5", test="6 7 8")
    found = find(root, 0.5, 0)
    assert not found.problems and found.report()["train"] == {"a": 2, "b": 2} and found.report()["val"] == {"a": 1, "b": 1}
    assert found.warnings == [
        "3 rows of test are left alone: val chooses the best weights",
        "1 pictures have no row and are not used: all/009.png",
    ]
    (root / "Val.csv").unlink()
    assert find(root, 0.5, 0).report()["val"] == {"a": 2, "b": 1}
    tables(root, more="9")
    (problem,) = find(root, 0.5, 0).problems
    assert (problem.where, problem.what) == ("more.csv", "there are several tables, and its name does not say what it is for")


def test_a_table_is_told_line_by_line(tmp_path: Path):
    lay(tmp_path, all=2)
    rows = [
        "file,label,split",
        "all/000.png,a,train",
        "all/009.png,a,train",
        "all/001.png,,",
        "../x.png,b,",
        "all/001.png,b,later",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    told = {problem.where: problem.what for problem in find(tmp_path, 0.5, 0).problems}
    assert told["labels.csv:3"] == "'all/009.png' is not in the archive"
    assert told["labels.csv:4"] == "has no label"
    assert told["labels.csv:5"] == "'../x.png' is not in the archive"
    assert told["labels.csv:6"] == "split 'later' is unknown"
    (tmp_path / "labels.csv").write_text("name,class\nx,y\n")
    assert "name them file, label" in find(tmp_path, 0.5, 0).problems[0].remedy


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path):
    root = lay(tmp_path, cats=3, dogs=1)
    (root / "stray.png").write_bytes(png(1))
    (root / "cats" / "deep").mkdir()
    (root / "cats" / "deep" / "x.png").write_bytes(png(2))
    problems = {problem.where: problem.what for problem in find(root, 0.2, 0).problems}
    assert problems == {
        "stray.png": "lies in no class folder",
        "cats/deep/x.png": "lies in a folder inside a class folder",
        "dogs": "has one picture",
    } or problems.keys() >= {"stray.png", "cats/deep/x.png", "dogs"}
    assert [problem.what for problem in find(lay(tmp_path / "one", cats=3), 0.2, 0).problems] == ["1 classes were found"]


def test_problems_are_bounded_and_the_rest_is_counted(tmp_path: Path):
    root = lay(tmp_path, cats=2, dogs=2)
    for number in range(130):
        (root / f"{number}.png").write_bytes(b"x")
    report = find(root, 0.5, 0).report()
    assert (len(report["problems"]), report["more_problems"]) == (100, 30)


def idx(*shape: int, kind: int = 8) -> bytes:
    values = bytes(number % 200 for number in range(int(np.prod(shape))))
    return gzip.compress(bytes([0, 0, kind, len(shape)]) + np.array(shape, ">i4").tobytes() + values)


def lay_idx(root: Path, **files: bytes) -> Path:
    root.mkdir()
    sizes = {"train_images": (6, 8, 8), "train_labels": (6,), "t10k_images": (3, 8, 8), "t10k_labels": (3,)}
    for name, raw in ({name: idx(*shape) for name, shape in sizes.items()} | files).items():
        part, _, what = name.partition("_")
        if raw:
            (root / f"{part}-{what}-idx{3 if what == 'images' else 1}-ubyte.gz").write_bytes(raw)
    return root


def test_idx_files_are_pictures_like_others(tmp_path: Path):
    into = tmp_path / "into"
    into.mkdir()
    gray = CARD.model_copy(update={"input": {"resize": (8, 8), "crop": 8, "color": "gray"}})
    report = check(lay_idx(tmp_path / "data"), gray, {}, into, validation=0.2, seed=0)
    assert report["problems"] == [] and report["augment"] is False and report["classes"] == ["0", "1", "2", "3", "4", "5"]
    assert report["val"] == {"0": 1, "1": 1, "2": 1, "3": 0, "4": 0, "5": 0}
    (pixels, targets), (held_out, _) = prepared(into)["train"], prepared(into)["val"]
    assert (pixels.shape, held_out.shape, targets.tolist()) == ((6, 8, 8, 1), (3, 8, 8, 1), [0, 1, 2, 3, 4, 5])
    served = ImageCodec(gray, {}, {}).decode((into / "sample.png").read_bytes()).samples[0].arrays["pixels"]
    np.testing.assert_array_equal(served, held_out[0])
    assert check(tmp_path / "data", CARD, {}, into, validation=0.2, seed=0)["problems"] == []
    assert prepared(into)["train"][0].shape == (6, 8, 8, 3), "as the codec makes them for a model of colours"


def test_idx_files_that_were_unpacked_are_read_as_packed_ones(tmp_path: Path):
    root, into = lay_idx(tmp_path / "data"), tmp_path / "into"
    into.mkdir()
    for packed in root.glob("t10k-*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert check(root, CARD, {}, into, validation=0.2, seed=0)["problems"] == []
    assert prepared(into)["val"][0].shape == (3, 8, 8, 3)
    for packed in root.glob("train-*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes())[:-1])
        packed.unlink()
    (root / "t10k-labels-idx1-ubyte").unlink()
    problems = check(root, CARD, {}, into, validation=0.2, seed=0)["problems"]
    assert {problem["where"]: problem["what"] for problem in problems} == {
        "train-images-idx3-ubyte": "holds fewer than the 6 x 8 x 8 bytes that its header says",
        "train-labels-idx1-ubyte": "holds fewer than the 6 bytes that its header says",
        "t10k-labels-idx1-ubyte.gz": "is missing",
    }


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"t10k_labels": b""}, {"t10k-labels-idx1-ubyte.gz": "is missing"}),
        ({"train_images": b"no gzip"}, {"train-images-idx3-ubyte.gz": "is no whole gzip file"}),
        ({"train_images": idx(6, 8, 8)[:-20]}, {"train-images-idx3-ubyte.gz": "is no whole gzip file"}),
        ({"train_images": gzip.compress(b"hello")}, {"train-images-idx3-ubyte.gz": "is no idx file"}),
        (
            {"train_images": gzip.compress(gzip.decompress(idx(6, 8, 8))[:-1])},
            {"train-images-idx3-ubyte.gz": "holds fewer than the 6 x 8 x 8 bytes that its header says"},
        ),
        (
            {"t10k_labels": gzip.compress(gzip.decompress(idx(3)) + b"x")},
            {"t10k-labels-idx1-ubyte.gz": "holds more than the 3 bytes"},
        ),
        (
            {"train_labels": gzip.compress(b"\0\0\x08\x01\x7f\xff\xff\xff")},
            {"train-labels-idx1-ubyte.gz": "its header says 2,147,483,647 bytes"},
        ),
        (
            {"train_labels": idx(6, kind=13), "t10k_images": idx(3)},
            {
                "train-labels-idx1-ubyte.gz": "has values of type 0x0d in 1 dimensions",
                "t10k-images-idx3-ubyte.gz": "has values of type 0x08 in 1 dimensions, not bytes (0x08) in 3",
            },
        ),
        ({"train_labels": idx(5)}, {"train-labels-idx1-ubyte.gz": "5 labels for 6 pictures"}),
        ({"t10k_images": idx(3, 9, 8)}, {"t10k-images-idx3-ubyte.gz": "pictures are 8 x 8 in train and 9 x 8 in val"}),
    ],
)
def test_damaged_idx_files_are_told(tmp_path: Path, files: dict[str, bytes], told: dict[str, str]):
    report = check(lay_idx(tmp_path / "data", **files), CARD, {}, tmp_path, validation=0.2, seed=0)
    found = {problem["where"]: problem["what"] for problem in report["problems"]}
    assert found.keys() == told.keys() and all(found[where].startswith(what) for where, what in told.items()), found


def test_uneven_classes_are_told(tmp_path: Path):
    assert "uneven classes: 40 pictures of 'dogs', 2 of 'cats'" in find(lay(tmp_path, cats=3, dogs=50), 0.2, 0).warnings


def test_pixels_are_kept_as_in_service(tmp_path: Path):
    root, into = lay(tmp_path / "data", cats=5, dogs=5), tmp_path / "into"
    into.mkdir()
    found = find(root, 0.2, 0)
    prepare(found, root, CARD, into)
    assert not found.problems
    (pixels, targets), (held_out, _) = prepared(into)["train"], prepared(into)["val"]
    assert pixels.shape == (8, 8, 8, 3) and pixels.dtype == np.uint8 and held_out.shape == (2, 8, 8, 3)
    assert sorted(targets.tolist()) == [0] * 4 + [1] * 4
    assert {int(picture[0, 0, 0]) // 100 for picture in pixels[targets == 1]} == {1}


def test_unreadable_and_repeated_pictures_are_told(tmp_path: Path):
    root = lay(tmp_path / "data", train__cats=3, train__dogs=3, val__cats=2, val__dogs=2)
    into = tmp_path / "into"
    into.mkdir()
    (root / "train" / "cats" / "bad.png").write_bytes(b"no picture")
    (root / "val" / "cats" / "again.png").write_bytes((root / "train" / "cats" / "000.png").read_bytes())
    (root / "train" / "dogs" / "both.png").write_bytes((root / "train" / "cats" / "001.png").read_bytes())
    found = find(root, 0.2, 0)
    prepare(found, root, CARD, into)
    told = {problem.where: problem.what for problem in found.problems}
    assert told.keys() == {"train/cats/bad.png", "train/dogs/both.png"}
    assert told["train/dogs/both.png"] == "is also filed under 'cats'"
    assert found.warnings == ["1 pictures of val are also in train: what is measured is too kind by their share"]


def test_the_same_picture_again_stays_on_the_side_of_the_first(tmp_path: Path):
    root = lay(tmp_path / "data", cats=10, dogs=10)
    once = find(root, 0.3, 1)
    for path in sorted((root / "cats").iterdir()):
        path.with_name(f"again-{path.name}").write_bytes(path.read_bytes())
    into = tmp_path / "into"
    into.mkdir()
    report = check(root, CARD, {}, into, validation=0.3, seed=1)
    assert report["warnings"] == [] and report["val"] == {"cats": 6, "dogs": 3}
    twice = find(root, 0.3, 1)
    assert {path for path, _ in once.val} == {path for path, _ in twice.val if not path.name.startswith("again")}
    lone = lay(tmp_path / "lone", cats=1, dogs=3)
    (lone / "cats" / "again.png").write_bytes((lone / "cats" / "000.png").read_bytes())
    assert [(problem.where, problem.what) for problem in find(lone, 0.3, 1).problems] == [("cats", "has one picture")]


def test_pictures_that_idx_files_repeat_are_counted(tmp_path: Path):
    report = check(lay_idx(tmp_path / "data"), CARD, {}, tmp_path, validation=0.2, seed=0)
    assert report["warnings"] == ["3 pictures of val are also in train: what is measured is too kind by their share"]


def test_what_is_no_picture_by_its_name_is_passed_over_and_told(tmp_path: Path):
    root = lay(tmp_path, cats=3, dogs=3)
    for name in ("README.txt", "LICENSE", "cats/Thumbs.db", "cats/desktop.ini", "dogs/notes/about.md", "cats/labels.JSON"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    found = find(root, 0.3, 0)
    assert not found.problems and found.labels == ["cats", "dogs"]
    assert found.warnings == ["not read: LICENSE, README.txt, cats/Thumbs.db, cats/desktop.ini, cats/labels.JSON, …"]
    (root / "cats" / "picture").write_bytes(b"x")
    into = tmp_path.with_name("into-other")
    into.mkdir()
    problems = check(root, CARD, {}, into, validation=0.3, seed=0)["problems"]
    assert [problem["where"] for problem in problems] == ["cats/picture"], "what may be a picture is still refused"


def test_a_table_is_found_in_capitals(tmp_path: Path):
    lay(tmp_path, all=4)
    (tmp_path / "LABELS.CSV").write_text("file,label\nall/000.png,a\nall/001.png,b\nall/002.png,a\nall/003.png,b\n")
    found = find(tmp_path, 0.5, 0)
    assert found.labels == ["a", "b"] and not found.problems


def test_idx_files_that_take_too_much_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.tasks.image.idx._MOST", 1 << 9)
    report = check(lay_idx(tmp_path / "data"), CARD, {}, tmp_path, validation=0.2, seed=0)
    (problem,) = report["problems"]
    assert problem["where"] == "t10k-images-idx3-ubyte.gz" and "hold more than 4.76837e-07 GiB, the limit" in problem["what"]
