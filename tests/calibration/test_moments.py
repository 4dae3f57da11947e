"""Moments and the least squares from them agree with the same on all values at once."""

import itertools

import pytest
import torch
from networks import make_clip

from vared2_fx.calibration.kept import choose_kept, explained
from vared2_fx.calibration.moments import ChannelMoments, FrameFits, LinearFits
from vared2_fx.layers import FrameRebuild, computed_frames


def test_covariance_of_batches_is_that_of_all_values():
    batches = [make_clip(n, 5, t, 4, 3, seed=n) + 3 for n, t in ((2, 4), (1, 6), (3, 1))]
    moments = ChannelMoments()
    for batch in batches:
        moments.add(batch)
    rows = torch.cat([batch.movedim(1, 0).flatten(1) for batch in batches], dim=1).double()
    torch.testing.assert_close(moments.mean, rows.mean(1))
    torch.testing.assert_close(moments.covariance, rows.cov(correction=0))


def test_a_constant_channel_has_no_variance_at_all():
    maps = make_clip(2, 3, 4, 4, 4)
    maps[:, 1] = 0.1
    moments = ChannelMoments()
    moments.add(maps)
    assert not moments.covariance[1].any()
    assert moments.covariance[0, 0] > 0


def test_fits_are_least_squares():
    x, noise = make_clip(3, 2, 500), make_clip(3, 500, seed=1)
    y = 2 * x[:, 0] - x[:, 1] + 5 + noise
    fits = LinearFits()
    fits.add(x[:, :, :200], y[:, :200])
    fits.add(x[:, :, 200:], y[:, 200:])
    factors, offsets = fits.solve(torch.zeros(3, 2), ridge=0.0)
    table = torch.cat([x, torch.ones(3, 1, 500)], dim=1).double().transpose(1, 2)
    expected = torch.linalg.lstsq(table, y.double()[..., None]).solution[..., 0]
    torch.testing.assert_close(torch.cat([factors, offsets[:, None]], dim=1), expected)
    left = (table @ expected[..., None])[..., 0] - y.double()
    torch.testing.assert_close(fits.error(factors, offsets), left.square().mean(1))
    torch.testing.assert_close(fits.error(factors, offsets + 1), left.square().mean(1) + 1)


def test_ridge_draws_to_the_start_and_constants_stay_there():
    x = make_clip(2, 1, 400)
    x[1] = 3.0
    fits = LinearFits()
    fits.add(x, 2 * x[:, 0])
    factors, offsets = fits.solve(torch.ones(2, 1), ridge=1.0)
    torch.testing.assert_close(factors[:, 0], torch.tensor([1.5, 1.0]).double(), rtol=1e-6, atol=0)
    assert offsets[1] == pytest.approx(3.0), "the mean is right whatever the factor"


@pytest.mark.parametrize("kind", ["repeat", "interpolate"])
@pytest.mark.parametrize(("stride", "frames"), [(2, 8), (2, 7), (4, 8), (3, 5), (4, 2)])
def test_frame_fits_read_the_frames_that_the_rebuild_reads(kind, stride, frames):
    """What a rebuild with known values makes, its fits find again without an error."""
    rebuild = FrameRebuild(3, stride, kind)
    with torch.no_grad():
        for seed, parameter in enumerate(rebuild.parameters()):
            parameter.copy_(make_clip(*parameter.shape, seed=seed))
        computed = make_clip(4, 3, len(computed_frames(frames, stride)), 5, 5, seed=9)
        full = rebuild(computed, frames)
    fits = FrameFits(stride, both=kind == "interpolate")
    fits.add(computed, full)
    own = rebuild.scale if rebuild.next_scale is None else torch.stack([rebuild.scale, rebuild.next_scale], dim=2)
    met = [(p, phase) for p, phase in enumerate(fits.phases) if phase.count]
    assert met
    for place, phase in met:
        error = phase.error(own[place].detach().view(3, -1), rebuild.bias[place].detach())
        assert (error < 1e-10 * phase.variance).all()


def covariance_of(*maps: torch.Tensor) -> torch.Tensor:
    return torch.stack([values.flatten() for values in maps]).double().cov(correction=0)


def test_kept_channels_are_those_that_predict_the_others():
    a, b, c, d = make_clip(4, 1000)
    covariance = covariance_of(a + d, 3 * a, -3 * b, b + c, a - d)
    gain = explained(covariance)
    assert choose_kept(gain, 2).tolist() == [1, 2], "the more useful first"
    weighed = gain * torch.tensor([1, 1, 0, 0, 1.0])
    assert choose_kept(weighed, 1).item() == 1


def test_greedy_is_near_the_best_of_all_choices():
    mixed = make_clip(8, 4) @ make_clip(4, 300, seed=1) + 0.3 * make_clip(8, 300, seed=2)
    gain = explained(mixed.double().cov())
    chosen = gain[choose_kept(gain, 3)].amax(0).sum()
    totals = [gain[list(kept)].amax(0).sum() for kept in itertools.combinations(range(8), 3)]
    assert min(totals) < 0.8 * max(totals), "it matters"
    assert chosen >= 0.95 * max(totals)
