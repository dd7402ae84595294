"""A new degradation, JPEG after downsampling by 2: python examples/new_operator.py examples/cat.jpg large.png

An operator is two methods with `encode(decode(y)) == y`. The result has twice the size of the file, and becomes the
file when it is made small and compressed again.
"""

import sys

import torch.nn.functional as F

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, JPEGFile, JPEGOperator, Operator


class DownsampledJPEG(Operator):
    def __init__(self, file):
        self.jpeg = JPEGOperator.from_file(file)
        self.alignment = tuple(2 * pixels for pixels in self.jpeg.alignment)

    def encode(self, x):
        return self.jpeg.encode(F.avg_pool2d(x, 2))

    def decode(self, y):
        return F.interpolate(self.jpeg.decode(y), scale_factor=2, mode="nearest")


source, target = sys.argv[1:]
file = JPEGFile.open(source)
operator = DownsampledJPEG(file)
start = operator.decode(operator.jpeg.measurement(file))  # what encodes to the coefficients of the file
pipe = DDRMJPEGPipeline.from_embedded()
result = pipe(start, operator=operator, num_inference_steps=12, init_timestep=150, num_samples=2, consistent=True)
result.images[0].crop((0, 0, 2 * file.width, 2 * file.height)).save(target)
print(f"{100 * result.consistency[0]:.1f} % of the file's coefficients kept")
