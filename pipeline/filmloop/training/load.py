"""From a bundle to the network in memory. The caller has verified the bundle; shapes are checked here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from filmloop.bundle import RESULT, WEIGHTS, load_weights, verify_bundle
from filmloop.core.documents import ModelChoice, TrainResult, WeightsRef
from filmloop.core.errors import ConfigError, TrainingError, VerificationError
from filmloop.training.choice import choice_errors
from filmloop_models import catalog


def build_module(choice: ModelChoice) -> nn.Module:
    """A network as the job or the result names it, with fresh weights from torch's generator.

    Raises:
        ConfigError: no such model, or the frame shape or a hyper-parameter does not fit it.
    """
    with choice_errors(choice):
        return catalog.get(choice.name).module(choice.frame_shape, choice.hyper)


def verified_bundle(reference: WeightsRef) -> tuple[Path, TrainResult]:
    """The folder and the result of the bundle that a job names, every byte checked.

    Raises:
        VerificationError: the bundle is damaged, or holds other weights than the job was promised.
    """
    folder = Path(reference.bundle_path)
    result = verify_bundle(folder)
    if result.weights_sha256 != reference.weights_sha256:
        raise VerificationError(
            f"Version {reference.version} in {folder} has other weights than the job names.",
            hint="The folder was replaced; the next cycle fetches it again.",
            ids={"version": reference.version, "path": str(folder)},
        )
    return folder, result


def verified_base(reference: WeightsRef, model: ModelChoice) -> Path:
    """The folder of the bundle to start from, every byte checked, if it holds a network of the same form as `model`.

    Raises:
        VerificationError: the bundle is damaged, or holds other weights than the job was promised.
        TrainingError: it is of another model, frame shape or hyper-parameters.
    """
    folder, result = verified_bundle(reference)
    if result.model != model:
        raise TrainingError(
            f"Version {reference.version} is {result.model.name} {result.model.frame_shape} {result.model.hyper}, "
            f"the job trains {model.name} {model.frame_shape} {model.hyper}.",
            hint="Train a changed model from scratch: set training.warm_start = false for one cycle.",
            ids={"version": reference.version, "path": str(folder)},
        )
    return folder


def load_module(bundle: Path) -> nn.Module:
    """The bundle's network on the CPU, in evaluation mode, with the bundle's weights.

    Digests are not checked here: call `filmloop.bundle.verify_bundle` first.

    Raises:
        VerificationError: the weights are not safetensors, not finite, or not those of the network that the result names.
    """
    result = TrainResult.read(bundle / RESULT)
    try:
        module = build_module(result.model)
    except ConfigError as exc:
        raise VerificationError(
            f"Bundle {bundle} is of a model that is not installed here: {exc.message}",
            hint="Install the package that defines it, at the bundle's code_commit.",
            ids={"path": str(bundle)},
        ) from exc
    put_weights(module, bundle)
    return module.eval()


def put_weights(module: nn.Module, bundle: Path) -> None:
    """Put the bundle's weights into `module`.

    Raises:
        VerificationError: not safetensors, not finite, or names, shapes or types differ from the module's.
    """
    arrays = {name: np.asarray(array) for name, array in load_weights(bundle).items()}
    wanted = module.state_dict()
    if wrong := _differences(wanted, arrays):
        raise VerificationError(
            f"{bundle / WEIGHTS} does not fit the network: {wrong}.",
            hint="It was trained with other code or hyper-parameters; train again without it as the base.",
            ids={"path": str(bundle)},
        )
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


def _differences(wanted: dict[str, torch.Tensor], arrays: dict[str, np.ndarray]) -> str:
    problems = [f"no {name}" for name in sorted(set(wanted) - set(arrays))]
    problems += [f"unknown {name}" for name in sorted(set(arrays) - set(wanted))]
    for name in sorted(set(wanted) & set(arrays)):
        if tuple(wanted[name].shape) != arrays[name].shape:
            problems.append(f"{name} is {arrays[name].shape}, not {tuple(wanted[name].shape)}")
        elif wanted[name].numpy().dtype != arrays[name].dtype:
            problems.append(f"{name} is {arrays[name].dtype}, not {wanted[name].numpy().dtype}")
    return ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
