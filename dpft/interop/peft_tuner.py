"""All of dpft's methods inside HF peft, as one type: ``PeftModel.from_pretrained`` loads what dpft trained.

    config = DPFTConfig(method=dpft.LoRA(rank=4))      or its section, {"name": "lora", "rank": 4}
    model = peft.get_peft_model(model, config)         the same modules as dpft.attach makes

The tuner calls the method's own ``inject``, so the modules, their names and their arithmetic are dpft's. What peft
can't express fails with an error: a second adapter on the same model, and ``low_cpu_mem_usage``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, set_additional_trainable_modules
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.interop.peft_format import PREFIX as KEY_PREFIX
from dpft.interop.peft_format import check, fit, names_to_store
from dpft.interop.register import PEFT_TYPE, PREFIX
from dpft.peft.around import Around
from dpft.peft.inject import replace_module
from dpft.peft.merge import merge as fold
from dpft.peft.method import Method, Wrapper
from dpft.peft.registry import method_from, section_of

if not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):  # older ones have no hooks for saving and loading
    raise ImportError("its tuners do not choose their own tensors")

_SWITCH = f"{PREFIX}switch"


@dataclass
class DPFTConfig(PeftConfig):  # type: ignore[misc]
    """``method``: a dpft method, or its section as a recipe has it. ``modules_to_save``: modules that train in
    full. ``exclude_modules``: modules in which nothing trains. ``seed`` fixes the initial values of what the method
    adds. Raises :class:`InputError` for a method that this dpft does not know."""

    method: Any = None
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if isinstance(self.method, Method):
            self.method = section_of(self.method)
        if not isinstance(self.method, dict):
            raise InputError('Expected method to be a dpft method or its section, such as {"name": "lora", "rank": 4}.')
        method_from(self.method)


class _Switch(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """Without a parameter or a part in the forward pass: where peft looks up whether the adapter is on."""

    adapter_layer_names = ("adapters",)

    def __init__(self, adapter_name: str) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({adapter_name: nn.Identity()})
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []


class DPFTModel(BaseTuner):  # type: ignore[misc]
    """The tuner. ``names`` are the parameters that are saved and loaded, each shared one once."""

    prefix = PREFIX
    tuner_layer_cls = _Switch
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (peft's own declaration)
    uses_shared_state = True  # what several modules share is known to the tuner alone

    names: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    _of_base: bool = False
    _put_aside: tuple[tuple[str, Wrapper], ...] = ()

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Attach the configured method, freeze everything else. One adapter a model."""
        if any(isinstance(m, Wrapper | Around | _Switch) for m in model.modules()):
            raise InputError("This model already carries a dpft method; load each adapter on a fresh copy of the base.")
        config = self.peft_config[adapter_name]
        before = {id(p) for p in model.parameters()}
        declared = method_from(config.method).inject(model, torch.Generator().manual_seed(config.seed))
        if any(p.is_meta for p in declared):
            raise InputError("dpft's methods can't be loaded with low_cpu_mem_usage=True; leave it out.")
        ids = {id(p) for p in declared}
        model.requires_grad_(False)
        trained = {name: p for name, p in model.named_parameters() if id(p) in ids}
        apart = (*_matched(model, config.modules_to_save or []), *(config.exclude_modules or []))
        self.names = tuple(names_to_store(model, trained, apart))
        self.trained = tuple(name for name in trained if name in self.names)
        self._of_base = any(id(trained[name]) in before for name in self.trained)
        model.add_module(_SWITCH, _Switch(adapter_name))
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )
        self._require(not config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)  # peft's own goes past the model's hooks

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._require(not inference_mode)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        self._require(requires_grad)

    def delete_adapter(self, adapter_name: str) -> NoReturn:
        raise InputError("An adapter of dpft can't be deleted from a model; load the base model again.")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> NoReturn:
        raise InputError("An adapter of dpft is merged for good, by merge_and_unload().")

    def _require(self, requires_grad: bool) -> None:
        named = dict(self.model.named_parameters())
        for name in self.trained:
            if name in named:  # not so while the adapter is switched off
                named[name].requires_grad_(requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        """Take the added modules out, or put them in again."""
        if not enabled and self._of_base:
            raise InputError(
                "This method trains the base model's own parameters, so it can't be switched off; "
                "load the base model again."
            )
        super()._enable_adapter_layers(enabled)
        for around in (m for m in self.model.modules() if isinstance(m, Around)):
            around.enabled = enabled
        if enabled:
            for name, wrapper in self._put_aside:
                replace_module(self.model, name, wrapper)
            self._put_aside = ()
        elif not self._put_aside:
            self._put_aside = tuple(
                (name, m) for name, m in self.model.named_modules(remove_duplicate=False) if isinstance(m, Wrapper)
            )
            for name, wrapper in reversed(self._put_aside):  # a wrapper inside another first
                replace_module(self.model, name, wrapper.base_layer)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._enable_adapter_layers(True)
            fold(self.model)
        else:
            self._enable_adapter_layers(False)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, Around):
                parent, _, child = name.rpartition(".")
                module.take_out(self.model.get_submodule(parent), child)
        self.names = self.trained = self._put_aside = ()
        delattr(self.model, _SWITCH)
        unloaded: nn.Module = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        return unloaded

    def _create_and_replace(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("inject_adapter does it")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Nothing: dpft's modules compute in their base layer's number type."""

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        wanted = [KEY_PREFIX + name for name in _tuner(model).names]
        missing = next((key for key in wanted if key not in state_dict), None)
        if missing is not None:
            raise InputError(f"The adapter can't be saved while it is switched off: {missing} is not in the model.")
        return {key: state_dict[key] for key in wanted}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key  # dpft's names hold none

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Nothing to rename; the place to refuse what does not fit."""
        fit(_tuner(model).model, state_dict)
        expected = [KEY_PREFIX + name for name in _tuner(model).names]
        for name, module in model.named_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                expected += [f"{name}.{key}" for key in module.adapter_state_dict_load_map(adapter_name).values()]
        state = model.state_dict()
        check(state_dict, {key: state[key] for key in expected})
        return state_dict


def _tuner(model: nn.Module) -> DPFTModel:
    return next(m for m in model.modules() if isinstance(m, DPFTModel))


def _matched(model: nn.Module, modules_to_save: list[str]) -> list[str]:
    """The modules that peft will keep a copy of: those whose name ends with one of these."""
    return [name for name, _ in model.named_modules() if any(name.endswith(end) for end in modules_to_save)]
