"""What the report says."""

import logging

import pytest
import torch
from torch import nn

from convattn.layers import ACmix
from convattn.optimize import OptimizeReport, optimize
from convattn.optimize.report import largest_difference
from tests.optimize.networks import norm, optimized, trained


class TestReport:
    def test_reads_as_sentences(self):
        net = trained(nn.Sequential(nn.Conv2d(3, 16, 1), norm(16), ACmix(16, 16), nn.ReLU(), norm(16)))
        _, report = optimized(net, torch.randn(1, 3, 5, 5, dtype=torch.float64))
        first, second, third, fourth = str(report).splitlines()
        assert first == "reparameterized 1 operators (1 grouped)"
        assert second == "folded 1 batch norms, took over 1 ReLUs"
        assert third.startswith("left 1 batch norms, 4 for one: no convolution or operator is right before it")
        assert fourth.startswith("largest output difference: ")

    def test_says_what_was_not_measured(self):
        assert "not measured, pass an example" in str(OptimizeReport())

    def test_is_logged(self, caplog):
        with caplog.at_level(logging.INFO, "convattn.optimize"):
            optimize(nn.Sequential(nn.Conv2d(3, 4, 1), norm(4)))
        assert "folded 1 batch norms" in caplog.text

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ([1.0, -2.0], [1.5, -2.0], (0.5, 0.25)),
            ([float("nan"), 2.0], [float("nan"), 2.0], (0.0, 0.0)),
            ([float("inf"), 2.0], [float("inf"), 1.0], (1.0, 0.5)),
            ([1.0, 2.0], [float("nan"), 2.0], (float("inf"), float("inf"))),
            ([1.0], [1.0, 1.0], (float("inf"), float("inf"))),
            ([], [], (0.0, 0.0)),
        ],
    )
    def test_largest_difference(self, before, after, expected):
        assert largest_difference([torch.tensor(before)], [torch.tensor(after)]) == expected

    def test_a_difference_beyond_rounding_is_told(self):
        class Drifting(nn.Module):
            def __init__(self):
                super().__init__()
                self.calls = 0

            def forward(self, x):
                self.calls += 1
                return x * self.calls

        with pytest.warns(UserWarning, match="differ by 2.0e\\+00 of the largest, rounding explains"):
            optimize(Drifting(), torch.ones(1))
