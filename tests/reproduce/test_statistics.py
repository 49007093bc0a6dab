"""Paired statistics against scipy's own, and where they have nothing to say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reproduce.statistics import deviation, holm, paired

VALUES = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8)


@settings(deadline=None)
@given(VALUES)
def test_gains_are_scipys(pairs):
    ours, theirs = [first for first, _ in pairs], [second for _, second in pairs]
    found, differences = paired(ours, theirs), [first - second for first, second in pairs]
    assert found.mean == pytest.approx(sum(differences) / len(differences), abs=1e-9)
    if found.t_test is not None:
        assert found.t_test == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, nan_ok=True)
    if any(differences):
        assert found.wilcoxon == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_five_seeds():
    ours, theirs = [98.1, 97.9, 98.4, 98.0, 98.3], [97.5, 97.6, 97.2, 97.9, 97.4]
    found = paired(ours, theirs)
    assert found.mean == pytest.approx(0.62)
    assert found.t_test == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert found.wilcoxon == pytest.approx(0.0625), "the least that five pairs can give"
    half = stats.t.ppf(0.975, 4) * stats.sem([first - second for first, second in zip(ours, theirs, strict=True)])
    assert found.interval == pytest.approx((0.62 - half, 0.62 + half))


def test_nothing_to_test():
    assert paired([1.0], [0.5]).t_test is None
    assert paired([1.0], [0.5]).interval is None
    assert holm([]) == []
    assert paired([1.0, 2.0], [1.0, 2.0]).wilcoxon is None
    assert paired([2.0, 3.0], [1.0, 2.0]).t_test is None, "differences without any spread"
    assert deviation([1.0]) is None
    with pytest.raises(ValueError, match="two lists of one length, got 1 and 2"):
        paired([1.0], [1.0, 2.0])


def test_holms_correction_is_that_of_his_paper():
    """The least p by how many there are, the next by one less, and none below the one before it."""
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_corrected_p_is_between_its_own_and_bonferronis_and_keeps_the_order(chances):
    found = holm(chances)
    for p, corrected in zip(chances, found, strict=True):
        assert p <= corrected <= min(1.0, len(chances) * p)
    assert [found[place] for place in sorted(range(len(chances)), key=chances.__getitem__)] == sorted(found)
