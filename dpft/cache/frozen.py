"""Which outputs of a model stay the same for the whole training, and the proof that running on them changes nothing.

    method                          recorded                                              a record's share
    the head alone (Classifier)     ``features``: the pooled features                     W numbers
    parts of the last k blocks      the last block that is frozen with all before it      T x W
    a part around the model         the modules that it names in ``reads``                T x W, W over all of them
    parts in encoder and decoder    the same, of each stack with its own tokens           T x W and S x V

An output is frozen if autograd finds no trained parameter behind it and it is the same, bit for bit, after every
trained parameter was moved. It is its record's alone if other examples in the batch, or none, leave it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpft.cache.replay import DECODED, RECORDED, Cut, Point, Replay, first, point_of
from dpft.cache.taps import Taps
from dpft.engine.preflight import perturbed
from dpft.errors import InputError
from dpft.models.classifier import Classifier
from dpft.models.precision import products_in
from dpft.peft.around import Around
from dpft.peft.families import FAMILIES, backbone, blocks_of, model_type
from dpft.per_sample.batches import take
from dpft.per_sample.capture import trainable
from dpft.per_sample.oracle import Loss

FEATURES = "features"
_LEAVE = "leave [cache] out"
# Relative difference allowed between an example's outputs in a batch and alone: rounding in kernels chosen by shape.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


def find(model: nn.Module, loss: Loss, batch: Mapping[str, Tensor], compute: torch.dtype = torch.float32) -> Cut:
    """The cut of an attached ``model``, as late as its trained parameters allow.

    ``batch`` is synthetic, with at least two examples; ``loss`` and ``compute`` are the training's. Raises
    :class:`InputError` where nothing worth keeping is frozen, where dropout is on, and where a run on recorded outputs
    does not give the loss and the gradients of a run of the whole model."""
    if any(module.training for module in model.modules()):
        raise InputError(
            "What a model in training mode computes is not a function of the record alone (dropout), so it can't be "
            f"cached; set model.dropout = false (model.eval()), or {_LEAVE}."
        )
    loss = computed_in(loss, compute)
    found = _cut(model, loss, batch)
    replay = Replay(model, found)
    try:
        _check_examples_apart(replay, loss, batch)
        _check_same(replay, loss, batch)
    finally:
        replay.remove()
    return found


def computed_in(loss: Loss, compute: torch.dtype) -> Loss:
    """``loss`` with the model's products in ``compute``, as training runs it. A context a call: autocast keeps casts of
    parameters until it is left, and these may have moved by the next call."""

    def wrapped(model: nn.Module, batch: Any) -> Tensor:
        with products_in(compute, next(model.parameters()).device):
            return loss(model, batch)

    return wrapped


def _cut(model: nn.Module, loss: Loss, batch: Mapping[str, Tensor]) -> Cut:
    reads, before = list(_reads(model)), _before_the_blocks(model)
    blocks = [name + ".forward" for name in _blocks(model)]
    pooled = [FEATURES] if isinstance(model, Classifier) else []
    frozen, called = _frozen(model, loss, batch, [*dict.fromkeys([*reads, *before, *blocks, *pooled])])
    if pooled and FEATURES in frozen:
        return Cut((frozen[FEATURES],), (), tokens=0)
    if reads:
        if any(place not in frozen for place in (*reads, *blocks)):
            raise _trains_below(model)
        points, rest = [frozen[place] for place in reads], blocks
    else:
        unbroken = [place for place in called if place in blocks]
        leading = unbroken[: next((i for i, place in enumerate(unbroken) if place not in frozen), len(unbroken))]
        if not leading:
            raise _trains_below(model)
        points, rest = [frozen[leading[-1]]], leading[:-1]
    kept = {point.place for point in points}
    skipped = [frozen[place] for place in (*before, *rest) if place in frozen and place not in kept]
    if not {point.stream for point in skipped} <= {point.stream for point in points}:
        raise _needs_more()  # the encoder's output, in a decoder that attends to it
    return Cut(tuple(points), tuple(skipped), _tokens(points, batch, called))


def _frozen(
    model: nn.Module, loss: Loss, batch: Mapping[str, Tensor], places: list[str]
) -> tuple[dict[str, Point], dict[str, Any]]:
    """The points among ``places`` whose output no trained parameter reaches; and all outputs, in the order of calls."""
    decoder = _decoder(model)
    one: dict[str, list[Any]] = {}
    other: dict[str, list[Any]] = {}
    with Taps(model, places) as taps:
        taps.heard = one
        loss(model, batch)
        with perturbed(model):
            taps.heard = other
            loss(model, batch)
    found = {}
    for place, outputs in one.items():
        try:
            values = [first(output) for output in (*outputs, *other.get(place, []))]
        except TypeError:
            continue
        # A module that is called twice has no one output.
        if len(values) == 2 and not values[0].requires_grad and torch.equal(*values):
            of_decoder = decoder is not None and place.startswith(decoder + ".")
            found[place] = point_of(place, outputs[0], DECODED if of_decoder else RECORDED)
    return found, {place: outputs[0] for place, outputs in one.items()}


def _tokens(points: list[Point], batch: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> int | None:
    masks = {RECORDED: batch.get("attention_mask"), DECODED: batch.get("labels")}
    shapes = {(point.stream, tuple(first(outputs[point.place]).shape[:-1])) for point in points}
    streams = [stream for stream, _ in shapes]
    alike = len(set(streams)) == len(streams) and all(len(shape) == 2 for _, shape in shapes)
    if alike and all((mask := masks[stream]) is not None and mask.shape == shape for stream, shape in shapes):
        return None
    if alike and streams == [RECORDED]:
        return int(next(shape for _, shape in shapes)[1])
    raise InputError(
        "The frozen modules' outputs are not one vector a token, of the same tokens in all of them, and only such are "
        f"cached; {_LEAVE}."
    )


def _decoder(model: nn.Module) -> str | None:
    """The name of the decoder that reads an encoder, where the model has both."""
    core = backbone(model)
    if not (hasattr(core, "encoder") and hasattr(core, "decoder")):
        return None
    found: str = next(name for name, module in model.named_modules() if module is core.decoder)
    return found


def _reads(model: nn.Module) -> Iterator[str]:
    """What parts around the model say that they read: names of modules within the module that they stand in."""
    for name, part in model.named_modules():
        if isinstance(part, Around):
            host = name.rpartition(".")[0]
            for inner in getattr(part, "reads", ()):
                yield ".".join([*filter(None, (host, inner)), "forward"])


def _blocks(model: nn.Module) -> list[str]:
    if model_type(model) not in FAMILIES:
        return []
    return [name for stack in blocks_of(model) for name, _ in stack]


def _before_the_blocks(model: nn.Module) -> list[str]:
    """The module whose output the first block gets: not needed either, once a later output is known."""
    family, core = FAMILIES.get(model_type(model)), backbone(model)
    if family is None or not family.embedded:
        return []
    name = next(name for name, module in model.named_modules() if module is core)
    return [".".join([*filter(None, (name, family.embedded)), "forward"])]


def _trains_below(model: nn.Module) -> InputError:
    name = next(iter(trainable(model)), "nothing")
    return InputError(
        f"The method trains {name} below or among the blocks, or this model's blocks are not known: no block's output "
        f"stays the same during training, so there is nothing to cache. Choose head, last-k or lst, or {_LEAVE}."
    )


def _needs_more() -> InputError:
    return InputError(
        "The part of the model that trains needs more of the frozen part than its blocks' outputs (a position bias "
        f"that one block hands to the next, say), so it can't run on a cache; {_LEAVE}."
    )


def _check_examples_apart(replay: Replay, loss: Loss, batch: Mapping[str, Tensor]) -> None:
    """Rows of other examples, or their absence, leave an example's outputs as they were, up to rounding."""
    B = len(next(iter(batch.values())))
    rows = replay.record(loss, batch)
    changed = {name: torch.cat([t[:-1], t[:1]]) for name, t in batch.items()}
    found = [(take(replay.record(loss, changed), slice(B - 1)), take(rows, slice(B - 1)), 0.05)]
    each = [slice(i, i + 1) for i in range(B)]
    found += [(replay.record(loss, take(batch, one)), take(rows, one), 1.0) for one in each]
    tolerance = max(_TOLERANCE.get(point.dtype, 0.05) for point in replay.cut.points)
    for outputs, expected, share in found:
        for stream, truth in expected.items():
            gap = (outputs[stream] - truth).double().norm()
            if not bool(gap <= share * tolerance * truth.double().norm()):
                raise InputError(
                    "The frozen modules compute for an example in a batch what they do not compute for it alone (batch "
                    f"statistics), so their outputs can't be cached; {_LEAVE}."
                )


def _check_same(replay: Replay, loss: Loss, batch: Mapping[str, Tensor]) -> None:
    """Loss and gradients of the whole model and of the one that runs on recorded outputs are equal."""
    model = replay.model
    params = list(trainable(model).values())

    def outcome(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        losses = loss(model, inputs)
        found = torch.autograd.grad(losses.sum(), params, allow_unused=True)
        return [losses.detach(), *(torch.zeros(0) if g is None else g for g in found)]

    with perturbed(model):
        truth = outcome(batch)
        found = _tried(lambda: outcome(replay.batch(batch, replay.record(loss, batch))))
    if found is None or not _equal(found, truth):
        raise _needs_more()


def _tried(run: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """None where the model can't even run on what is recorded."""
    try:
        return run()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None


def _equal(found: list[Tensor], truth: list[Tensor]) -> bool:
    """The same operations on the same numbers; the little room is for devices that add up in any order."""
    overall = torch.stack([t.double().norm() for t in truth]).norm()
    return all(
        a.shape == b.shape and bool((a - b).double().norm() <= 1e-5 * (b.double().norm() + 1e-3 * overall))
        for a, b in zip(found, truth, strict=True)
    )
