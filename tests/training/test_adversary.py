import torch

from .toys import ToyDiscriminator, toy_adversary


def audio(*, grad: bool = False) -> torch.Tensor:
    return torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0)).requires_grad_(grad)


def test_generator_side_reaches_the_estimate_but_not_the_discriminator():
    adversary, estimate = toy_adversary(), audio(grad=True)
    losses = adversary.generator_losses(audio(), estimate)
    sum(losses.values()).backward()
    assert set(losses) == {"adversarial", "feature_matching"}
    assert estimate.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())


def test_real_branch_has_no_graph():
    adversary = toy_adversary()
    seen = []
    adversary.discriminator.register_forward_hook(lambda *call: seen.append(call[2][0].logits.requires_grad))
    adversary.generator_losses(audio(), audio(grad=True))
    assert seen == [True, False]


def test_discriminator_side_stops_at_the_estimate():
    adversary, estimate = toy_adversary(), audio(grad=True)
    losses = adversary.discriminator_losses(audio(), estimate)
    losses["discriminator"].backward()
    assert estimate.grad is None
    assert all(p.grad is not None for p in adversary.parameters())
    assert not losses["score_real"].requires_grad


def test_losses_are_float32_in_half_precision():
    adversary = toy_adversary()
    with torch.autocast("cpu", torch.bfloat16):
        assert ToyDiscriminator()(audio())[0].logits.dtype == torch.bfloat16
        losses = adversary.generator_losses(audio(), audio(grad=True)) | adversary.discriminator_losses(
            audio(), audio()
        )
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_scales_are_added_or_averaged():
    """RAVE adds up what its discriminators say, EnCodec takes the mean: both sides of the game, and its scores."""
    added, averaged = toy_adversary(), toy_adversary()
    averaged.load_state_dict(added.state_dict())
    averaged.averaged = True
    both = [game.discriminator_losses(audio(), 0 * audio()) for game in (added, averaged)]
    both[0] |= {"adversarial": added.generator_losses(audio(), audio())["adversarial"]}
    both[1] |= {"adversarial": averaged.generator_losses(audio(), audio())["adversarial"]}
    for name, value in both[0].items():
        torch.testing.assert_close(both[1][name], value / len(ToyDiscriminator().scales), msg=name)
