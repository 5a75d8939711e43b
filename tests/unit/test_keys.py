"""The file of keys: made, read, changed, and what is wrong with it told without what stands in it."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import keys
from app.cli import app
from app.errors import Invalid
from app.keys import Keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def known(file: Path) -> Keys:
    return Keys.parse(keys.read(file), str(file))


def test_a_key_that_was_made_is_found_and_stands_nowhere(file: Path):
    key, text = keys.add(file, "laptop", "tune", "10/s", 5, 0.5)
    assert text.startswith(f"hearth_{key.id}_") and known(file).find(text.encode()) == key
    assert (key.role, key.rate, key.burst, key.share) == ("tune", "10/s", 5, 0.5)
    assert text.rpartition("_")[2] not in file.read_text() and hashlib.sha256(text.encode()).hexdigest() in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), lambda t: t[:-1], lambda t: t + "x", str.upper]
)
def test_what_is_nearly_a_key_is_none(file: Path, change):
    _, text = keys.add(file, "a", "infer")
    assert known(file).find(change(text).encode()) is None


def test_what_is_secret_is_compared_in_constant_time_whether_its_id_is_known_or_not(file: Path, monkeypatch: pytest.MonkeyPatch):
    key, text = keys.add(file, "a", "infer")
    there, compared, at = known(file), list[tuple[bytes, bytes]](), text.index(key.id)
    compare = hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda one, other: (compared.append((one, other)), compare(one, other))[1])
    unknown = text[:at] + ("0" * 8 if key.id != "0" * 8 else "1" * 8) + text[at + 8 :]
    assert [there.find(given.encode()) for given in (text, text[:-1] + "?", unknown)] == [key, None, None]
    assert len(compared) == 3 and all(len(one) == len(other) == 32 for one, other in compared)


def test_the_id_of_one_key_does_not_open_with_the_secret_of_another(file: Path):
    (one, first), (_, second) = keys.add(file, "a", "admin"), keys.add(file, "b", "infer")
    assert known(file).find(f"hearth_{one.id}_{second[16:]}".encode()) is None
    assert known(file).find(first.encode()) == one


def test_each_role_may_do_what_those_before_it_may(file: Path):
    may = {role: [other for other in keys.ROLES if keys.add(file, role + other, role)[0].may(other)] for role in keys.ROLES}
    assert may == {"infer": ["infer"], "tune": ["infer", "tune"], "admin": ["infer", "tune", "admin"]}


def test_a_revoked_key_is_gone_and_the_others_stay(file: Path):
    texts = {name: keys.add(file, name, "infer")[1] for name in ("a", "b", "c")}
    keys.revoke(file, "b")
    keys.revoke(file, known(file).find(texts["c"].encode()).id)  # type: ignore[union-attr]
    assert [name for name, text in texts.items() if known(file).find(text.encode())] == ["a"]
    with pytest.raises(Invalid, match=r"'b'; there are: a$"):
        keys.revoke(file, "b")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "x\n"}, "name"),
        ({"name": "caf\u00e9"}, "name"),
        ({"name": "a"}, "another key of this id or name"),
        ({"name": "a b"}, "name"),
        ({"name": "x", "role": "boss"}, "role"),
        ({"name": "x", "rate": "ten"}, "'ten' is no rate"),
        ({"name": "x", "share": 0.0}, "share"),
        ({"name": "x", "burst": -1}, "burst"),
    ],
)
def test_what_cannot_be_leaves_the_file_as_it_was(file: Path, more, words: str):
    keys.add(file, "a", "infer")
    before = file.read_text()
    with pytest.raises(Invalid, match=words):
        keys.add(file, **({"role": "infer"} | more))
    assert file.read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        *({field: "hearth_secret"} for field in ("sha256", "role", "rate", "created", "share")),
        *({"id": id} for id in ("zz", "00000000\n")),
        {"rate": "Secret-0123456789_abcdef"},  # a piece of one
        {"hearth_secret": "x"},
        {"roll": "x"},
        {"sha256": "0" * 64 + "\n"},
    ],
)
def test_a_broken_line_is_told_by_its_number_without_what_is_secret(file: Path, change: dict[str, str]):
    keys.add(file, "a", "infer")
    line = json.loads(file.read_text()) | {"id": "00000000", "name": "b"} | change
    file.write_text(file.read_text() + "\n" + json.dumps(line) + "\n")
    with pytest.raises(Invalid, match=r"keys.jsonl:3: ") as caught:
        known(file)
    assert "secret" not in str(caught.value).lower() and line["sha256"] not in str(caught.value)


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"x" * (2 << 20), b"[]", b"{"], ids=["bytes", "large", "list", "cut"])
def test_what_is_no_file_of_keys_is_refused(file: Path, raw: bytes):
    file.write_bytes(raw)
    with pytest.raises(Invalid):
        known(file)


def test_a_full_file_is_read_at_once(file: Path):
    """A frontend does nothing else meanwhile."""
    line = json.loads(keys.add(file, "a", "infer") and file.read_text())
    lines = [json.dumps(line | {"id": f"{n:08x}", "name": f"k{n}"}) for n in range(6000)]
    began = time.process_time()
    assert len(Keys.parse("\n".join(lines)).by_id) == 6000
    assert time.process_time() - began < 0.5


def test_a_missing_file_says_how_to_make_it(file: Path):
    with pytest.raises(Invalid, match="hearth keys add"):
        keys.read(file)


def test_two_who_add_at_once_lose_nothing(file: Path):
    threads = [threading.Thread(target=keys.add, args=(file, f"k{number}", "infer")) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(known(file).by_id) == 16


def test_the_commands_show_a_key_once(file: Path, monkeypatch: pytest.MonkeyPatch):
    run = CliRunner()
    assert run.invoke(app, ["keys", "list"]).exit_code == 1, "no HEARTH_KEYS_FILE"
    monkeypatch.setenv("HEARTH_KEYS_FILE", str(file))
    text = run.invoke(app, ["keys", "add", "me", "--role", "admin", "--rate", "5/s", "--share", "0.25"]).stdout.strip()
    assert known(file).find(text.encode())
    listed = run.invoke(app, ["keys", "list"]).stdout
    assert "me" in listed and "5/s" in listed and "25%" in listed
    assert text[16:] not in listed and known(file).by_id[text[7:15]].sha256 not in listed
    assert run.invoke(app, ["keys", "revoke", "me"]).exit_code == 0 and not known(file).by_id
