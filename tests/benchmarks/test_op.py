"""Operator cases: what is measured computes what the reference computes, or is not measured."""

import pytest
import torch

from benchmarks import gate
from benchmarks.backends import FALLBACK, candidates, only
from benchmarks.cases import CASES, OpCase, find_cases
from benchmarks.op import checked, wanted
from benchmarks.problems import BASE, UNFOLD, Exact, Runner, Setting, pose
from benchmarks.record import Check
from benchmarks.rivals import multiplicities
from convattn import ACmix
from convattn.errors import UserError
from convattn.ops import Neighborhood, attend, backends

TINY = ("acmix-16@8", "acmix-8@9-s2", "attend-16@7", "attend-8@9-s2", "san-16@7", "pssa-8@9")


def verdicts(case, mode="forward", extra=None, **options):
    """The subjects of a case that may be timed, and the verdict on all of them."""
    setting = Setting(mode=mode, **options)
    problem = pose(find_cases([case])[0], setting)
    jobs, checks = checked(problem, mode, setting.dtype, problem.makers | (extra or {}))
    assert set(jobs) == {name for name, check in checks.items() if check.state == "right"}
    return jobs, checks


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("case", TINY)
def test_every_subject_is_right_or_absent(case, mode):
    jobs, checks = verdicts(case, mode, batch=2)
    assert "wrong" not in {check.state for check in checks.values()}, checks
    assert {BASE, "eager", UNFOLD} <= set(jobs)
    if case.startswith("attend"):
        off = {name: "; ".join(reasons) for name, reasons in candidates(("attend",)).items() if reasons}
        assert {name: checks[name] for name in off} == {name: Check("absent", None, 1e-4, off[name]) for name in off}


def test_a_subject_that_is_not_there_is_refused():
    problem = pose(OpCase("attend", 8, 7), Setting())
    assert list(wanted(problem, ("eager",))) == [BASE, "eager"]
    with pytest.raises(UserError, match="no subject eagre in this case; it has Conv2d 3x3, "):
        wanted(problem, ("eagre",))


def test_half_precision_is_measured_too():
    _, checks = verdicts("acmix-16@8", dtype=torch.bfloat16)
    assert checks["eager"].state == "right"
    assert checks["eager"].error > 1e-4


class TestTheGate:
    @staticmethod
    def rival(change):
        """Attention with something wrong, made to order."""
        case = OpCase("attend", 8, 7)

        def run(q, k, v):
            return change(attend(q, k, v, case.neighborhood, num_heads=case.heads))

        def exact(q, k, v):
            return attend(q, k, v, case.neighborhood, num_heads=case.heads, backend="eager")

        return lambda: Runner(run, Exact(exact))

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda out: out * 1.01, "output differs from the reference by 1.0e-02"),
            (lambda out: out + torch.nan, "output differs from the reference by inf"),
            (lambda out: out[..., 1:, :], "output differs from the reference by inf"),
        ],
        ids=["a little off", "NaN", "another shape"],
    )
    def test_a_wrong_subject_is_told_and_not_timed(self, change, why):
        jobs, checks = verdicts("attend-8@7", extra={"mine": self.rival(change)})
        assert checks["mine"].state == "wrong"
        assert why in checks["mine"].note
        assert "mine" not in jobs
        assert "eager" in jobs

    def test_a_wrong_gradient_is_found(self):
        class Lying(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                return grad * 1.5

        _, checks = verdicts("attend-8@7", "train", extra={"mine": self.rival(Lying.apply)})
        assert checks["mine"].state == "wrong"
        assert "gradient of input" in checks["mine"].note
        assert checks["mine"].error == pytest.approx(0.5, abs=0.01)

    def test_a_wrong_gradient_of_a_parameter_is_found(self):
        setting, case = Setting(mode="train"), OpCase("acmix", 8, 7)
        problem = pose(case, setting)
        runner = problem.makers["eager"]()
        grad = gate.make_gradient(runner.run(*problem.inputs).detach(), "train")
        reference = gate.Reference(problem.inputs, grad)
        assert gate.check(runner, gate.prepare(runner, problem.inputs, grad), reference, 1e-4).state == "right"
        job, bias = gate.prepare(runner, problem.inputs, grad), runner.parameters["projection.bias"]
        found = job.results() | {"gradient of projection.bias": torch.zeros_like(bias)}
        check = gate.check(runner, gate.Job(job.timed, lambda: found), reference, 1e-4)
        assert check.state == "wrong"
        assert "gradient of projection.bias" in check.note

    def test_what_cannot_run_says_why(self):
        def fails():
            raise ImportError("no such library")

        _, checks = verdicts("attend-8@7", extra={"mine": fails})
        assert (checks["mine"].state, checks["mine"].note) == ("absent", "ImportError: no such library")

    def test_the_interior_is_where_windows_lie_in_the_map(self):
        def at_the_border(out):
            out = out.clone()
            out[..., 0, :] = 7
            return out

        def make(compared):
            wrong = self.rival(at_the_border)()
            return lambda: Runner(wrong.run, wrong.exact, compared=compared)

        _, found = verdicts("attend-8@9", extra={name: make(name) for name in ("everywhere", "interior")})
        assert (found["everywhere"].state, found["interior"].state) == ("wrong", "right")


class TestOneBackend:
    def test_operators_are_held_to_it_and_let_go(self):
        q = torch.randn(1, 4, 5, 5)
        before = backends()
        with only(FALLBACK) as use:
            attend(q, q, q, Neighborhood.window(3))
        assert use.ops == {"attend"}
        assert backends() == before

    def test_layers_do_not_go_round_it(self):
        x = torch.randn(1, 64, 8, 8, requires_grad=True)
        with only(FALLBACK) as use:
            ACmix(64, 64)(x).sum().backward()
        assert use.ops >= {"attend"}
        assert "acmix" not in use.ops

    def test_one_that_serves_nowhere_is_absent(self):
        name = next(
            (name for name, reasons in candidates(("attend",)).items() if not reasons and name != FALLBACK), None
        )
        if name is None:
            pytest.skip("only the fallback runs here")
        with only(name) as use:
            q = torch.randn(1, 4, 5, 5, dtype=torch.float64)
            attend(q, q, q, Neighborhood.window(3))
        if name == "native":
            assert use.ops == set()
            assert "float64" in next(iter(use.refusals))


class TestCases:
    def test_names_find_their_cases(self):
        assert [find_cases([case.name])[0] for case in CASES] == list(CASES)
        assert len({case.name for case in CASES}) == len(CASES)
        assert find_cases(["acmix-64@56", "*"])[1:] == list(CASES[1:])

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("acmix", "no case 'acmix'.*--list"),
            ("conv-64@56", "no case"),
            ("acmix-6@8", "divisible by 4, got 6"),
            ("san-12@8", "divisible by 8, got 12"),
            ("acmix-8@3", "more than 3, got 3"),
            ("pssa-8@8-s2", "pssa has stride 1, got 2"),
        ],
    )
    def test_what_is_no_case_is_refused(self, name, why):
        with pytest.raises(UserError, match=why):
            find_cases([name])

    def test_the_floor_of_a_case_is_what_its_formula_says(self):
        problem = pose(OpCase("acmix", 64, 56), Setting(batch=8))
        pixels = 8 * 56 * 56
        products = 3 * 64 * 64 + 27 * 4 * 64 + 2 * 49 * 64
        assert problem.flops == 2 * products * pixels
        assert problem.bytes == pytest.approx(4 * 2 * 64 * pixels, rel=0.02), "the maps; the parameters are few"
        san = pose(OpCase("san", 64, 56), Setting())
        assert san.bytes == 4 * 56 * 56 * (8 * 49 + 2 * 64)
        assert pose(OpCase("pssa", 64, 56), Setting()).flops == 2 * 3 * 24 * 64 * 56 * 56

    def test_reflected_pixels_are_counted_as_often_as_they_are_read(self):
        nbhd = Neighborhood.window(7, stride=2)
        times = multiplicities(nbhd, 5, 3)
        assert times.sum(1).tolist() == [7, 7, 7]
        q, k, v = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5)
        logits = torch.einsum("bcij,bcyx->bijyx", q, k) / 2
        counts = times[:, None, :, None] * times[None, :, None, :]
        weights = (logits + counts.log()).flatten(3).softmax(-1)
        expected = torch.einsum("bijm,bcm->bcij", weights, v.flatten(2))
        torch.testing.assert_close(attend(q, k, v, nbhd), expected)


@pytest.mark.slow
def test_compiled_forms_are_right():
    _, checks = verdicts("attend-8@8", compiled=True)
    for name in ("compiled", "FlexAttention"):
        assert checks[name].state == "right", checks[name]
