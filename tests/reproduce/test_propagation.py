"""What is fitted to the attention over the whole map is PSSA, and the fit is the best one."""

from dataclasses import replace

import pytest
import torch

from convattn import PSSA
from reproduce import propagation
from reproduce.propagation import CHANNELS, approximated, explained, least_squares


@pytest.fixture(scope="module")
def subject():
    """Few photos, a short training: the identities do not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "IMAGES", {"train": 12, "val": 4})
        patch.setattr(propagation, "STEPS", 8)
        patch.setattr(propagation, "BATCH", 4)
        propagation.subject.cache_clear()
        yield propagation.subject(0)
    propagation.subject.cache_clear()


def of_training(made, subject):
    return (made["train"] - subject.targets["train"]).square().sum().item()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["stacked", "summed"])
def test_the_coefficients_are_those_of_the_operator(kind, subject):
    values = {split: qkv[2] for split, qkv in subject.qkv.items()}
    alone = {split: torch.stack([torch.ones_like(v), v], 2) for split, v in values.items()}
    made, inner, outer = propagation._operator(kind, subject, values, alone)
    lengths = (0, 1, 3, 5) if kind == "summed" else (1, 3, 5)
    layer = PSSA(CHANNELS, CHANNELS, propagation=kind, lengths=lengths)
    layer.projection.weight.copy_(subject.attention.projection.weight)
    layer.weight.copy_(inner.t())
    if outer is not None:
        ours, theirs = (one.neighborhood.offsets for one in (outer, layer.neighbor_sum))
        layer.neighbor_sum.weight.copy_(outer.weight[[ours.index(offset) for offset in theirs]])
    attended = {split: layer(x) for split, x in subject.maps.items()}
    both = {split: torch.cat([alone[split], attended[split][:, :, None]], 2) for split in alone}
    again, found = least_squares(both, subject)
    for split in again:
        torch.testing.assert_close(again[split], made[split], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[:, 2], torch.ones(CHANNELS), rtol=1e-3, atol=1e-3)


def test_more_freedom_is_never_worse_where_it_is_fitted(subject):
    wrong = {
        kind: [of_training(made, subject) for made in approximated(kind, subject)]
        for kind in ("pixel", "static", "stacked", "summed")
    }
    assert wrong["static"][0] < wrong["pixel"][0]
    assert wrong["summed"][0] < wrong["stacked"][0] < wrong["pixel"][0]
    for kind in ("static", "stacked", "summed"):
        assert wrong[kind] == sorted(wrong[kind], reverse=True), kind


def test_what_a_pixel_has_alone_is_found_whole(subject, monkeypatch):
    own = replace(subject, targets={split: 2 * qkv[2] + 1 for split, qkv in subject.qkv.items()})
    monkeypatch.setattr(propagation, "subject", lambda seed: own)
    assert explained("pixel", 0)["one"] == pytest.approx(100, abs=1e-3)
    assert set(explained("stacked", 0)) == {"one", "two", "three"}
