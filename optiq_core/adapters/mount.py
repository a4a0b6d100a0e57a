"""Several adapters on one model in a notebook: mount them, then choose one per block of code.

::

    mount_adapter_on_model(model, "agent-A", "./adapter_a")
    mount_adapter_on_model(model, "agent-B", "./adapter_b")
    with AdapterActivation("agent-A"):
        text = generate(model, tokenizer, prompt=prompt)

The choice is a context variable: concurrent tasks and threads keep their own.
"""

from __future__ import annotations

import weakref
from contextvars import Token
from pathlib import Path
from types import TracebackType

import mlx.nn as nn

from .bank import ActiveRows, AdapterBank, active, compute_dtype
from .format import read_manifest, validate_against_base
from .tensors import load_tensors

_banks: weakref.WeakValueDictionary[int, AdapterBank] = weakref.WeakValueDictionary()


def bank_of(model: nn.Module) -> AdapterBank:
    """Return the model's adapter bank, made on first use and kept with the model."""
    bank = _banks.get(id(model))
    if bank is None or bank.model is not model:
        bank = AdapterBank(model, compute_dtype(model))
        _banks[id(model)] = bank
        # The bank lives as long as its model does.
        object.__setattr__(model, "_optiq_bank", bank)
    return bank


def mount_adapter_on_model(model: nn.Module, name: str, path: str | Path) -> AdapterBank:
    """Mount an adapter folder on a model under a name; a name that is mounted is replaced.

    Args:
        model: an mlx-lm model, as ``mlx_lm.load`` returns it.
        name: chosen by the caller, used with :class:`AdapterActivation`.
        path: folder in mlx-lm, PEFT or Optiq format.

    Returns:
        The model's bank.

    Raises:
        AdapterError: the folder cannot be served on this model; nothing is mounted then.
    """
    folder = Path(path)
    bank = bank_of(model)
    manifest = read_manifest(folder)
    validate_against_base(manifest, bank.modules)
    tensors = load_tensors(folder, manifest, bank.targets, bank.dtype)
    bank.unload(name)
    bank.load(name, tensors)
    return bank


class AdapterActivation:
    """Run a block of code with a mounted adapter; a name that is not mounted is refused.

    Args:
        name: as given to :func:`mount_adapter_on_model`; None for the bare base.
        model: checks that the name is mounted on it, if given.
    """

    def __init__(self, name: str | None, model: nn.Module | None = None) -> None:
        if name is not None and not any(name in bank for bank in _candidates(model)):
            raise KeyError(f"no adapter named {name!r} is mounted")
        self._name = name
        self._token: Token[ActiveRows | str | None] | None = None

    def __enter__(self) -> AdapterActivation:
        self._token = active.set(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            active.reset(self._token)


def _candidates(model: nn.Module | None) -> list[AdapterBank]:
    return [bank_of(model)] if model is not None else list(_banks.values())
