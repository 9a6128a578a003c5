import pytest
import torch

from rave_tools.training.latents import analyse, store

from .toys import LATENTS, ToyCodec


def test_axes_are_found_sorted_and_orthogonal():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    scales = torch.tensor([5.0, 3.0, 1.0, 0.1, 0.01, 0.001])
    rows = torch.randn(5000, 6, generator=generator) * scales @ basis + 2
    found = analyse(rows)
    torch.testing.assert_close(found.components @ found.components.T, torch.eye(6), atol=1e-5, rtol=0)
    agreement = (found.components * basis).sum(1).abs()
    assert (agreement > 0.99).all()
    torch.testing.assert_close(found.fidelity, (scales**2).cumsum(0) / (scales**2).sum(), atol=0.02, rtol=0)
    torch.testing.assert_close(found.mean, rows.mean(0))
    assert [found.dimensions(share) for share in (0.5, 0.8, 0.99)] == [1, 2, 3]


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_dimensions_still_give_a_whole_basis(rows):
    found = analyse(torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(found.components @ found.components.T, torch.eye(128), atol=1e-5, rtol=0)
    assert found.fidelity[-1] == pytest.approx(1)
    assert found.dimensions(0.99) <= max(rows, 1)


def test_the_same_latents_give_the_same_axes():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(analyse(rows).components, analyse(rows.flip(0)).components, atol=1e-5, rtol=0)


def test_latents_that_diverged_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        analyse(torch.tensor([[float("nan"), 1.0]]))


def test_projection_on_the_stored_axes_loses_nothing():
    codec, rows = ToyCodec(), torch.randn(40, LATENTS, generator=torch.Generator().manual_seed(3))
    store(analyse(rows), codec)
    shown = (rows - codec.latent_mean) @ codec.latent_pca.T
    torch.testing.assert_close(shown @ codec.latent_pca + codec.latent_mean, rows)
    assert (shown.var(0).diff() <= 1e-5).all()
