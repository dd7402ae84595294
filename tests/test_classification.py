"""Classes for class-conditional priors, told by a real (tiny) classifier of transformers."""

import io
import sys

import numpy as np
import pytest
import torch
from conftest import ddrm_jpeg, jpeg_bytes, make_unet
from diffusers import UNet2DModel
from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGBlocks, DDRMJPEGPipeline, DDRMScheduler, observe
from pipeline_ddrm_jpeg.sampling.classification import Classifier, decoded

QUICK = {"preset": "paper", "settings": {"num_inference_steps": 2, "init_timestep": 40}, "output_type": "pt"}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a classifier of ten classes: 3 for what is dark, 7 for what is bright."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=10)
    ).eval()
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    grey = [Image.new("RGB", (32, 32), (level,) * 3) for level in (60, 190)]
    with torch.no_grad():
        dark, bright = model.resnet(**processor(images=grey, return_tensors="pt")).pooler_output[..., 0, 0]
        head, away = model.classifier[1], bright - dark
        head.weight.zero_()
        head.bias.fill_(-1e3)
        head.weight[7], head.bias[7] = away, -(away @ (bright + dark)) / 2
        head.bias[3] = 0.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(photo):
    """A dark and a bright file."""
    small = photo.resize((40, 24))
    return [jpeg_bytes(small.point(lambda value, shift=shift: value // 4 + shift), quality=20) for shift in (20, 160)]


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    config = {name: value for name, value in make_unet().config.items() if not name.startswith("_")}
    unet = UNet2DModel(**{**config, "num_class_embeds": 10}).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    return unet


@pytest.fixture
def labelled(conditional):
    pipeline = DDRMJPEGPipeline(unet=conditional, scheduler=DDRMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_class_is_the_classifiers_of_the_decoded_file(labelled, classifier, files):
    generators = [seeded(), seeded()]
    told = labelled(files, class_labels="auto", classifier=classifier, generator=generators, **QUICK).images
    given = labelled(files, class_labels=[3, 7], generator=[seeded(), seeded()], **QUICK).images
    assert torch.equal(told, given)
    others = labelled(files, class_labels=[7, 3], generator=[seeded(), seeded()], **QUICK).images
    assert not torch.equal(told, others)


def test_the_blocks_ask_the_classifier_too(labelled, conditional, classifier, files):
    modular = DDRMJPEGBlocks().init_pipeline()
    modular.update_components(unet=conditional, scheduler=DDRMScheduler())
    options = {"class_labels": "auto", "classifier": classifier, **QUICK}
    images = modular(file=files[1], generator=seeded(), output="images", **options)
    assert torch.equal(images, labelled(files[1], generator=seeded(), **options).images)


def test_a_batch_gets_a_class_for_each_picture(classifier, files):
    dark, bright = (observe(file) for file in files)
    both = type(dark.y)(tuple(torch.cat(pair) for pair in zip(dark.y.levels, bright.y.levels, strict=True)))
    seen = observe(measurement=both, operator=dark.operator)
    assert Classifier(classifier)(seen).tolist() == [3, 7]


def test_the_classifier_sees_the_file_as_people_do(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg_bytes(photo.resize((53, 38)), quality=95, exif=exif, subsampling=0)
    (picture,) = decoded(observe(data))
    assert (picture.mode, picture.size) == ("RGB", (38, 53))
    upright = np.asarray(photo.resize((53, 38)).transpose(Image.Transpose.ROTATE_270), dtype=float)
    assert np.abs(np.asarray(picture) - upright).mean() < 6
    sepia = jpeg_bytes(Image.new("RGB", (16, 16), (180, 140, 100)), quality=95)
    (picture,) = decoded(observe(sepia))
    assert np.abs(np.asarray(picture, dtype=float) - (180, 140, 100)).max() <= 3


def test_what_does_not_fit_is_refused_in_a_sentence(labelled, pipe, classifier, files, tmp_path):
    for pipeline, options, message in (
        (labelled, {"class_labels": "cat"}, "class_labels is 'cat'; it must be classes, or \"auto\""),
        (labelled, {"class_labels": 1, "classifier": classifier}, 'but class_labels is not "auto"'),
        (pipe, {"class_labels": "auto"}, "this prior is not class-conditional"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(files[0], **options, **QUICK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty cannot be loaded as an image classifier: "):
        labelled(files[0], class_labels="auto", classifier=tmp_path / "empty", **QUICK)
    config = {name: value for name, value in labelled.unet.config.items() if not name.startswith("_")}
    three = DDRMJPEGPipeline(unet=UNet2DModel(**{**config, "num_class_embeds": 3}), scheduler=DDRMScheduler())
    with pytest.raises(ValueError, match="knows 10 classes, but the prior 3"):
        three(files[0], class_labels="auto", classifier=classifier, **QUICK)


def test_without_transformers_it_says_what_to_install(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'pipeline-ddrm-jpeg\[classes\]'"):
        Classifier(classifier)


def test_the_command_asks_a_classifier_of_the_hub(labelled, classifier, files, tmp_path, hub, monkeypatch):
    """Served by the local Hub: nothing else is downloaded, and that only because it was named."""
    hub.repos["tester/classifier"] = {
        "main": {path.name: path.read_bytes() for path in classifier.iterdir() if path.is_file()}
    }
    monkeypatch.setenv("HF_TOKEN", "")
    labelled.save_pretrained(tmp_path / "prior")
    (tmp_path / "in").mkdir()
    for name, file in zip(("dark.jpg", "light.jpg"), files, strict=True):
        (tmp_path / "in" / name).write_bytes(file)

    def restore(output, *options):
        words = ["restore", tmp_path / "in", "-o", tmp_path / output, "--prior", tmp_path / "prior"]
        return ddrm_jpeg(*words, "--steps", "2", "--init-timestep", "40", "--dtype", "float32", *options)

    done = restore("auto", "--class-label", "auto", "--classifier", "tester/classifier")
    assert done.returncode == 0, done.stderr
    assert restore("seven", "--class-label", "7").returncode == 0
    dark, light = (
        [Image.open(tmp_path / folder / name).tobytes() for folder in ("auto", "seven")]
        for name in ("dark.png", "light.png")
    )
    assert light[0] == light[1]
    assert dark[0] != dark[1]

    refused = restore("wrong", "--class-label", "auto", "--classifier", str(tmp_path / "in"))
    assert refused.returncode == 1
    assert "cannot be loaded as an image classifier" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert restore("wrong", "--class-label", "cat").returncode == 2


def test_of_a_crop_the_classifier_sees_the_crop(photo):
    whole = Image.open(io.BytesIO(jpeg_bytes(photo, quality=30)))
    crop = whole.crop((37, 21, 317, 241))
    (seen,) = decoded(observe(crop, history="estimate"))
    assert seen.size == crop.size
    inner = (16, 16, 264, 204)  # blocks that the border cuts are not measured
    difference = np.asarray(seen.crop(inner), float) - np.asarray(crop.crop(inner), float)
    assert np.abs(difference).mean() < 3
