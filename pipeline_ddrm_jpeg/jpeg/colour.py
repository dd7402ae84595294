"""Colour spaces of JPEG files: what their components stand for, and how a file says which it has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

Matrix = tuple[tuple[float, ...], ...]

# Luma and chroma of BT.601 as JFIF 1.02 uses them, full range, chroma centred on 0, and the inverse.
JFIF_FORWARD = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
JFIF_INVERSE = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class ColourSpace:
    """What the components of a JPEG file stand for."""

    name: str
    components: tuple[str, ...]
    forward: Matrix
    """RGB of 0..255 -> components, before they are shifted; with four components, the first three of them."""
    inverse: Matrix
    reason: str = field(default="", compare=False)
    """What in the file says so, in words."""

    @property
    def shifts(self) -> tuple[float, ...]:
        """What is taken from each component to centre it on 0 (T.81, A.3.1): nothing of chroma, which is so here."""
        return tuple(0.0 if name in ("Cb", "Cr") else 128.0 for name in self.components)


COLOUR_SPACES = {
    space.name: space
    for space in (
        ColourSpace("L", ("grey",), JFIF_FORWARD[:1], ((1.0,),) * 3),  # its image has three equal channels
        ColourSpace("YCbCr", ("Y", "Cb", "Cr"), JFIF_FORWARD, JFIF_INVERSE),
        ColourSpace("RGB", ("R", "G", "B"), _IDENTITY, _IDENTITY),
        ColourSpace("CMYK", ("C", "M", "Y", "K"), _IDENTITY, _IDENTITY),
        ColourSpace("YCCK", ("Y", "Cb", "Cr", "K"), JFIF_FORWARD, JFIF_INVERSE),
    )
}
CMYK_SPACES = ("CMYK", "YCCK")
# The four-digit rows of the program released with the paper, and its inverse.
RELEASED = replace(
    COLOUR_SPACES["YCbCr"],
    forward=((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813)),
    inverse=(
        (1.0, -3.68199903e-05, 1.40198758),
        (1.0, -0.344113281, -0.714103821),
        (1.0, 1.77197812, -1.34583413e-04),
    ),
)


def colour_space_by(identifiers: bytes, jfif: bool, adobe_transform: int | None) -> ColourSpace:
    """The colour space of a file of one, three or four components, by libjpeg's `default_decompress_parms`, and why."""
    adobe = f"Adobe marker, transform {adobe_transform}"
    if len(identifiers) == 1:
        name, reason = "L", "one component"
    elif len(identifiers) == 4:
        name = "YCCK" if adobe_transform == 2 else "CMYK"
        reason = "four components, no Adobe marker" if adobe_transform is None else adobe
    elif jfif:
        name, reason = "YCbCr", "JFIF marker"
    elif adobe_transform is not None:
        name, reason = "RGB" if adobe_transform == 0 else "YCbCr", adobe
    elif identifiers == b"RGB":
        name, reason = "RGB", "components called R, G and B"
    else:
        name, reason = "YCbCr", "three components, and nothing that says otherwise"
    return replace(COLOUR_SPACES[name], reason=reason)
