"""The class of an image, for class-conditional priors, as an image classifier of transformers tells it."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from PIL import Image, ImageOps

from .observation import Observation

CLASSIFIER = "microsoft/resnet-50"
"""The one that is downloaded where none is named: ResNet-50 of ImageNet, 102 MB, Apache-2.0."""


class Classifier:
    """A `transformers` image classifier with its preprocessing, on the CPU, so that all devices get the same class.

    Args:
        name: a folder, or the id of a Hub repo, which is downloaded.

    Raises:
        ImportError: without `transformers`.
        OSError: if there is no such folder or repo, or it holds no image classifier in safetensors.
    """

    def __init__(self, name: str | os.PathLike) -> None:
        try:  # by name, or diffusers would tell everybody who loads a repo with this module that they need it
            transformers = import_module("transformers")
        except ImportError:
            raise ImportError(
                "class_labels=\"auto\" needs transformers: pip install 'pipeline-ddrm-jpeg[classes]'"
            ) from None
        no_code = {"trust_remote_code": False}
        try:
            # Without backend="pil" it asks for torchvision.
            self.processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil", **no_code)
            self.model = transformers.AutoModelForImageClassification.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, **no_code
            ).eval()
        except (OSError, ValueError, ImportError) as error:
            raise OSError(
                f"{name} cannot be loaded as an image classifier: {str(error).strip().splitlines()[0]}"
            ) from None
        self.name = str(name)

    @property
    def num_classes(self) -> int:
        return self.model.config.num_labels

    @torch.no_grad()
    def __call__(self, seen: Observation) -> torch.Tensor:
        """The most probable class of each image of an observation as it decodes, `[B]`, int64."""
        inputs = self.processor(images=decoded(seen), return_tensors="pt")
        return self.model(**inputs).logits.argmax(dim=-1)


_load = lru_cache(maxsize=1)(Classifier)


def decoded(seen: Observation) -> list[Image.Image]:
    """The images that a measurement decodes to, RGB, upright."""
    images = []
    for pixels in seen.decoded():
        image = Image.fromarray(pixels)
        image.info.update(seen.info)
        images.append(ImageOps.exif_transpose(image))
    return images


def classifier_for(
    unet: torch.nn.Module, class_labels: Any, name: str | os.PathLike | None = None
) -> Classifier | None:
    """The classifier that names the classes for a prior, where `class_labels` is `"auto"`.

    Args:
        unet: the prior.
        class_labels: as of the pipeline's call.
        name: folder or Hub id of the classifier; `CLASSIFIER` by default. The one loaded last is kept.

    Raises:
        ValueError: for another word than `"auto"`, a classifier that nobody asked for, a prior that knows no classes,
            or another number of them.
        ImportError, OSError: as of `Classifier`.
    """
    if not isinstance(class_labels, str):
        if name is not None:
            raise ValueError('a classifier is given, but class_labels is not "auto"')
        return None
    if class_labels != "auto":
        raise ValueError(f'class_labels is {class_labels!r}; it must be classes, or "auto"')
    classes = unet.config.num_class_embeds
    if classes is None:
        raise ValueError('class_labels is "auto", but this prior is not class-conditional')
    classifier = _load(name or CLASSIFIER)
    if classifier.num_classes != classes:
        raise ValueError(
            f"the classifier {classifier.name} knows {classifier.num_classes} classes, but the prior {classes}; give"
            " one trained with the classes of the prior, in the same order"
        )
    return classifier
