"""Tables of texts as callers send them: what is understood, what is kept, and everything that is wrong, by line and at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from app.card import Card
from app.tasks.base import Files
from app.tasks.text.examples import check_labels, check_pairs, prepared
from app.tasks.text.table import task_of

CARD = Card(
    name="toy",
    folder=Path("/nowhere"),
    task="text-embedding",
    source={"kind": "file"},
    input={"max_tokens": 6},
    about={"licence": "x"},
)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A vocabulary of letters: one token each."""
    vocabulary = {letter: number for number, letter in enumerate("?abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    place = tmp_path / "model"
    place.mkdir()
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 5}))
    return {name: place / name for name in ("tokenizer.json", "config.json")}


class House:
    def __init__(self, tmp_path: Path, files: Files) -> None:
        self.root, self.into, self.files = tmp_path / "data", tmp_path / "into", files
        self.root.mkdir()
        self.into.mkdir()

    def lay(self, **tables: str) -> None:
        for name, text in tables.items():
            (self.root / name.replace("__", ".")).write_text(text, encoding="utf-8")

    def check(self, of: Any = check_labels, validation: float = 0.25, seed: int = 0) -> dict[str, Any]:
        report: dict[str, Any] = of(self.root, CARD, self.files, self.into, validation=validation, seed=seed)
        return report

    def texts(self, part: str) -> list[list[int]]:
        arrays = prepared(self.into)[part]
        return [ids.tolist() for ids in np.split(arrays["ids"], arrays["offsets"][1:-1])]


@pytest.fixture
def house(tmp_path: Path, files: Files) -> House:
    return House(tmp_path, files)


def told(report: dict[str, Any]) -> dict[str, str]:
    return {problem["where"]: problem["what"] for problem in report["problems"]}


LETTERS = "abcdefghijklmnop"


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffText,label\n" + "".join(f'"{letter}, ""b""",{n % 2}\n' for n, letter in enumerate(LETTERS)),
        "label\tsentence\textra\n" + "".join(f'{n % 2}\t{letter} "b\tx\r\n' for n, letter in enumerate(LETTERS)),
        "".join(json.dumps({"text": f"{letter} b", "label": n % 2}) + "\n\n" for n, letter in enumerate(LETTERS)),
    ],
    ids=["csv", "tsv without quotes", "jsonl"],
)
def test_each_kind_of_table_is_known_by_what_it_holds(house: House, table: str):
    house.lay(dataset=table)
    report = house.check()
    assert not report["problems"] and not report["warnings"], report
    assert report["classes"] == ["0", "1"]
    assert report["train"] == {"0": 6, "1": 6} and report["val"] == {"0": 2, "1": 2}
    first = {ids[0] for ids in house.texts("train") + house.texts("val")}
    assert first == set(range(1, 17)) and len(house.texts("val")) == 4
    assert sorted(prepared(house.into)["val"]["targets"]) == [0, 0, 1, 1]
    assert json.loads((house.into / "sample.json").read_text())["inputs"]


def test_the_split_is_seeded_and_equal_texts_stay_on_one_side(house: House):
    rows = [f"{letter},{n % 2}" for n, letter in enumerate(LETTERS)]
    house.lay(all__csv="text,label\n" + "\n".join(rows * 2))
    house.check(seed=1)
    one, train = house.texts("val"), house.texts("train")
    house.check(seed=1)
    assert house.texts("val") == one and not {ids[0] for ids in one} & {ids[0] for ids in train}
    house.check(seed=2)
    assert house.texts("val") != one


def test_parts_by_file_name_and_by_column(house: House):
    house.lay(
        train__tsv="text\tlabel\na\tx\nb\ty\n", dev__tsv="text\tlabel\nc\tx\n", test__tsv="text\tlabel\nd\ty\n", readme__md="hi"
    )
    report = house.check()
    assert report["train"] == {"x": 1, "y": 1} and report["val"] == {"x": 1, "y": 0}
    assert report["warnings"] == ["not read: readme.md", "1 rows of test are left alone: val chooses the best weights"]
    for path in house.root.iterdir():
        path.unlink()
    house.lay(all__csv="text,label,split\na,x,train\nb,y,\nc,x,Test\n")
    report = house.check()
    assert report["train"] == {"x": 1, "y": 1} and report["val"] == {"x": 1, "y": 0}, "test checks where nothing else does"


def test_what_makes_measuring_doubtful_is_told(house: House):
    train = "a,x\n" * 31 + "b,y\na,y\nh i j k l m,y\n"
    house.lay(train__csv="text,label\n" + train, val__csv="text,label\na,x\nc,y\n")
    assert house.check()["warnings"] == [
        "uneven classes: 31 texts of 'x', 3 of 'y'",
        "1 of 2 in val are also in train: what is measured is too kind by their share",
        "1 rows say another label of the same text, such as train.csv:2 and train.csv:34",
        "1 texts have more than 5 tokens, the model's limit: they are cut",
    ]
    assert max(map(len, house.texts("train"))) == 5


def test_all_that_is_wrong_is_told_at_once_by_line(house: House):
    house.root.joinpath("all.csv").write_bytes(
        b'text,label,split\n,x,\n"a\nb",,\nc,x,later\nd,"x\ny",\ne\n"f" g,x,\n\xff,x,\nh,x,\n'
    )
    report = house.check()
    assert told(report) == {
        "all.csv:2": "has no text",
        "all.csv:3": "has no label",
        "all.csv:5": "split 'later' is unknown",
        "all.csv:6": "has a line break in its label",
        "all.csv:8": "has 1 cells, the header has 3",
        "all.csv:9": "is no readable CSV (',' expected after '\"')",
        "all.csv:10": "is not UTF-8",
    }
    assert all(problem["remedy"] for problem in report["problems"])


@pytest.mark.parametrize(
    ("tables", "where", "what"),
    [
        ({}, ".", "no CSV, TSV or JSONL file was found"),
        ({"all__csv": "text,label\n"}, "all.csv", "holds no rows"),
        ({"all__csv": "words,label\na,b\n"}, "all.csv:1", "its columns are: words, label"),
        ({"all__csv": "x" * 140_000 + ",label\na,b\n"}, "all.csv:1", "its columns are: none"),
        ({"all__jsonl": '[{"text": "a"}]'}, "all.jsonl:1", "its columns are: none"),
        ({"all__jsonl": '{"text": "a", "label": 1}\n{"text": "a"\n'}, "all.jsonl:2", "is no JSON"),
        ({"all__jsonl": '{"text": "a", "label": 1}\n[1]\n'}, "all.jsonl:2", "is no JSON object"),
        ({"all__jsonl": '{"text": "a", "label": 1}\n{"text": "a", "label": null}\n'}, "all.jsonl:2", "has no label"),
        ({"all__csv": "text,label\na,x\nb,x\n"}, ".", "all labels are 'x'"),
        ({"all__csv": "text,label\na,x\nb,x\nc,y\n"}, "all.csv:4", "is the only text of its class"),
        ({"train__csv": "text,label\na,x\n", "val__csv": "text,label\na,y\n"}, "y", "has no text to train on"),
        ({"train__csv": "text,label\na,x\n", "other__csv": "text,label\na,y\n"}, "other.csv", "there are several tables"),
        ({"train__csv": "a,label\nx,y\n", "val__csv": "text,label\na,x\nb,y\n"}, "train", "holds no rows"),
    ],
)
def test_what_cannot_be_learnt_from_is_told(house: House, tables: dict[str, str], where: str, what: str):
    house.lay(**tables)
    problems = told(house.check())
    assert where in problems and problems[where].startswith(what), problems


def test_problems_are_bounded(house: House):
    house.lay(all__csv="text,label\n" + ",x\n" * 130)
    report = house.check()
    assert len(report["problems"]) == 100 and report["more_problems"] >= 30


def test_pairs_are_scaled_and_lie_side_by_side(house: House):
    house.lay(
        train__tsv="score\tsentence1\tsentence2\n5.0\ta\tb c\n-5\td\te\n",
        val__tsv="score\tsentence1\tsentence2\n0\tf\tg\n5\th\ti\n",
    )
    report = house.check(check_pairs)
    assert (report["kind"], report["scores"], report["train"], report["val"]) == ("pairs", [-5.0, 5.0], 2, 2)
    assert house.texts("train") == [[1], [2, 3], [4], [5]]
    assert prepared(house.into)["train"]["targets"].tolist() == [1.0, 0.0] and prepared(house.into)["val"]["targets"][0] == 0.5


def test_triplets_need_no_scores(house: House):
    house.lay(dataset="anchor,positive,negative\n" + "".join(f"{letter},b,c\n" for letter in LETTERS))
    report = house.check(check_pairs)
    assert (report["kind"], report["train"], report["val"]) == ("triplets", 12, 4) and not report["problems"]


def test_scores_that_are_none_are_told(house: House):
    house.lay(all__csv="sentence1,sentence2,score\na,b,1\nc,d,high\ne,f,nan\n")
    assert told(house.check(check_pairs)) == {
        "all.csv:3": "its score 'high' is no number",
        "all.csv:4": "its score 'nan' is no number",
    }
    house.lay(all__csv="sentence1,sentence2,score\n" + "".join(f"{letter},b,1\n" for letter in LETTERS))
    assert told(house.check(check_pairs)) == {"val": "has not two different scores"}


@pytest.mark.parametrize(
    ("table", "task"),
    [
        ("sentence\tlabel\n", "text-classification"),
        ('{"anchor": "a", "positive": "b", "negative": "c"}', "text-embedding"),
        ("sentence1,sentence2,score\n", "text-embedding"),
        ("no,such,columns\n", None),
    ],
)
def test_columns_say_what_the_data_is_for(house: House, table: str, task: str | None):
    house.lay(dataset=table)
    assert task_of(house.root) == task
