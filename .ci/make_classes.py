"""A tiny class-conditional prior and a tiny classifier: python make_classes.py PRIOR CLASSIFIER"""

import sys

from diffusers import DDPMScheduler, UNet2DModel
from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

prior, classifier = sys.argv[1:]
UNet2DModel(
    sample_size=32,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    num_class_embeds=10,
).save_pretrained(f"{prior}/unet")
DDPMScheduler().save_pretrained(f"{prior}/scheduler")
config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=10)
ResNetForImageClassification(config).save_pretrained(classifier)
ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(classifier)
