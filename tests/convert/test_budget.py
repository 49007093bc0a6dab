"""A budget: which layers it takes, and that the network stays within it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
import timm
import torch
from torch import Tensor, nn

from convattn.convert import Budget, ConvertReport, convert, latency
from convattn.convert import budget as budgets
from convattn.convert.budget import _Search
from convattn.convert.latency import Run, in_turns, runner
from convattn.layers import XVolution
from convattn.layers.xvolution import XVolution as Operator


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "LAYER_SECONDS", 0.02)
    monkeypatch.setattr(budgets, "NETWORK_SECONDS", 0.1)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(64, 8, 1), nn.BatchNorm2d(8)
    )


def images() -> Tensor:
    return torch.randn(2, 8, 12, 12)


class TestTheSearch:
    """On latencies that are known: a network takes 10 seconds, and what a layer adds."""

    GAINS = {"a": 100, "b": 90, "c": 50, "d": 10}  # noqa: RUF012
    EXTRA = {"a": 1.0, "b": 0.5, "c": 0.1, "d": -0.2}  # noqa: RUF012

    def run(self, ratio: float, scale: float = 1.0) -> tuple[set[str], float, list[set[str]]]:
        tried = []

        def measure(names: Iterable[str]) -> float:
            tried.append(set(names))
            return 1 + scale * sum(self.EXTRA[name] for name in names) / 10

        names, measured = _Search(Budget(ratio), self.GAINS, self.EXTRA).run(10.0, measure)
        return set(names), measured, tried

    def test_what_gains_most_for_its_time_comes_first(self) -> None:
        assert _Search(Budget(1.1), self.GAINS, self.EXTRA).ranked == ["d", "c", "b", "a"]

    @pytest.mark.parametrize(
        ("ratio", "names"), [(2.0, "abcd"), (1.15, "abcd"), (1.1, "bcd"), (1.04, "bcd"), (1.0, "cd"), (0.98, "d")]
    )
    def test_the_budget_is_filled(self, ratio: float, names: str) -> None:
        found, measured, _ = self.run(ratio)
        assert found == set(names)
        assert measured <= ratio

    @pytest.mark.parametrize(("ratio", "scale", "names"), [(1.1, 3.0, "cd"), (1.06, 0.4, "abcd"), (1.05, 3.0, "cd")])
    def test_layers_are_dropped_and_added_by_what_the_network_takes(
        self, ratio: float, scale: float, names: str
    ) -> None:
        found, measured, tried = self.run(ratio, scale)
        assert found == set(names)
        assert measured <= ratio
        assert len(tried) <= budgets.TRIES + 2

    def test_a_set_that_was_measured_too_fast_once_does_not_win(self) -> None:
        measured = {("a", "b"): iter([1.04, 1.15]), ("a",): iter([1.08, 1.09])}
        search = _Search(Budget(1.1), {"a": 1, "b": 1}, {"a": 0.1, "b": 9.0})
        search.tried = {("a", "b"): next(measured["a", "b"])}
        names, ratio = search.run(10.0, lambda names: next(measured[tuple(names)]))
        assert (names, ratio) == (("a",), 1.09)

    def test_a_budget_that_nothing_fits_says_what_would_do(self) -> None:
        search = _Search(Budget(1.01), {"a": 1}, {"a": 1.0})
        with pytest.raises(ValueError, match=r"no layer fits a budget of 1\.01: with a alone .* 1\.10 times as long"):
            search.run(10.0, lambda names: 1.1)


class TestConvert:
    def test_a_wide_budget_takes_all(self) -> None:
        reports: list[ConvertReport] = []
        net, x = small().eval(), images()
        converted = convert(net, "xvolution", example=x, budget=1000.0, report=reports.append)
        assert [type(converted[place]) for place in (0, 2)] == [XVolution, XVolution]
        torch.testing.assert_close(converted(x), net(x))
        (report,) = reports
        assert report.latency_ms is not None
        assert all(layer.latency_ms is not None and min(layer.latency_ms) > 0 for layer in report.replaced)
        assert re.search(r"\nlatency: [\d.]+ times that of the network as it came", str(report))

    def test_layers_over_the_budget_stay_with_the_reason(self) -> None:
        def cost(conv: nn.Conv2d) -> nn.Module:
            repeats = 1 if conv.out_channels == 64 else 300
            return nn.Sequential(conv, *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(repeats - 1)))

        report = convert(small().eval(), cost, example=images(), budget=2.0, dry_run=True)
        assert [layer.name for layer in report.replaced] == ["2"]
        (left,) = report.skipped
        assert (left.name, left.reason) == ("0", "over the latency budget")
        assert left.latency_ms is not None
        assert left.latency_ms[1] > 10 * left.latency_ms[0]
        assert "left 0: over the latency budget" in str(report)

    def test_the_network_and_the_random_numbers_stay_as_they_are(self) -> None:
        net, x = small().train(), images()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        convert(net, "acmix", example=x, budget=1000.0, dry_run=True)
        assert torch.equal(torch.rand(1), expected)
        assert net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_a_layer_that_the_example_does_not_reach_stays(self) -> None:
        net = small().eval()
        net.spare = nn.Conv2d(8, 8, 3, padding=1)
        net.forward = lambda x: nn.Sequential.forward(net[:4], x)  # type: ignore[method-assign]
        report = convert(net, "xvolution", example=images(), budget=1000.0, dry_run=True)
        assert {layer.name: layer.reason for layer in report.skipped} == {"spare": "the example does not reach it"}

    def test_in_onnxruntime(self) -> None:
        pytest.importorskip("onnxruntime")
        budget = Budget(1000.0, runtime="onnxruntime")
        report = convert(small().eval(), "xvolution", example=images(), budget=budget, dry_run=True)
        assert [layer.name for layer in report.replaced] == ["0", "2"]

    @pytest.mark.parametrize(
        ("budget", "message"),
        [
            (0.0, "a budget is a ratio of latencies such as 1.1, for 10 % more, got 0.0"),
            ("10%", "a budget is a ratio of latencies such as 1.1"),
            (1.1, "a budget needs an example: pass an image batch"),
        ],
    )
    def test_what_is_no_budget_is_answered(self, budget: object, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            convert(small(), "xvolution", budget=budget)  # type: ignore[call-overload]

    def test_an_unknown_runtime_is_answered(self) -> None:
        with pytest.raises(ValueError, match="runtime must be one of"):
            Budget(1.1, runtime="tensorrt")  # type: ignore[arg-type]


def test_the_attention_of_a_fresh_x_volution_counts() -> None:
    """Its inference form leaves it out, until it is trained."""
    layer, x = Operator.around(nn.Conv2d(8, 8, 3, padding=1)), images()
    seen = []
    layer.attention.register_forward_hook(lambda *_: seen.append(1))
    run = runner(layer, x, "pytorch")
    seen.clear()
    run()
    assert not layer.attention_norm.weight.any()
    parameters = {id(parameter) for parameter in layer.parameters()}
    fast = run.__closure__[0].cell_contents  # type: ignore[attr-defined]
    assert fast.reparameterized.attention is not None
    assert not parameters & {id(parameter) for parameter in fast.parameters()}


def test_a_ratio_is_the_median_over_copies_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy in five that lies badly, or well, decides nothing."""
    times, made = iter([1.0, 1.3, 0.7, 1.1, 1.05]), []

    def placed(runs: list[Run], seconds: float) -> list[float]:
        made.extend(runs)
        return [2.0, 2.0 * next(times)]

    monkeypatch.setattr(latency, "in_turns", placed)
    net = nn.Conv2d(3, 4, 3)
    assert latency.latency_ratio((net, net), torch.randn(1, 3, 8, 8), "pytorch", 0.0) == 1.05
    assert len({id(run) for run in made}) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenetv3_large_100"])
def test_networks_of_timm_stay_within_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loosely, as other programs run beside tests; benchmarks/budget.py measures again in a fresh process."""
    monkeypatch.setattr(budgets, "NETWORK_SECONDS", 2.0)
    torch.manual_seed(0)
    net, x = timm.create_model(name).eval(), torch.randn(1, 3, 128, 128)
    converted = convert(net, "xvolution", example=x, budget=1.3)
    pair = in_turns([runner(net, x, "pytorch"), runner(converted, x, "pytorch")], seconds=3.0)
    assert pair[1] < 1.6 * pair[0]
