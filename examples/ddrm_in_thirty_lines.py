"""The paper's sampler as one loop: python examples/ddrm_in_thirty_lines.py examples/cat.jpg cat.png

The network guesses the clean image, the file corrects the guess, and noise takes it to the next, lower noise level. The
pipeline with the paper's settings computes the same; it has more: large images, other corrections, many samples.
"""

import sys

import torch
from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, observe

STEPS, START, ETA_B = 20, 300, 0.4  # the paper's; its eta is 1


@torch.no_grad()
def restore(file, unet, generator):
    """The image of a JPEG file, `[1, 3, H, W]` in [-1, 1], by a `UNet2DModel` that predicts noise on DDPM's betas."""
    alphas = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64).float()).cumprod(0)
    seen = observe(file)
    encode, decode, (height, width) = seen.operator.encode, seen.operator.decode, seen.size
    decoded = decode(seen.y)

    timesteps = list(range(0, START, START // STEPS))[::-1]  # 285, 270, ..., 15, 0
    alpha = alphas[timesteps[0]]
    x = alpha.sqrt() * decoded + (1 - alpha).sqrt() * torch.randn(decoded.shape, generator=generator)
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, alpha_next = alphas[t], torch.tensor(1.0) if following is None else alphas[following]
        epsilon = unet(x.to(unet.dtype), t).sample[:, :3].float()
        x0 = (x - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()  # the clean image, as the network guesses it
        corrected = x0 - decode(encode(x0)) + decoded  # agrees with the file
        noise = torch.empty_like(x, memory_format=torch.channels_last).normal_(generator=generator)
        x = alpha_next.sqrt() * torch.lerp(x0, corrected, ETA_B) + (1 - alpha_next).sqrt() * noise
    return x[..., :height, :width].clamp(-1, 1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    image = restore(sys.argv[1], DDRMJPEGPipeline.from_embedded().unet, torch.Generator().manual_seed(0))
    Image.fromarray(((image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(sys.argv[2])
