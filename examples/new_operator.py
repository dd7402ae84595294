"""A new degradation, and one after another: python examples/new_operator.py examples/cat.jpg large.png

An operator is two methods with `encode(decode(y)) == y`; `a @ b` is b and then a. Here a file is taken for that of a
mirrored image of twice its size; made small, mirrored and compressed, the result becomes the file again.
"""

import sys

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, Downsampling, ImageOperator, observe
from pipeline_ddrm_jpeg.formatting import percent


class Mirror(ImageOperator):
    def encode(self, x):
        return x.flip(-1)

    def decode(self, y):
        return y.flip(-1)


if len(sys.argv) != 3:
    sys.exit(__doc__)
source, target = sys.argv[1:]
jpeg = observe(source)
result = DDRMJPEGPipeline.from_embedded()(
    measurement=jpeg.y,
    operator=jpeg.operator @ Mirror() @ Downsampling(2),
    size=(2 * jpeg.size[0], 2 * jpeg.size[1]),
    preset="paper",
    num_inference_steps=12,
    num_samples=2,
    settings={"init_timestep": 150, "consistent": True},
)
result.images[0].save(target)
print(f"{percent(result.consistency[0])} of the coefficients kept")
