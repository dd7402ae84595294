"""The paper's protocol, on small images with a small network."""

import csv
import io
import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ddrm_jpeg, jpeg_bytes
from PIL import Image
from processes import Process, run, run_together

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, JPEGOperator
from pipeline_ddrm_jpeg.evaluation.baselines import BASELINES, unavailable
from pipeline_ddrm_jpeg.evaluation.metrics import psnr, ssim
from pipeline_ddrm_jpeg.evaluation.protocol import Picture, Protocol, find_images, prepare
from pipeline_ddrm_jpeg.evaluation.run import Evaluation, evaluate_image, fingerprint, summarize
from pipeline_ddrm_jpeg.evaluation.tables import evaluation_tables
from pipeline_ddrm_jpeg.files.restoration import restore_files
from pipeline_ddrm_jpeg.files.tasks import plan

SETTINGS = PRESETS["paper"] | {"num_inference_steps": 2, "init_timestep": 40, "num_samples": 2, "consistent": True}
LIKE_SETTINGS = ["--preset", "paper", "--init-timestep", "40", "--consistent", "--dtype", "float32"]
LAUNCH = "from accelerate.commands.launch import main\nmain()"  # `accelerate launch`
PROTOCOL = Protocol(quality_factors=(10, 50), size=48, settings=SETTINGS, metrics=("psnr_8bit", "ssim"))


@pytest.fixture
def pictures(photo, tmp_path) -> Path:
    """A folder of three images of different shape."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, box in (("a.png", (0, 0, 90, 70)), ("b.png", (90, 60, 160, 170)), ("c.webp", (200, 100, 264, 164))):
        photo.crop(box).save(folder / name, lossless=True)
    (folder / "notes.txt").write_text("no image")
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((folder / "images.csv").open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_pictures_are_found_in_folders_and_lists(pictures, tmp_path):
    (tmp_path / "chosen.txt").write_text("photos/b.png\n\nphotos/a.png\n")
    found = find_images([pictures, tmp_path / "chosen.txt"])
    assert [(picture.dataset, picture.path.name) for picture in found] == [
        *(("photos", "a.png"), ("photos", "b.png"), ("photos", "c.webp")),
        *(("chosen", "b.png"), ("chosen", "a.png")),
    ]
    assert [picture.path.name for picture in find_images([pictures], limit=2)] == ["a.png", "c.webp"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["photos/a.png"], "is an image; give its folder"),
        (["empty"], "holds no images"),
        (["photos", "again/photos"], "two sets are called photos"),
        (["twice.txt"], "names a.png twice"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(pictures, tmp_path, names, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "again" / "photos").mkdir(parents=True)
    (tmp_path / "again" / "photos" / "d.png").touch()
    (tmp_path / "twice.txt").write_text("photos/a.png\nphotos/a.png\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_images([tmp_path / name for name in names])


def test_the_central_square_is_resized_as_in_the_paper(pictures):
    assert prepare(pictures / "a.png", None).size == (90, 70)
    square = Image.open(pictures / "a.png").crop((10, 0, 80, 70))
    assert prepare(pictures / "a.png", 70).tobytes() == square.tobytes()
    assert prepare(pictures / "a.png", 48).tobytes() == square.resize((48, 48), Image.Resampling.BILINEAR).tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quality_factors": (5, 101)}, "quality factor is 101"),
        ({"quality_factors": (5, 5)}, "every quality factor once"),
        ({"convention": "mine"}, "convention is 'mine', not libjpeg or released"),
        ({"chroma_subsampling": "4:1:1"}, "chroma subsampling is '4:1:1'"),
        ({"preset": "fastest"}, "preset fastest is not one of fast"),
        ({"metrics": ("psnr",)}, "metric psnr is not one of psnr_8bit"),
        ({"baselines": ("theirs",)}, "baseline theirs is not one of jpegqs"),
        ({"convention": "released", "baselines": ("jpegqs",)}, "baselines restore files"),
        ({"size": 8}, "size is 8"),
    ],
)
def test_a_protocol_out_of_range_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**wrong)


def test_rows_can_be_made_again_by_hand(pipe, pictures):
    rows = evaluate_image(pipe, Picture("photos", pictures / "a.png"), PROTOCOL)
    assert [(row["quality_factor"], row["method"]) for row in rows] == [
        (factor, method) for factor in (10, 50) for method in ("JPEG", "Ours (S)", "Ours (A)")
    ]
    reference = prepare(pictures / "a.png", 48)
    data = jpeg_bytes(reference, quality=50, subsampling="4:2:0")
    decoded, single, average = rows[3:]
    assert decoded["bits_per_pixel"] == len(data) * 8 / 48**2
    assert decoded["psnr"] == pytest.approx(psnr(Image.open(io.BytesIO(data)), reference), abs=1e-9)
    assert decoded["ssim"] == ssim(Image.open(io.BytesIO(data)), reference)
    result = pipe(data, generator=torch.Generator().manual_seed(average["seed"]), output_type="np", settings=SETTINGS)
    for row, picture in ((single, result.samples[0][0]), (average, result.images[0])):
        assert row["psnr"] == psnr(picture, np.asarray(reference) / 255, peak=1)
        assert row["psnr_8bit"] == psnr((picture * 255).round(), reference)
    assert average["consistency"] == result.consistency_8bit[0]
    assert (single["network_evaluations"], average["network_evaluations"]) == (2, 4)
    assert average["seconds"] == 2 * single["seconds"] > 0


def test_of_one_sample_the_sharpened_picture_is_judged(pipe, pictures):
    settings = SETTINGS | {"num_samples": 1, "sharpness": 1.0}
    protocol = Protocol(quality_factors=(10,), size=48, settings=settings, metrics=())
    single = evaluate_image(pipe, Picture("photos", pictures / "a.png"), protocol)[-1]
    reference = prepare(pictures / "a.png", 48)
    generator = torch.Generator().manual_seed(single["seed"])
    result = pipe(
        jpeg_bytes(reference, quality=10, subsampling="4:2:0"), generator=generator, output_type="np", settings=settings
    )
    assert single["psnr"] == psnr(result.images[0], np.asarray(reference) / 255, peak=1)
    assert single["psnr"] != psnr(result.samples[0][0], np.asarray(reference) / 255, peak=1)


def test_without_a_file_the_operator_restores_what_it_measured(pipe, pictures):
    protocol = Protocol(quality_factors=(30,), convention="released", size=None, settings=SETTINGS, metrics=())
    rows = evaluate_image(pipe, Picture("photos", pictures / "c.webp"), protocol)
    reference = prepare(pictures / "c.webp", None)
    x = torch.from_numpy(np.array(reference)).permute(2, 0, 1)[None] / 127.5 - 1
    operator = JPEGOperator(30, convention="released")
    decoded = (operator.decode(operator.encode(x)) / 2 + 0.5).clamp(0, 1)
    expected = psnr(decoded[0].permute(1, 2, 0).numpy(), np.asarray(reference) / 255, peak=1)
    assert rows[0]["psnr"] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["bits_per_pixel"] is None
    assert rows[2]["consistency"] > 0.99


def test_means_and_tables_have_the_shape_of_table_1():
    def row(image, method, value):
        common = {
            "dataset": "set",
            "image": image,
            "convention": "libjpeg",
            "chroma_subsampling": "4:2:0",
            "quality_factor": 10,
            "bits_per_pixel": 0.5,
        }
        return common | {"method": method, "psnr": value, "ssim": 0.75, "psnr_b": value - 1}

    means = summarize([row("a", "JPEG", 25.0), row("a", "Ours (A)", 29.25),
                       row("b", "JPEG", 26.0), row("b", "Ours (A)", 25.75)])  # fmt: skip
    assert [mean["metrics"]["psnr"] for mean in means] == [25.5, 27.5]
    assert [mean["images"] for mean in means] == [2, 2]
    text = evaluation_tables(means, {"lpips": "no network"}).splitlines()
    assert "| Method | QF 10 PSNR | QF 10 SSIM | QF 10 LPIPS |" in text
    assert "| Ours (A) | **27.50** | **0.750** | n/a |" in text
    assert "| 10 | Ours (A) | +2.00 | -0.25 | 26.50 | 0.500 |  |  |  |" in text
    assert [means[1][name] for name in ("least_gain", "least_gain_image", "made_worse")] == [-0.25, "b", 1]
    assert "least_gain" not in means[0]
    assert text[-1] == "LPIPS is n/a: no network."


def test_results_of_other_settings_are_not_mixed(tmp_path):
    Evaluation(tmp_path, PROTOCOL, {"prior": "a"}).begin()
    Evaluation(tmp_path, PROTOCOL, {"prior": "a"})
    with pytest.raises(ValueError, match="with prior a, not b"):
        Evaluation(tmp_path, PROTOCOL, {"prior": "b"})
    with pytest.raises(ValueError, match="with num_samples 2, not 3"):
        Evaluation(tmp_path, Protocol(**(vars(PROTOCOL) | {"settings": SETTINGS | {"num_samples": 3}})), {"prior": "a"})


def test_a_run_that_is_killed_goes_on_and_two_processes_give_what_one_gives(
    photo, pictures, prior_folder, tmp_path, one_thread
):
    for i in range(4):
        photo.crop((50 * i, 0, 50 * i + 48, 48)).save(pictures / f"d{i}.png")
    together = tmp_path / "together"
    command = ["evaluate", pictures, "--size", "48", "--quality", "10,50", *LIKE_SETTINGS]
    command += ["--steps", "8", "--samples", "2", "--metrics", "psnr_8bit,ssim", "--quiet"]
    command += ["--prior", prior_folder, "--output", together]
    killed = Process(None, *command)
    while not list(together.glob("images/*/*.json")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    finished = {path: path.stat().st_mtime_ns for path in together.glob("images/*/*.json")}
    assert 0 < len(finished) < 7
    assert not (together / "images.csv").exists()

    (pictures / "broken.png").write_bytes(b"no image")
    resumed = run_together(2, None, *command)
    assert "photos/broken.png" in resumed[0].stderr + resumed[1].stderr
    assert {one.returncode for one in resumed} == {1}
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished images are not made again"
    record = json.loads((together / "evaluation.json").read_text())
    assert record["protocol"]["settings"]["num_samples"] == 2
    assert record["protocol"]["preset"] is None  # single options changed it
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["rows"]) == 2 * 3

    found = find_images([pictures])
    protocol = Protocol(**(vars(PROTOCOL) | {"settings": SETTINGS | {"num_inference_steps": 8}}))
    alone = Evaluation(tmp_path / "alone", protocol, {})
    ((path, reason),) = alone.run(DDRMJPEGPipeline.from_prior(prior_folder, dtype="float32"), found)
    assert path.endswith("broken.png")
    assert "not an image that Pillow can read" in reason
    alone.finish(found)
    assert rows_of(together) == rows_of(tmp_path / "alone")
    assert len(rows_of(together)) == 7 * 2 * 3


def test_two_machines_restore_a_folder_as_one_process_does(photo, prior_folder, tmp_path, one_thread):
    """Both on this host: each has its own launcher, and they meet at an address."""
    for name in "abcdef":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg_bytes(photo.resize((40, 24)), quality=20))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def machine(rank):
        command = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", rank]
        command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        command += ["-m", "pipeline_ddrm_jpeg", "restore", tmp_path, "--output", tmp_path / "out"]
        return Process(LAUNCH, *command, "--prior", prior_folder, *LIKE_SETTINGS, "--steps", "2")

    machines = [machine(rank) for rank in (0, 1)]
    printed = [one.communicate() for one in machines]
    assert [one.returncode for one in machines] == [0, 0], printed
    lines = [out.splitlines() for out, _ in printed]
    assert [sum("coefficients kept" in line for line in out) for out in lines] == [3, 3]
    assert "6 restored" in lines[0]
    assert "6 restored" not in lines[1]
    tasks = plan([tmp_path], tmp_path / "one")
    pipe = DDRMJPEGPipeline.from_prior(prior_folder, dtype="float32")
    assert len(list(restore_files(pipe, tasks, settings=SETTINGS, num_samples=1))) == 6
    for task in tasks:
        together, alone = (Image.open(path).tobytes() for path in (tmp_path / "out" / task.target.name, task.target))
        assert together == alone


def test_a_launcher_that_starts_one_process_only_is_told_on(photo, prior_folder, tmp_path, monkeypatch):
    """What the launcher tells the process it starts, this one is told."""
    (tmp_path / "environment.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launched = run(LAUNCH, "--num_processes", "2", tmp_path / "environment.py")
    (environment,) = launched.stdout.splitlines()
    for name, value in json.loads(environment).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((16, 16)), quality=20))
    done = ddrm_jpeg("restore", tmp_path / "a.jpg", "--prior", prior_folder, "--device", "cpu", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert "accelerate launch was asked for several processes and started one" in done.stderr


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_restores_a_file_or_says_what_to_install(name, photo, tmp_path):
    reason = unavailable(name)
    if reason is not None:
        assert "not installed" in reason
        pytest.skip(reason)
    path = tmp_path / "a.jpg"
    picture = photo.crop((20, 20, 151, 117))
    picture.save(path, quality=20)
    restored = BASELINES[name](path)
    assert restored.dtype == np.uint8
    assert restored.shape == (97, 131, 3)
    assert psnr(restored, picture) > psnr(Image.open(path), picture) + 0.2


def test_a_prior_has_one_name_in_every_dtype_and_another_one_when_a_weight_changes():
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    networks = [DDRMJPEGPipeline.from_embedded(dtype=dtype).unet for dtype in dtypes]
    assert len(set(map(fingerprint, networks))) == 1
    before = fingerprint(networks[0])
    page = Path(__file__).parent.parent / "pipeline_ddrm_jpeg" / "prior" / "README.md"
    assert f"This one is `{before[:12]}`" in " ".join(page.read_text().split()), (
        "the name that the embedded prior's page gives"
    )
    with torch.no_grad():
        next(networks[0].parameters()).add_(0.1)
    assert fingerprint(networks[0]) != before
