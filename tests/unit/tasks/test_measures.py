"""What classifiers are measured by, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from app.tasks.measures import beside, macro_f1
from app.tuning.job import headline, in_words
from app.tuning.progress import better


def test_every_class_counts_alike_and_those_that_nobody_has_or_says_do_not():
    said, targets = torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 0, 1, 1, 0])
    # Class 0: 2 right of 3 said and 3 there; class 1: 1 of 1 and 2; class 2 is nowhere; class 3: none right.
    assert macro_f1(said, targets) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_the_loss_knows_how_sure_an_answer_is_where_accuracy_does_not():
    targets = torch.tensor([0, 1])
    unsure, sure = (beside(torch.tensor([[logit, 0.0], [0.0, logit]]), targets) for logit in (0.1, 5.0))
    assert unsure["macro_f1"] == sure["macro_f1"] == 1.0
    assert sure["loss"] == pytest.approx(math.log(1 + math.exp(-5)), rel=1e-4)
    assert better(sure, unsure, "loss") and not better(sure, unsure, "macro_f1") and not better(unsure, sure, "loss")
    assert better({"word_error_rate": 0.2, "character_error_rate": 0.1}, {"character_error_rate": 0.2}, "character_error_rate")


def test_a_loss_is_told_as_a_number_and_the_headline_alone_where_one_figure_is_wanted():
    metrics = {"accuracy": 0.9, "loss": 0.25, "macro_f1": 0.85}
    assert in_words(metrics) == "90.00 % accuracy, 0.2500 loss, 85.00 % macro f1"
    assert headline(metrics) == "90.00 % accuracy" and headline({}) == ""
