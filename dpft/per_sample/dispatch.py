"""What happens when a torch function is called with a tracked parameter.

Three ways: by a rule, where a parameter meets the examples; by one copy an example, where it does so in a
function without a rule; plainly, where no example is involved: the outcome is then a shared tensor. What would
carry gradient in any other way raises: silence is how privacy gets lost.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpft.errors import DpftError
from dpft.per_sample.batches import mapped, tensors
from dpft.per_sample.capture import Grads, Tracked, is_tracked, names_of, owner
from dpft.per_sample.memory import out_of_memory
from dpft.per_sample.one_each import one_copy_each
from dpft.per_sample.rules import (
    ELEMENTWISE,
    RULES,
    carries_gradient,
    elementwise,
    fits,
    function_name,
    grads_of,
    no_rule,
)
from dpft.per_sample.shared import Shared, name_for, of_rows, shared
from dpft.per_sample.to_batch import TO_THE_BATCH
from dpft.per_sample.uses import Place

OF_ANOTHERS_TYPE = {Tensor.to, Tensor.type_as}


def apply(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute ``func``. Called with the tracked tensors' own dispatch switched off."""
    if not torch.is_grad_enabled():
        return func(*args, **kwargs)
    if func in RULES and args and _on_examples(func, *args, *kwargs.values()):
        return RULES[func](*args, **kwargs)
    found = tensors((args, kwargs))
    tracked = [t for t in found if is_tracked(t)]
    grads = grads_of(*tracked)
    name = function_name(func)
    if func in OF_ANOTHERS_TYPE and not is_tracked(args[0]):
        return func(*args, **kwargs)  # the parameter gives its number type and nothing else
    place = (name, *names_of(*tracked))
    places = {i: (*place, f"{i}:{t.dim()}") for i, t in enumerate(found) if t.dim() and not is_tracked(t)}
    if grads.uses is None or any(grads.uses.foreign(place) for place in places.values()):
        return _direct(func, mapped(args, grads.leaf), mapped(kwargs, grads.leaf))
    if func in OF_ANOTHERS_TYPE:
        return _shared(func(*args, **kwargs), grads, name, tracked[:1])
    examples = [found[i] for i, place in places.items() if _holds_examples(grads, place, found[i])]
    if examples:
        return _meeting(func, args, kwargs, grads, examples)
    if func in TO_THE_BATCH and (out := TO_THE_BATCH[func](grads, name, *args, **kwargs)) is not None:
        return out
    if any(found[i].requires_grad for i in places):
        # It carries gradient from elsewhere, a mean over the batch say, which a shared tensor would lose.
        raise no_rule(func, args, kwargs)
    before = {id(t) for t in found if t.requires_grad}
    out = func(*args, **kwargs)
    _written(args, before, grads, name, tracked)
    pull_back = None
    if func is F.embedding and isinstance(args[1], Tracked):
        pull_back = of_rows(names_of(args[1])[0], args[0], args[1].shape[0])
    return _shared(out, grads, name, tracked, pull_back)


def _on_examples(func: Any, x: Any, *others: Any) -> bool:
    """Whether this is a layer's call on all examples, with parameters and no other tensor, as was seen before: what
    ``apply`` would come to in three times the time."""
    given = [p for p in others if isinstance(p, Tensor)]
    found = [f for p in given if type(p) is Tracked and (f := owner(p))]
    if type(x) is not Tensor or not found or len(found) < len(given):
        return False
    grads = found[0][0]
    if grads.uses is None or grads.uses.learning:
        return False
    place = (function_name(func), *(name for _, name in found), f"0:{x.dim()}")
    if grads.uses.foreign(place) or not _holds_examples(grads, place, x):
        return False
    return x.shape[0] == grads.examples


def _direct(func: Any, args: Any, kwargs: Any) -> Any:
    """Without knowledge of what all examples share: rules alone."""
    if func in ELEMENTWISE:
        return elementwise(func, *args, **kwargs)
    if func in RULES:
        return RULES[func](*args, **kwargs)
    out = func(*args, **kwargs)
    if carries_gradient(out):
        raise no_rule(func, args, kwargs)
    return out  # a shape, a dtype, a detached copy: nothing to keep apart


def _meeting(func: Any, args: Any, kwargs: Any, grads: Grads, examples: list[Tensor]) -> Any:
    """A function of tracked tensors and of ``examples``, tensors that have the examples first."""
    args, kwargs = mapped(args, grads.leaf), mapped(kwargs, grads.leaf)
    whole = all(t.shape[0] == grads.examples for t in examples)
    try:
        if func is torch.addmm or (whole and func in RULES):
            return RULES[func](*args, **kwargs)
        if whole and func in ELEMENTWISE and fits(*args):
            return elementwise(func, *args, **kwargs)
        return one_copy_each(func, args, kwargs, grads.examples or 0, examples)
    except DpftError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:  # of vmap, or under it
        if out_of_memory(error):
            raise
        raise no_rule(func, args, kwargs) from error


def _holds_examples(grads: Grads, place: Place, t: Tensor) -> bool:
    assert grads.uses is not None  # else the rules alone hold
    if grads.examples is None:
        raise no_rule(f"{place[0]} (on an unknown number of examples)", (), {})
    return grads.uses.holds_examples(place, t.shape[0], grads.examples)


def _shared(out: Any, grads: Grads, name: str, tracked: list[Tensor], pull_back: Any = None) -> Any:
    """``out`` with every tensor in it that carries gradient made a shared one."""
    if not carries_gradient(out):
        return out
    if isinstance(out, (tuple, list)):
        made = [_shared(o, grads, f"{name}[{i}]", tracked) for i, o in enumerate(out)]
        return type(out)(made)
    reach = {n: p for t in tracked for n, p in grads.parameters(t).items()}
    return grads.share(shared(out, name_for(name, names_of(*tracked), reach), reach, pull_back))


def _written(args: Any, before: set[int], grads: Grads, name: str, tracked: list[Tensor]) -> None:
    """A tensor written to in place (``weight[rows] = p``) carries the parameter's gradient from then on."""
    target = args[0] if args and isinstance(args[0], Tensor) else None
    if target is None or isinstance(target, Tracked) or not target.requires_grad:
        return
    reach = {n: p for t in tracked for n, p in grads.parameters(t).items()}
    if isinstance(target, Shared):
        target.reach.update(reach)
    elif id(target) not in before:
        target.__class__ = Shared
        grads.share(shared(target, name_for(name, names_of(*tracked), reach), reach))
