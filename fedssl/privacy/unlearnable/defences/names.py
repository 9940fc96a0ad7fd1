"""Defences by the names that tables and commands know them by."""

from collections.abc import Mapping

from fedssl.checks import one_of
from fedssl.privacy.unlearnable.defences.adversarial import Adversarial
from fedssl.privacy.unlearnable.defences.defence import Defence
from fedssl.privacy.unlearnable.defences.mixing import CutMix, Cutout, Mixup
from fedssl.privacy.unlearnable.defences.pixels import BitDepth, Blur, Grey, Jpeg
from fedssl.privacy.unlearnable.defences.projection import Projection
from fedssl.privacy.unlearnable.defences.shift_flip import ShiftFlip
from fedssl.privacy.unlearnable.defences.strong import Strong, UEraser

NONE = "none"
_DEFENCES: Mapping[str, Defence] = {
    NONE: Defence(),
    "shift_flip": ShiftFlip(),
    "jpeg10": Jpeg(10),
    "jpeg30": Jpeg(30),
    "grey": Grey(),
    "bits2": BitDepth(2),
    "blur": Blur(),
    "cutout": Cutout(),
    "mixup": Mixup(),
    "cutmix": CutMix(),
    "strong": Strong(),
    "ueraser": UEraser(),
    "adversarial": Adversarial(),
    "projection": Projection(),
}
NAMES = tuple(_DEFENCES)


def defence(name: str) -> Defence:
    """Return a defence with its published settings.

    Raises:
        ValueError: There is none of this name.
    """
    one_of(NAMES, defence=name)
    return _DEFENCES[name]
