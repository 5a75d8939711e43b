"""An archive that a stranger sent → a folder. Nothing leaves that folder, and no archive grows beyond its limits."""

from __future__ import annotations

import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from app.errors import BadInput, TooLarge, UnsupportedMedia

_CHUNK = 1 << 20
_TOLD = 20  # faults; the others are counted
_TOLD_CHARACTERS = 400  # of each: names may be long
_DEEPEST = 16  # folders
_FIELDS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FIELDS_BYTES = 1 << 16
_PACKED = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # zip, gzip, bzip2, xz
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others zipfile unpacks a megabyte at a time, whatever that becomes
_HEAD_BYTES = 1 << 12  # with a long name, and the end of the one before
_ENTRY_BYTES = 46  # of a zip's directory, before name, further fields and comment,
_ENTRY_LENGTHS = (28, 30, 32)  # whose lengths stand here (APPNOTE 4.3.12)
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    IndexError,  # zipfile asks for the last letter of a name that has none
    MemoryError,  # LZMA's dictionaries are as large as four bytes say
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an archive may unpack to."""

    files: int = 200_000
    bytes: int = 20 << 30
    directory: int = 64 << 20
    """Bytes of a zip's directory, which is read into memory whole: 300 for each of so many files."""
    ratio: float = 200.0
    """Unpacked over packed, once a megabyte is passed: photos stay near 1, text near 10, bombs near 1000."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    is_file: bool
    open: Callable[[], IO[bytes]]
    fault: str = ""
    """Why it cannot be taken."""
    before: int = 0
    """Bytes that were unpacked to come to it: of a packed tar, more than headers take."""
    behind: int = 0
    """Bytes that are unpacked to come past it, though it is not taken."""


def unpack(archive: Path, into: Path, bounds: Bounds | None = None) -> int:
    """Unpack a zip (stored, deflate) or tar (plain, gz, bz2, xz) into an empty folder; returns how many files.

    Folders, and what systems add by themselves (`__MACOSX`, dot files), are passed over. Raises UnsupportedMedia for any other
    file, BadInput naming each member that is damaged, a link or points outside, TooLarge naming the limit.
    """
    bounds = bounds or Bounds()
    budget = _Budget(bounds, archive.stat().st_size)
    seen = files = 0
    faults = _Faults()
    try:
        with _members(archive, bounds) as members:
            for member in members:
                seen += 1
                budget.spend(member.before)
                if seen > bounds.files:
                    raise _too_many(bounds)
                try:
                    files += _take(member, into, budget)
                except BadInput as error:
                    faults.note(error)
                    budget.spend(member.behind)
    except BadInput as error:  # where the archive itself ends to be one
        faults.note(error)
    faults.tell()
    return files


def _take(member: _Member, into: Path, budget: _Budget) -> bool:
    """Unpack it; False if it is passed over. Raises BadInput."""
    if member.fault:
        raise BadInput(member.fault)
    parts = _parts(member.name)
    if not member.is_file or not parts:
        budget.spend(member.size)
        return False
    target = into.joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("xb") as sink:
            while chunk := source.read(_CHUNK):
                budget.spend(len(chunk))
                sink.write(chunk)
    except FileExistsError as error:
        raise BadInput(f"{member.name} is in the archive twice") from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise BadInput(f"{member.name} is both a file and a folder in the archive") from error
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise BadInput(f"{member.name[:80]}… is a longer name than files may have; pack it with shorter ones") from error
        if _is_of_the_disk(error):
            raise
        raise BadInput(f"{member.name} is damaged in the archive ({_why(error)}); pack it again") from error
    return True


def _is_of_the_disk(error: Exception) -> bool:
    """Damage is told as an OSError, too: by gzip and bz2 without a number, by seeking to before the beginning."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _why(error: Exception) -> str:
    return str(error) or ("it needs more memory than there is" if isinstance(error, MemoryError) else type(error).__name__)


def is_archive(path: Path) -> bool:
    """A zip or a tar, whatever its name is; or a piece of one, which `unpack` refuses."""
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(_PACKED) or zipfile.is_zipfile(path) or _is_tar(path)
    except MemoryError:  # what may be bare LZMA is tried as such, and its dictionary is as large as four bytes say
        return False


def _too_many(bounds: Bounds) -> TooLarge:
    return TooLarge(f"the archive holds more than {bounds.files:,} files and folders, the limit; give fewer")


@dataclass(slots=True)
class _Faults:
    """What is wrong with members, up to a bound: there may be many, with long names."""

    told: list[str] = field(default_factory=list)
    untold: int = 0

    def note(self, error: BadInput) -> None:
        if len(self.told) < _TOLD:
            self.told.append(error.detail[:_TOLD_CHARACTERS])
        else:
            self.untold += 1

    def tell(self) -> None:
        """Raise BadInput if there are any."""
        if self.told:
            raise BadInput("\n".join([*self.told, *([f"and {self.untold} more"] if self.untold else [])]))


@dataclass(slots=True)
class _Budget:
    """How large an archive of `packed` bytes may become."""

    bounds: Bounds
    packed: int
    size: int = 0

    def spend(self, size: int) -> None:
        """Raise TooLarge if it is too much."""
        self.size += size
        if self.size > self.bounds.bytes:
            raise TooLarge(f"the archive unpacks to more than {self.bounds.bytes / 2**30:g} GiB, the limit")
        if self.size > max(1 << 20, self.bounds.ratio * self.packed):
            raise TooLarge(f"the archive unpacks to more than {self.bounds.ratio:g} times its size, the limit")


def _parts(name: str) -> tuple[str, ...]:
    """Of a member's path; empty for what is passed over."""
    path = PurePosixPath(name.replace("\\", "/"))
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the name {name.encode('utf-8', 'replace').decode()} is not UTF-8; pack it again with such names"
        ) from error
    if len(path.parts) > _DEEPEST:
        raise BadInput(f"{name[:80]}… lies {len(path.parts)} folders deep; the limit is {_DEEPEST}")
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise BadInput(f"{name} points outside the archive; pack it with plain relative names")
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return ()
    return path.parts


@contextmanager
def _members(archive: Path, bounds: Bounds) -> Iterator[Iterator[_Member]]:
    try:
        if zipfile.is_zipfile(archive):
            _check_directory(archive, bounds)
            with zipfile.ZipFile(archive) as opened:
                yield _of_zip(opened)
        elif _is_tar(archive):
            with tarfile.open(archive, tarinfo=_Header) as opened_tar:
                yield _of_tar(opened_tar)
        else:
            raise UnsupportedMedia("the data set is neither a zip nor a tar archive; pack it as one of these")
    except (*_BROKEN, OSError) as error:
        if _is_of_the_disk(error):
            raise
        raise BadInput(f"the archive is damaged ({_why(error)}); pack it again") from error


def _check_directory(archive: Path, bounds: Bounds) -> None:
    """Raise TooLarge before zipfile makes an object of each entry. They are counted: what the end record says may be wrong."""
    with archive.open("rb") as file:
        end: Any = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # as zipfile itself finds it, in a zip64 too
        size, start = end[zipfile._ECD_SIZE], end[zipfile._ECD_LOCATION]  # type: ignore[attr-defined]
        if end[zipfile._ECD_SIGNATURE] == zipfile.stringEndArchive64:  # type: ignore[attr-defined]
            start -= zipfile.sizeEndCentDir64 + zipfile.sizeEndCentDir64Locator  # type: ignore[attr-defined]
        if size > bounds.directory:
            raise TooLarge(f"the archive's directory takes {size:,} bytes; the limit is {bounds.directory:,}; give fewer files")
        file.seek(max(0, start - size))
        for _ in range(bounds.files):
            entry = file.read(_ENTRY_BYTES)
            if not entry.startswith(b"PK\x01\x02") or len(entry) < _ENTRY_BYTES:
                return
            file.seek(sum(int.from_bytes(entry[at : at + 2], "little") for at in _ENTRY_LENGTHS), os.SEEK_CUR)
        if file.read(4) == b"PK\x01\x02":
            raise _too_many(bounds)


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        fault = ""
        if info.flag_bits & 1:
            fault = f"{info.filename} is encrypted; pack it without a password"
        elif info.compress_type not in _BOUNDED:
            how = zipfile.compressor_names.get(info.compress_type, "something else")  # type: ignore[attr-defined]
            fault = f"{info.filename} is packed by {how}; pack it by deflate, as zip does of itself"
        elif stat.S_ISLNK(info.external_attr >> 16):
            fault = f"{info.filename} is a link; pack the file itself"
        opened = partial(archive.open, info)
        yield _Member(info.filename, info.file_size, not info.is_dir(), opened, fault)


class _Header(tarfile.TarInfo):
    """tarfile reads long names, further fields and maps of holes into memory, however large they are said to be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _FIELDS and info.size > _FIELDS_BYTES:
            raise TooLarge(f"a member's name and fields take {info.size:,} bytes in the archive; the limit is {_FIELDS_BYTES:,}")
        return info

    def _proc_sparse(self, *_: Any) -> None:
        raise BadInput(f"{self.name} is packed as a sparse file; pack it whole (GNU tar without --sparse)")

    def _proc_gnusparse_10(self, member: Self, *_: Any) -> None:
        member._proc_sparse()

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


def _is_tar(path: Path) -> bool:
    try:
        tarfile.open(path, tarinfo=_Header).close()
    except tarfile.TarError:
        return False
    return True


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Member]:
    end = 0  # of the member before
    for info in archive:
        if info.size < 0:  # pax fields can say so; what is unpacked is added up
            raise BadInput(f"{info.name} is said to have {info.size:,} bytes; pack it again")
        fault = "" if info.isfile() or info.isdir() else f"{info.name} is a link or a device; pack the file itself"
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        opened: Any = partial(archive.extractfile, info)
        yield _Member(info.name, info.size, info.isfile(), opened, fault, max(0, info.offset_data - end - _HEAD_BYTES), info.size)
        end = info.offset_data + info.size


def remove(folder: Path) -> None:
    """The folder and everything in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
