"""The modular form: the same bytes as the pipeline, in a stranger's process, from the Hub and by `diffusers-cli`."""

import json

import numpy as np
import processes
import pytest
import torch
from conftest import inks, jpeg_bytes, make_unet, paper
from diffusers import DDIMScheduler, ModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks, OutputParam
from hub_server import forget_downloads
from PIL import Image

from pipeline_ddrm_jpeg import (
    DDRMJPEGBlocks,
    DDRMJPEGPipeline,
    DDRMScheduler,
    JPEGFileError,
    JPEGOperator,
    PiGDMScheduler,
    observe,
)

QUICK = {
    "preset": "paper",
    "settings": dict.fromkeys(("eta", "eta_b", "timestep_spacing")) | {"init_timestep": 60},
    "num_inference_steps": 3,
    "output_type": "np",
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(photo):
    return jpeg_bytes(photo.resize((53, 38)), quality=20)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler(eta=0.9)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def pipe(saved):
    pipeline = DDRMJPEGPipeline.from_pretrained(saved)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def modular(saved):
    pipeline = DDRMJPEGBlocks().init_pipeline(str(saved))
    pipeline.load_components()
    return pipeline


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_samples": 3, "antithetic": True, "temperature": 0.8},
        {"correction": "posterior", "num_samples": 2, "equivariant": True},
        {"correction": "nearest", "eta_b": 1.0, "eta": 0.5, "consistent": True},
        {"init_timestep": "auto", "timestep_spacing": "log"},
        {"tiling": {"size": 16, "overlap": 4}, "sharpness": 0.7},
    ],
)
def test_blocks_make_the_bytes_that_the_pipeline_makes(pipe, modular, data, options):
    pipe.enable_tiling(**options.get("tiling", {}))
    classic = paper(pipe, data, generator=seeded(), **QUICK | {k: v for k, v in options.items() if k != "tiling"})
    state = modular(file=data, generator=seeded(), **{**QUICK, **options})
    for name in ("images", "samples", "std", "consistency", "consistency_8bit"):
        ours, theirs = state.get(name), classic[name]
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), name


@pytest.mark.parametrize("options", [{}, {"tiling": {"size": 32, "overlap": 8}, "equivariant": True}])
def test_the_blocks_follow_gradients_as_the_pipeline_does(pipe, modular, data, options):
    pipe.scheduler = PiGDMScheduler(eta=0.8)
    modular.update_components(scheduler=PiGDMScheduler(eta=0.8))
    pipe.enable_tiling(**options.get("tiling", {}))
    equivariant = options.get("equivariant", False)
    classic = paper(pipe, data, generator=seeded(), num_samples=2, equivariant=equivariant, **QUICK)
    images = modular(file=data, generator=seeded(), num_samples=2, output="images", **QUICK, **options)
    assert np.array_equal(images, classic.images)
    with pytest.raises(ValueError, match="PiGDMScheduler does not take correction posterior"):
        modular(file=data, correction="posterior", **QUICK)


def test_a_measurement_goes_in_as_a_file_does(pipe, modular, photo):
    operator = JPEGOperator(20)
    seen = observe(photo.resize((48, 32)), operator=operator)
    arguments = {"operator": operator, "measurement": seen.y, "size": (30, 40)}
    classic = paper(pipe, generator=seeded(), **arguments, **QUICK)
    images = modular(generator=seeded(), output="images", **arguments, **QUICK)
    assert images.shape == (1, 30, 40, 3)
    assert np.array_equal(images, classic.images)


def test_bad_arguments_get_the_sentences_of_the_pipeline(modular, data):
    for name, value in (("correction", "none"), ("output_type", "tiff"), ("num_samples", 0), ("eta", 2)):
        with pytest.raises(ValueError, match=f"{name} is"):
            modular(file=data, **{**QUICK, name: value})


def test_what_is_not_loaded_and_lists_are_named(saved, modular, data):
    with pytest.raises(ValueError, match=r"not loaded: call load_components\(\)"):
        DDRMJPEGBlocks().init_pipeline(str(saved))(file=data, **QUICK)
    with pytest.raises(TypeError, match="one file a call"):
        modular(file=[data, data], **QUICK)
    with pytest.raises(TypeError, match="nothing to restore: give a JPEG file"):
        modular(**QUICK)


def test_four_inks_are_refused(modular, photo):
    with pytest.raises(JPEGFileError, match="CMYK, which is measured as two images"):
        modular(file=inks(photo.resize((24, 16)), ycck=False), **QUICK)


def test_another_scheduler_is_made_into_what_the_blocks_need(modular, data):
    modular.update_components(scheduler=DDIMScheduler(beta_schedule="scaled_linear"))
    assert modular(file=data, output="images", generator=seeded(), **QUICK).shape == (1, 38, 53, 3)


class NoCorrection(ModularPipelineBlocks):
    """Leaves what the prior proposes as it is."""

    @property
    def intermediate_outputs(self):
        return [OutputParam("step_options", dict, "Arguments of the scheduler's step.")]

    def __call__(self, components, block_state, i, t):
        block_state.step_options = {"project": None}
        return components, block_state


def test_the_correction_can_be_swapped_for_another(pipe, saved, data):
    blocks = DDRMJPEGBlocks()
    blocks.sub_blocks["denoise"].sub_blocks["correction"] = NoCorrection()
    swapped = blocks.init_pipeline(str(saved))
    swapped.load_components()
    images = swapped(file=data, generator=seeded(), output="images", **QUICK)
    assert np.array_equal(images, paper(pipe, data, generator=seeded(), eta_b=0.0, **QUICK).images)


def test_every_input_and_output_is_described():
    blocks = DDRMJPEGBlocks()
    for one in (*blocks.inputs, *blocks.outputs, *blocks.expected_components, *blocks.expected_configs):
        assert one.description, one.name
    assert {"file", "measurement", "operator", "size", "generator"} <= set(blocks.input_names)
    assert not any(one.required for one in blocks.inputs)


def stranger(code, *arguments, cwd):
    """What a process prints that has nothing of this package."""
    done = processes.run(f"import sys\n{code}", *arguments, prelude=processes.STRANGER, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


CLI = """
import json
from diffusers.commands.diffusers_cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["diffusers-cli", *command]
    main()
"""


def test_a_published_repo_restores_in_both_forms_and_by_diffusers_cli(pipe, saved, data, tmp_path, hub):
    (tmp_path / "a.jpg").write_bytes(data)
    options = {name: QUICK[name] for name in ("preset", "settings", "num_inference_steps")}
    expected = pipe(tmp_path / "a.jpg", generator=seeded(7), **options).images[0]
    first, commit = (pipe.push_to_hub("tester/prior").oid for _ in range(2))
    assert first == commit
    assert hub.commits == ["tester/prior"] * 2  # one for each of the branches; the second push changed nothing
    forget_downloads()

    code = """
import json, torch
from diffusers import DiffusionPipeline, ModularPipeline
options = json.loads(sys.argv[1])
seeded = lambda: torch.Generator().manual_seed(7)
classic = DiffusionPipeline.from_pretrained("tester/prior", trust_remote_code=True)
classic(file="a.jpg", generator=seeded(), **options).images[0].save("classic.png")
for revision in (None, sys.argv[2], "modular"):
    modular = ModularPipeline.from_pretrained("tester/prior", revision=revision, trust_remote_code=True)
    modular.load_components()
    images = modular(file="a.jpg", generator=seeded(), output="images", **options)
    images[0].save(f"modular-{revision}.png")
"""
    hub.requests.clear()
    stranger(code, json.dumps(options), commit, cwd=tmp_path)
    asked = [path for path in hub.requests if path.endswith("sampling/samples.py")]
    # Four pipelines of three commits: a module is asked for once by each.
    assert 2 <= len(asked) <= 8, asked

    arguments = json.dumps({"file": "a.jpg", **options})
    common = ["--trust-remote-code", "--pipeline-kwargs", arguments, "--seed", "7", "--device-map", "cpu"]
    run = ["run", "--model", "tester/prior", *common]
    modular = ["--revision", "modular", "--output-key", "images", "--output", "cli-modular.png"]
    schema = ["--format", "json", "schema", "--model", "tester/prior", "--revision", "modular", "--trust-remote-code"]
    commands = [[*run, "--output", "cli-classic.png"], [*run, *modular], schema]
    printed = stranger(CLI, json.dumps(commands), cwd=tmp_path)
    names = ("classic", "modular-None", f"modular-{commit}", "modular-modular", "cli-classic", "cli-modular")
    for name in names:
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}.png")), np.asarray(expected)), name

    described = json.loads(printed.splitlines()[-1])
    inputs = {one["name"]: one for one in described["inputs"]}
    assert described["pipeline_class"] == "DDRMJPEGBlocks"
    assert "by default balanced" in inputs["preset"]["description"].lower()
    assert "JPEG file" in inputs["file"]["description"]


def test_a_saved_folder_is_a_modular_pipeline_as_well(pipe, saved, data):
    modular = ModularPipeline.from_pretrained(saved, trust_remote_code=True)
    modular.load_components()
    images = modular(file=data, generator=seeded(), output="images", **QUICK)
    assert np.array_equal(images, paper(pipe, data, generator=seeded(), **QUICK).images)
