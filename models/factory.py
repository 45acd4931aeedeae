"""A network of the user's own: `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from edgecls.models import torchvision_operators  # noqa: F401 (the factory may import torchvision)
from edgecls.models.checkpoint import StateDict
from edgecls.models.head import layers_of_logits
from edgecls.models.preprocess_override import NOTHING_KNOWN, KnownPreprocess
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels


class FactoryModel:
    """Calls the user's factory once, without arguments.

    Its head is taken as it is: the code says what the network looks like. Its weights are the factory's, unless a
    checkpoint replaces them.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._place, _, self._attribute = model.rpartition(":")
        if not self._place or not self._attribute:
            raise InputError(f"'{model}' names no factory: write file.py:factory or package.module:factory.")

    @property
    def name(self) -> str:
        """The factory's name after its file's: `net_make`."""
        stem = Path(self._place).stem if self._place.endswith(".py") else self._place.rpartition(".")[2]
        return f"{stem}_{self._attribute}"

    @property
    def imported_as(self) -> str:
        """What its code is called in `sys.modules`."""
        return f"edgecls_factory_{Path(self._place).stem}" if self._place.endswith(".py") else self._place

    @cached_property
    def _module(self) -> nn.Module:
        with _import_path(Path(self._place).parent if self._place.endswith(".py") else Path.cwd()):
            factory: Any = self._run("importing it", self._import)
            for part in self._attribute.split("."):
                if not hasattr(factory, part):
                    public = [
                        name for name in vars(factory) if not name.startswith("_") and callable(getattr(factory, name))
                    ]
                    raise InputError(
                        f"{self._place} has no '{part}'; it has {', '.join(public[:8]) or 'no functions'}."
                    )
                factory = getattr(factory, part)
            if isinstance(factory, nn.Module) or not callable(factory):
                raise InputError(f"{self._model} is a {type(factory).__name__}, not a function that returns a module.")
            made = self._run("calling it without arguments", factory)
        if not isinstance(made, nn.Module):
            raise InputError(f"{self._model} returned a {type(made).__name__}: it must return a torch.nn.Module.")
        return made

    def _import(self) -> ModuleType:
        if not self._place.endswith(".py"):
            return importlib.import_module(self._place)
        path = Path(self._place).resolve()
        if not path.is_file():
            raise InputError(f"there is no file {self._place} (looked in {path.parent}).")
        name = self.imported_as
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickling look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def _run(self, doing: str, action: Any) -> Any:
        try:
            return action()
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{doing} failed for {self._model}: {type(error).__name__}: {error}. "
                "Run it in Python to see where; it must work without arguments."
            ) from error

    def known_preprocess(self) -> KnownPreprocess:
        """What the module's own `pretrained_cfg` (or `default_cfg`) says, as timm's networks carry it."""
        for attribute in ("pretrained_cfg", "default_cfg"):
            config = getattr(self._module, attribute, None)
            if isinstance(config, Mapping) and {"input_size", "mean", "std", "crop_pct"} <= config.keys():
                from edgecls.models.timm_zoo import preprocess_from_config

                return preprocess_from_config(config, f"{attribute} of {Path(self._model).name}")
        return NOTHING_KNOWN

    def build(self, crop_px: int) -> nn.Module:
        """The factory's module."""
        return self._module

    def trained(self, crop_px: int, *, headless: bool = False) -> tuple[nn.Module, Path | None]:
        """The factory's module: whether it is trained only its author knows."""
        return self._module, None

    def fit_head(self, module: nn.Module, tensors: StateDict) -> str | None:
        """Nothing: the code decides."""
        return None

    def fit_classes(self, module: nn.Module, classes: int) -> None:
        """Nothing: the code decides."""

    def head(self, module: nn.Module, crop_px: int) -> tuple[str, ...]:
        """The layers that make the logits, whatever order the code names them in; none where that cannot be told.

        Raises:
            InputError: The network takes no such pictures, or returns no logits.
        """
        from edgecls.models.open import count_classes

        count_classes(self._model, module.eval(), crop_px)
        return layers_of_logits(module, crop_px)

    def ignores(self, name: str) -> bool:
        """Nothing: the code decides."""
        return False

    def converted(self, module: nn.Module, tensors: StateDict) -> StateDict | None:
        """Nothing: the code decides."""
        return None

    def default_labels(self, classes: int) -> Labels | None:
        """None are known."""
        return None


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Lets the user's code import its neighbours."""
    entry = os.fspath(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
