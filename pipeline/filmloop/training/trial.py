"""Whether a network is what the loop asks of one: tried on two frames, before anything is trained.

What it asks is in docs/howto/add-a-model.md. Without the trial a network of a site's own would fail in the middle of
a step, or after all of them, when its weights are packed.
Shape suffixes: N frames, C channels, E energy bins.
"""

from __future__ import annotations

import torch
from torch import nn

from filmloop.core.documents import ModelChoice
from filmloop.core.errors import ConfigError
from filmloop.training.export import packed_weights

_FRAMES = 2


def try_network(module: nn.Module, choice: ModelChoice) -> None:
    """Run `module` once as the edge would, and pack its weights; it is left as it was.

    Raises:
        ConfigError: it is no module, nothing in it can be trained, it does not give a rate >= 0 for every count, or its
            weights cannot be shipped.
    """
    if not isinstance(module, nn.Module):
        raise _unfit(choice, f"build gave a {type(module).__name__}, not a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise _unfit(choice, "it has no parameter that can be trained")
    if wrong := _wrong_rates(module, choice):
        raise _unfit(choice, wrong)
    packed_weights(module)


def _wrong_rates(module: nn.Module, choice: ModelChoice) -> str:
    """What is wrong with the rates of frames with one count in every bin, or ''."""
    counts_NCE = torch.ones(_FRAMES, *choice.frame_shape)
    was_training = module.training
    try:
        with torch.inference_mode():
            rate_NCE = module.eval()(counts_NCE)
    except Exception as exc:  # it may be anybody's code
        return f"for counts {tuple(counts_NCE.shape)} it raised {type(exc).__name__}: {exc}"
    finally:
        module.train(was_training)
    if not isinstance(rate_NCE, torch.Tensor):
        return f"it gives a {type(rate_NCE).__name__}, not a tensor of rates"
    if rate_NCE.shape != counts_NCE.shape:
        return f"for counts {tuple(counts_NCE.shape)} it gives rates {tuple(rate_NCE.shape)}"
    return "" if bool((rate_NCE >= 0).all()) else "it gives rates that are below 0 or no numbers"


def _unfit(choice: ModelChoice, wrong: str) -> ConfigError:
    return ConfigError(
        f"Model {choice.name!r} cannot be used: {wrong}.",
        hint="docs/howto/add-a-model.md says what the loop asks of a network; `filmloop site check` tries it.",
        ids={"model": choice.name},
    )
