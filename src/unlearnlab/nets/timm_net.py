"""``timm``: a network of the timm library (PyTorch Image Models), by its name there."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from torch import nn

from unlearnlab.nets.module import Remade, said
from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec


@spec("net", "timm")
class TimmNet:
    """A network of the timm library, untrained, by its name there; needs the extra: pip install 'unlearnlab[timm]'.

    It must take images of the data's size: most convolutional nets do, transformers want their own. To set more than the name, use the
    net ``module`` with path = "timm:create_model" and arguments = ["model_name='vit_tiny_patch16_224'", "img_size=32"].
    """

    model: Annotated[str, Setting("name of the network in timm, such as 'resnet18'")]

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        return Remade(f"net 'timm' ({self.model})", Pixels(mean, std, shape[1:]), partial(self._make, shape[0], classes), shape, classes)

    def _make(self, channels: int, classes: int) -> Any:
        timm = _timm()
        if not timm.is_model(self.model):
            close = difflib.get_close_matches(self.model, timm.list_models(), n=3, cutoff=0.5)
            hint = f"; close to it: {', '.join(close)}" if close else "; timm.list_models() names all"
            raise InputError(f"net 'timm': there is no model '{self.model}' in timm {timm.__version__}{hint}")
        try:
            return timm.create_model(self.model, pretrained=False, num_classes=classes, in_chans=channels)
        except Exception as error:  # the code is not ours and may raise anything
            raise InputError(f"net 'timm': cannot make '{self.model}' for {channels} channels and {classes} classes: {said(error)}") from error


def _timm() -> Any:
    """Imported when needed. torchvision, which it imports, raises a RuntimeError where it was built for another torch."""
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(f"net 'timm' needs the timm library: pip install 'unlearnlab[timm]' (importing it fails with {said(error)})") from error
