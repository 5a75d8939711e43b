"""What strangers pack: nothing leaves the folder, nothing grows beyond its limits, and every refusal names the member."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from app.errors import BadInput, HearthError, TooLarge, UnsupportedMedia
from app.tuning.archive import Bounds, is_archive, unpack
from app.tuning.data import strip

Pack = Callable[[dict[str, bytes]], Path]


def a_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def a_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=[a_zip, a_tar])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    return lambda files: request.param(tmp_path / "archive", files)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_files_come_out_as_they_went_in_and_what_systems_add_stays_out(pack: Pack, into: Path):
    files = {"top/cats/a.jpg": b"a" * 3_000_000, "top/dogs/b.jpg": b"b"}
    extras = {"__MACOSX/top/cats/._a.jpg": b"x", "top/.DS_Store": b"x"}
    assert unpack(pack(files | extras), into, Bounds(ratio=1e6)) == 2
    assert {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()} == files
    assert strip(into) == into / "top"


@pytest.mark.parametrize("name", ["a.CSV", "a.tsv", "train-labels-idx1-ubyte.gz", "train-labels-idx1-ubyte"])
def test_a_folder_around_a_table_is_passed(tmp_path: Path, name: str):
    (tmp_path / "data" / "top").mkdir(parents=True)
    (tmp_path / "data" / "top" / name).touch()
    assert strip(tmp_path / "data") == tmp_path / "data" / "top"


@pytest.mark.parametrize("before", [[], ["a/good.txt"]])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_what_a_tar_says_of_its_members_takes_no_memory(tmp_path: Path, into: Path, kind: bytes, before: list[str]):
    header = tarfile.TarInfo("fields")
    header.type, header.size = kind, 1 << 28
    packed = tmp_path / "archive"
    with gzip.open(packed, "wb", 1) as file:
        for name in before:
            file.write(tarfile.TarInfo(name).tobuf())
        file.write(header.tobuf())
        for _ in range(1 << 8):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="name and fields take 268,435,456 bytes in the archive; the limit is 65,536"):
            unpack(packed, into)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def _sparse_of_old(file: IO[bytes]) -> None:
    """GNU tar's first way: after the header, blocks of pieces, each of which says that one more follows."""
    header = tarfile.TarInfo("holes")
    header.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    raw[482] = True
    raw[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(raw))[0]  # type: ignore[attr-defined]
    file.write(raw)
    piece = b"00000000001\0" * 2
    for _ in range(50):
        file.write((piece * 21 + b"\1" + bytes(7)) * 100)


def _sparse_of_pax(file: IO[bytes]) -> None:
    """Its last way: the pieces stand before the member's data, as many lines as there are said to be."""
    header = tarfile.TarInfo("holes")
    header.size, header.pax_headers = 1 << 20, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    file.write(header.tobuf(tarfile.PAX_FORMAT))
    file.write(b"1000000\n" + b"1\n" * (1 << 19))


@pytest.mark.parametrize("sparse", [_sparse_of_old, _sparse_of_pax])
def test_a_map_of_holes_takes_no_memory(tmp_path: Path, into: Path, sparse: Callable[[IO[bytes]], None]):
    with gzip.open(tmp_path / "archive", "wb", 1) as file:
        file.write(tarfile.TarInfo("good.txt").tobuf())
        sparse(file)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"holes is packed as a sparse file; pack it whole \(GNU tar without --sparse\)"):
            unpack(tmp_path / "archive", into)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.REGTYPE])
def test_a_size_below_zero_does_not_lift_the_limits(tmp_path: Path, into: Path, kind: bytes):
    below, zeros = tarfile.TarInfo("below"), tarfile.TarInfo("zeros.txt")
    below.type, below.pax_headers, zeros.size = kind, {"size": "-1000000000000000"}, 4 << 20
    with tarfile.open(tmp_path / "archive", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(below)
        archive.addfile(zeros, io.BytesIO(bytes(zeros.size)))
    with pytest.raises(BadInput, match="below is said to have -1,000,000,000,000,000 bytes"):
        unpack(tmp_path / "archive", into)
    assert not list(into.rglob("*.txt"))


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "C:\\out.txt", "..\\out.txt"])
def test_nothing_points_outside(pack: Pack, into: Path, name: str):
    with pytest.raises(BadInput, match="points outside the archive"):
        unpack(pack({"good.txt": b"x", name: b"x"}), into)
    assert not list(into.parent.glob("out*")) and not list(into.rglob("out*"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/".join(["deep"] * 17) + "/x.jpg", "lies 18 folders deep; the limit is 16"),
        ("a" * 300 + ".jpg", "is a longer name than files may have"),
    ],
)
def test_names_that_no_disk_takes_are_told(pack: Pack, into: Path, name: str, words: str):
    with pytest.raises(BadInput, match=words):
        unpack(pack({"good.txt": b"x", name: b"x"}), into)


def test_links_are_refused(into: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        link = tarfile.TarInfo("passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(BadInput, match="passwd is a link or a device"):
        unpack(tmp_path / "t.tar", into)
    info = zipfile.ZipInfo("shadow")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as zipped:
        zipped.writestr(info, "/etc/shadow")
    with pytest.raises(BadInput, match="shadow is a link"):
        unpack(tmp_path / "z.zip", into)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(files=2, ratio=1e9), "more than 2 files and folders"),
        (Bounds(bytes=1 << 20, ratio=1e9), "more than 0.000976562 GiB"),
        (Bounds(ratio=10), "more than 10 times its size"),
    ],
)
def test_limits_are_named(pack: Pack, into: Path, bounds: Bounds, words: str):
    with pytest.raises(TooLarge, match=words):
        unpack(pack({f"{n}.txt": bytes(2 << 20) for n in range(3)}), into, bounds)


def test_all_faults_are_told_at_once_up_to_a_bound(pack: Pack, into: Path):
    names = ["../a.txt", "b.txt", "/c.txt", "n" * 300, *(f"../{number}.txt" for number in range(30))]
    with pytest.raises(BadInput) as caught:
        unpack(pack(dict.fromkeys(names, b"x")), into)
    told = caught.value.detail.splitlines()
    assert told[0].startswith("../a.txt points outside") and told[1].startswith("/c.txt points outside")
    assert "longer name" in told[2] and len(told) == 21 and told[20] == "and 13 more"


def test_links_and_damage_do_not_hide_each_other(into: Path, tmp_path: Path):
    packed = tmp_path / "z.zip"
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, kind in (
            ("link", stat.S_IFLNK),
            ("torn.txt", stat.S_IFREG),
            ("whole.txt", stat.S_IFREG),
            ("link2", stat.S_IFLNK),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            zipped.writestr(info, f"bytes of {name}")
    packed.write_bytes(packed.read_bytes().replace(b"bytes of torn", b"bytes or torn", 1))
    with pytest.raises(BadInput) as caught:
        unpack(packed, into)
    assert [line.split()[0] for line in caught.value.detail.splitlines()] == ["link", "torn.txt", "link2"]
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("one", "two"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    with pytest.raises(BadInput, match=r"one is a link or a device.*\ntwo is a link or a device"):
        unpack(tmp_path / "t.tar", into)


def test_a_member_that_needs_more_memory_than_there_is_is_told(into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def starved(*_: object) -> None:
        raise MemoryError

    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"a" * 100)
    monkeypatch.setattr(zipfile, "_get_decompressor", starved)
    with pytest.raises(BadInput, match=r"a\.txt is damaged in the archive \(it needs more memory than there is\)"):
        unpack(tmp_path / "packed.zip", into)


def test_what_may_be_bare_lzma_and_asks_for_too_much_memory_is_none(into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def starved(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "packed").write_bytes(b".\xff\xff\xff\xff\x80" + bytes(600))
    monkeypatch.setattr(tarfile, "open", starved)
    assert not is_archive(tmp_path / "packed")
    with pytest.raises(BadInput, match="it needs more memory than there is"):
        unpack(tmp_path / "packed", into)


def test_twice_the_same_name(into: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(BadInput, match=r"a.txt is in the archive twice"):
        unpack(tmp_path / "t.tar", into)


def test_what_is_no_archive_is_told(into: Path, tmp_path: Path):
    (tmp_path / "x").write_bytes(b"\x89PNG and so on" * 100)
    with pytest.raises(UnsupportedMedia, match="neither a zip nor a tar"):
        unpack(tmp_path / "x", into)


@pytest.mark.parametrize("make", [a_zip, a_tar])
def test_a_torn_archive_is_told_wherever_it_is_torn(make: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path):
    import random

    raw = make(tmp_path / "whole", {f"{n}/x.bin": random.Random(n).randbytes(4000) for n in range(4)}).read_bytes()
    for cut in range(0, len(raw) - 1, 977):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (tmp_path / "torn").write_bytes(raw[:cut])
        with pytest.raises(HearthError):
            unpack(tmp_path / "torn", folder)


@pytest.mark.parametrize("make", [a_zip, a_tar])
def test_an_archive_is_told_from_a_table_whole_or_torn(make: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path):
    path = make(tmp_path / "whole", {"a.csv": b"text,label\n"})
    assert is_archive(path)
    (tmp_path / "torn").write_bytes(path.read_bytes()[:40])
    assert is_archive(tmp_path / "torn")
    (tmp_path / "table").write_text("text,label\n")
    assert not is_archive(tmp_path / "table")


def test_a_zip_of_too_many_files_is_refused_before_its_directory_is_in_memory(tmp_path: Path, into: Path):
    """70,000 are more than a plain end record can count: it is a zip64."""
    packed = a_zip(tmp_path / "many", {f"{n}.txt": b"" for n in range(70_000)})
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="more than 69,999 files and folders, the limit; give fewer"):
            unpack(packed, into, Bounds(files=69_999))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(TooLarge, match=r"directory takes [0-9,]+ bytes; the limit is 1,024; give fewer files"):
        unpack(packed, into, Bounds(directory=1024))


@pytest.mark.parametrize("before", [b"", b"a program that unpacks itself"])
def test_entries_are_counted_whatever_the_end_record_says(tmp_path: Path, into: Path, before: bytes):
    packed = a_zip(tmp_path / "lies", {f"{n}.txt": b"x" for n in range(6)})
    raw = packed.read_bytes()
    packed.write_bytes(before + raw[:-14] + (1).to_bytes(2, "little") * 2 + raw[-10:])
    with pytest.raises(TooLarge, match="more than 5 files"):
        unpack(packed, into, Bounds(files=5))
    assert not list(into.iterdir()) and unpack(packed, into, Bounds(files=6)) == 6
