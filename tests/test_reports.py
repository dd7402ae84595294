"""The reports: numbers known beforehand, the pages of this checkout, and the one command that makes everything."""

import json
import re
import shutil

import benchmark
import graphics
import numpy as np
import pages
import processes
import pytest
import results as gathered_results
import throughput
import uncertainty
from conftest import ROOT
from huggingface_hub import ModelCard
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS

FACTORS = (10, 30, 50, 80)
REPORTS = ROOT / "scripts" / "reports"


@pytest.fixture
def results(tmp_path):
    """An evaluation in which ours is one decibel above JPEG, and another program's files are half as large."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for i, factor in enumerate(FACTORS):
        for method, rate, gain in (
            ("JPEG", 1.0, 0.0),
            ("waifu2x", 0.5, 0.0),
            ("Ours (S)", 1.0, 0.5),
            ("Ours (A)", 1.0, 1.0),
        ):
            row = {"dataset": "set", "images": 2, "convention": "libjpeg", "chroma_subsampling": "4:2:0"}
            row |= {"quality_factor": factor, "method": method}
            row["metrics"] = {"psnr": 25.0 + 3 * i + gain, "ssimulacra2": 20.0 + 15 * i + 4 * gain}
            row["bits_per_pixel"] = 0.25 * 2**i * rate
            if method.startswith("Ours"):
                row |= {"network_evaluations": 4 if method == "Ours (S)" else 16, "seconds": 1.5, "consistency": 1.0}
            if method != "JPEG":
                row |= {"least_gain": gain - 0.75, "least_gain_image": f"{factor}.png", "made_worse": int(gain < 0.75)}
            rows.append(row)
    protocol = {"quality_factors": FACTORS, "convention": "libjpeg", "baselines": ["waifu2x"], "preset": "balanced"}
    protocol["chroma_subsampling"] = "4:2:0"
    protocol["settings"] = {**PRESETS["balanced"], "correction": "ddrm"}
    record = {
        "protocol": protocol,
        "prior_sha256": "0" * 64,
        "dtype": "float32",
        "versions": {"torch": "2"},
        "commit": "c",
    }
    (folder / "evaluation.json").write_text(json.dumps({**record, "notes": {"lpips": "no network"}, "rows": rows}))
    return folder


def run(script, *arguments):
    return processes.run(REPORTS / script, *arguments)


def test_rate_distortion_finds_the_known_deltas(results):
    done = run("rate_distortion.py", results, "--output", results / "curves")
    assert done.returncode == 0, done.stderr
    lines = {line.split(" | ")[1]: line for line in done.stdout.splitlines() if line.startswith("| set")}
    rate, psnr, _, ssimulacra2 = lines["Ours (A)"].strip("| ").split(" | ")[2:]
    assert rate.startswith("-")
    assert (psnr, ssimulacra2) == ("+1.000", "+4.000")
    assert lines["waifu2x"].split(" | ")[2] == "-50.0 %"
    assert Image.open(results / "curves.png").width > 500
    assert "<svg" in (results / "curves.svg").read_text()[:600]


def test_rate_distortion_says_what_is_missing(results):
    record = json.loads((results / "evaluation.json").read_text())
    (results / "evaluation.json").write_text(json.dumps({**record, "rows": record["rows"][:4]}))
    for folder, sentence in ((results, "need four quality factors or more"), (ROOT, "holds no finished evaluation")):
        done = run("rate_distortion.py", folder)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1


def test_results_are_gathered_with_the_command_that_made_them(results, tmp_path):
    done = run("results.py", results, "--output", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "results.md").read_text()
    assert (
        "evaluate set --output RESULTS --quality 10,30,50,80 --convention libjpeg --subsampling 4:2:0 --preset balanced"
        in text
    )
    assert "| 10 | Ours (A) | +1.00 | +0.25 | 24.0 | 0.250 | 100 % | 16 | 1.50 |" in text
    assert "| libjpeg | 4:2:0 | 50 | 2 | 1 | 1 | 0 | -0.25 | set/50.png |" in text
    assert "LPIPS is n/a: no network." in text
    gathered = json.loads((tmp_path / "results.json").read_text())
    assert len(gathered["rows"]) == 16
    assert gathered["rows"][0]["preset"] == "balanced"
    assert gathered["rows"][0]["settings"]["num_samples"] == 1


def test_presets_are_compared_in_one_table(results, tmp_path):
    done = run("presets.py", results, "--output", tmp_path / "presets")
    assert done.returncode == 0, done.stderr
    row = "| balanced | 16 | 1.5 |" + " +1.00 | +4.0 |" * 4
    assert row in done.stdout
    assert row in (tmp_path / "presets.md").read_text()
    assert Image.open(tmp_path / "presets.png").width > 500


def test_the_sharp_end_is_named_and_its_lpips_is_the_ratio_of_means(results, tmp_path):
    record = json.loads((results / "evaluation.json").read_text())
    record["protocol"]["settings"] = dict(PRESETS["balanced"])
    for row in record["rows"]:  # the second set has three times the images of the first
        row["metrics"]["lpips"] = {"JPEG": 0.4}.get(row["method"], 0.3)
    other = [
        row | {"dataset": "other", "images": 6, "metrics": row["metrics"] | {"lpips": 0.2}} for row in record["rows"]
    ]
    record["rows"] += other
    (results / "evaluation.json").write_text(json.dumps(record))
    record["protocol"] |= {"preset": None, "settings": {**PRESETS["balanced"], "sharpness": 1.0}}
    (tmp_path / "sharp").mkdir()
    (tmp_path / "sharp" / "evaluation.json").write_text(json.dumps(record))
    done = run("presets.py", results, tmp_path / "sharp", "--output", tmp_path / "presets")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "| QF 10 LPIPS / JPEG's |" in lines[0]
    for name, line in zip(("balanced", "balanced, sharpness 1"), lines[2:], strict=False):
        assert line == f"| {name} | 16 | 1.5 |" + " +1.00 | +4.0 | 0.90 |" * 4  # 0.225 / 0.25
    assert Image.open(tmp_path / "presets.png").height > 800


def test_the_benchmark_measures_and_judges_by_a_ratio(tmp_path):
    done = run(
        "benchmark.py", "--sizes", "64x64", "--dtype", "float32", "--output", tmp_path / "b", "--check", "0"
    )  # fmt: skip
    assert done.returncode == 1
    assert "of the network's time" in done.stderr
    (row,) = json.loads((tmp_path / "b.json").read_text())["sizes"]
    assert row["seconds"]["correction"] < row["seconds"]["network"]
    text = (tmp_path / "b.md").read_text()
    assert "| peak memory, MiB |" in text
    assert str(tmp_path) not in text


def test_throughput_is_made_in_pieces_and_compares_with_the_released_loop(photo, tmp_path):
    (tmp_path / "set").mkdir()
    photo.save(tmp_path / "set" / "a.png")
    done = run(
        *("throughput.py", tmp_path / "set", "--only", "compared", "--compared", "1", "--size", "48"),
        *("--output", tmp_path / "t"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "t.json").read_text())
    compared, others = record["compared"], json.loads((ROOT / "docs" / "throughput.json").read_text())["folders"]
    record["folders"] = others
    (tmp_path / "t.json").write_text(json.dumps(record))
    released = compared["the released loop, 160 evaluations"]
    assert released["psnr"] > compared["JPEG"]["psnr"] + 0.1
    assert released["seconds"] > 4 * compared["`balanced`"]["seconds"]
    done = run(
        *("throughput.py", tmp_path / "set", "--only", "folders", "--folders", "24x16:2", "32x16:40"),
        *("--limit", "0.001", "--output", tmp_path / "t"),
    )
    assert done.returncode == 0, done.stderr
    assert "24x16: 2 files take about" in done.stderr
    pieces = json.loads((tmp_path / "t.json").read_text())
    assert pieces["compared"] == compared
    rows = {(row["width"], row["height"]): row for row in pieces["folders"]}
    assert all(row in pieces["folders"] for row in others)
    assert 0 < rows[24, 16]["network"] < rows[24, 16]["seconds"]
    assert 1 <= rows[32, 16]["files"] < rows[32, 16]["asked"] == 40
    assert len(pieces["commands"]) == 2
    assert str(tmp_path) not in (tmp_path / "t.md").read_text()


def test_the_pages_are_what_the_script_makes_of_their_sources():
    for path, text in pages.make(ROOT).items():
        assert path.read_text() == text, f"{path.name} is out of date; run: make card"


@pytest.mark.parametrize("report", [gathered_results, throughput, benchmark, uncertainty], ids=lambda one: one.__name__)
def test_a_page_is_what_its_script_makes_of_the_stored_numbers(report):
    page = ROOT / "docs" / f"{report.__name__}.md"
    assert page.read_text() == report.as_page(json.loads(page.with_suffix(".json").read_text()))


TEXTS = REPORTS / "texts"


def prose(text):
    """The paragraphs of a page or of its texts, but for tables, blocks, and headings of tables."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return [one.strip() for one in paragraphs if not re.match(r"\||```|### |\$\w+$", one)]


@pytest.mark.parametrize("name", sorted(path.stem for path in TEXTS.glob("*.md") if "-" not in path.stem))
def test_every_sentence_of_a_measured_page_comes_from_its_texts(name):
    def patterns(text):
        """Each paragraph, with a number or a list in the place of a `$part`, but no sentence."""
        return [re.sub(r"\\\$\w+", r"(?:(?!\. )[^\n]){1,250}", re.escape(one)) for one in prose(text)]

    page = prose((ROOT / "docs" / f"{name}.md").read_text())
    always = patterns((TEXTS / f"{name}.md").read_text())
    others = [*TEXTS.glob(f"{name}-*.md"), *(TEXTS / "notes").glob(f"{name}-*.md")]
    sometimes = [pattern for path in others for pattern in patterns(path.read_text())]
    typed = [
        one for one in page if not any(re.fullmatch(p, one) for p in [*always, *sometimes, "Prior `[0-9a-f]{12}`."])
    ]
    assert not typed, "the next make results deletes these paragraphs; put them into scripts/reports/texts"
    assert all(any(re.fullmatch(p, one) for one in page) for p in always), "the page was not written anew"


def test_results_become_a_table_and_metadata_that_the_hub_reads():
    row = {"dataset": "imagenet", "images": 100, "convention": "libjpeg", "quality_factor": 10}
    row |= {"chroma_subsampling": "4:2:0"}
    row |= {"preset": "paper-average", "settings": {"correction": "ddrm", **PRESETS["paper-average"]}}
    jpeg = row | {"method": "JPEG", "metrics": {"psnr": 24.126, "ssim": 0.7, "lpips": None}}
    ours = row | {"method": "Ours (A)", "metrics": {"psnr": 24.8, "ssim": 0.7004, "lpips": None}}
    rows = [jpeg, ours, jpeg | {"preset": None, "settings": {}}, jpeg | {"dataset": "kodak24"}]
    results = {"rows": rows, "command": ["ddrm-jpeg evaluate imagenet"], "versions": {"torch": "2.13"}}
    filled = pages.card((ROOT / "model_card.md").read_text(), results, pages.PRIOR.read_text())
    assert filled.count("| 10 | JPEG | 24.13 | **0.700** |") == 1
    assert "| 10 | Ours (A), paper-average | **24.80** | **0.700** |" in filled
    assert "<details>" in filled
    assert "ddrm-jpeg evaluate imagenet" in filled
    metrics = {(one.metric_name, one.metric_value) for one in ModelCard(filled).data.eval_results}
    assert metrics == {("PSNR (dB), Ours (A), paper-average", 24.8), ("SSIM, Ours (A), paper-average", 0.7)}
    assert pages.card(filled, results, pages.PRIOR.read_text()) == filled


@pytest.fixture
def checkout(photo, tmp_path):
    """The pages of a checkout, and two tiny images of two sets."""
    for name in ("README.md", "model_card.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name, left in (("kodak24", 40), ("mine", 160)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        photo.crop((left, 80, left + 40, 120)).save(tmp_path / "pictures" / name / "a.png")
    return tmp_path


def test_expected_errors_are_compared_with_actual_ones(checkout):
    folder, output = checkout / "pictures" / "kodak24", checkout / "docs" / "uncertainty"
    done = run("uncertainty.py", folder, "--size", "32", "--quality-factors", "10", "--output", output)
    assert done.returncode == 0, done.stderr
    record, page = json.loads(output.with_suffix(".json").read_text())["found"], output.with_suffix(".md").read_text()
    for name, found in record.items():
        expected = [part[0] for part in found["parts"]]
        assert expected == sorted(expected)
        assert found["pictures"][0] <= found["ratio"] <= found["pictures"][1]
        settings, _, factor = name.partition("; QF ")
        assert f"| {settings} | {factor} | {found['ratio']:.2f} |" in page
    assert [name for name, found in record.items() if "spread" in found] == ["`best`; QF 10"]


def test_what_is_said_about_uncertainty_is_what_was_measured():
    record = json.loads((ROOT / "docs" / "uncertainty.json").read_text())["found"]
    spreads = [found["spread"] for found in record.values() if "spread" in found]
    assert round(sum(spreads) / len(spreads)) == 7
    assert "about seven times as much" in (ROOT / "pipeline_ddrm_jpeg" / "sampling" / "samples.py").read_text()
    found = [found for name, found in record.items() if "sharpness" not in name]
    assert all(0.8 < one["ratio"] < 1.25 for one in found)
    least, most = min(one["pictures"][0] for one in found), max(one["pictures"][1] for one in found)
    assert (round(2 * least) / 2, round(2 * most) / 2) == (0.5, 1.5)
    assert "off by half as much, or by one and a half times" in (ROOT / "space" / "presentation.py").read_text()


def test_one_command_makes_every_number_anew(checkout, prior_folder):
    arguments = ["--prior", prior_folder, "--size", "32", "--root", checkout, "--work", checkout / "build"]
    done = run("", checkout / "pictures", *arguments, "--only", "results", "pages")
    assert done.returncode == 0, done.stdout + done.stderr
    evaluated = {path: path.stat().st_mtime_ns for path in (checkout / "build").glob("*/images/*/*.json")}
    rows = [row for path in evaluated for row in json.loads(path.read_text())]
    assert {row["convention"] for row in rows} == {"libjpeg", "released"}
    shown = next(
        f"{row['psnr']:.2f}"
        for row in rows
        if (row["dataset"], row["convention"], row["method"]) == ("kodak24", "libjpeg", "JPEG")
        and (row["chroma_subsampling"], row["quality_factor"]) == ("4:2:0", 5)
    )
    for name in ("README.md", "model_card.md", "docs/results.md"):
        assert shown in (checkout / name).read_text(), name
    assert "\n1 images of Kodak" in (checkout / "README.md").read_text()

    again = run("", checkout / "pictures", *arguments, "--only", "results")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in evaluated} == evaluated, "nothing is evaluated twice"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a folder that holds one folder of images for each set: make results PICTURES=FOLDER\n"),
        (["pictures/mine"], "pictures/mine holds no folders; put the images of each set in one\n"),
    ],
)
def test_pictures_that_are_missing_get_one_sentence(checkout, arguments, sentence):
    done = run("", *(checkout / name for name in arguments))
    assert done.returncode == 1
    assert done.stderr.endswith(sentence)
    assert done.stderr.count("\n") == 1


def test_samplers_are_compared_at_equal_cost_and_not_computed_twice(photo, tmp_path):
    (tmp_path / "set").mkdir()
    photo.save(tmp_path / "set" / "a.png")
    arguments = [
        tmp_path / "set",
        "--size",
        "32",
        "--quality-factors",
        "20",
        "--evaluations",
        "6",
        "--step-sizes",
        "32",
    ]
    for _ in range(2):
        done = run("samplers.py", *arguments, "--output", tmp_path / "samplers")
        assert done.returncode == 0, done.stderr
    assert str(tmp_path / "samplers.json") not in done.stdout, "all of it was known"
    text = (tmp_path / "samplers.md").read_text()
    assert text.count("| 6 | 6 |") == text.count("| 6 | 2 |") == 2
    assert "gradient checkpointing |" in text
    assert str(tmp_path) not in text


def test_corrections_are_compared_and_not_computed_twice(photo, tmp_path):
    (tmp_path / "set").mkdir()
    photo.save(tmp_path / "set" / "a.png")
    arguments = [tmp_path / "set", "--size", "32", "--quality-factors", "20", "--evaluations", "2"]
    for _ in range(2):
        done = run("corrections.py", *arguments, "--output", tmp_path / "corrections")
        assert done.returncode == 0, done.stderr
    assert str(tmp_path / "corrections.json") not in done.stdout, "all of it was known"
    text = (tmp_path / "corrections.md").read_text()
    assert text.count("| 2 |") == 7
    assert "| 1.0 |" in text
    assert text.count("| fast |") == 6
    assert str(tmp_path) not in text
    store = tmp_path / "corrections.json"
    known = json.loads(store.read_text())
    assert text.endswith(f"Prior `{known['prior_sha256'][:12]}`.\n")
    store.write_text(json.dumps(known | {"prior_sha256": "that of other weights"}))
    done = run("corrections.py", *arguments, "--output", tmp_path / "corrections")
    assert str(store) in done.stdout, "numbers of other weights are measured anew"
    assert json.loads(store.read_text()) == known


def test_graphics_are_drawn_alike_for_a_seed_and_differ_between_seeds(tmp_path):
    drawn = [graphics.draw(tmp_path / str(number), seed) for number, seed in enumerate((3, 3, 4))]
    for drawing in graphics.DRAWINGS:
        first, again, other = (np.asarray(Image.open(folder / f"{drawing.__name__}.png")) for folder in drawn)
        assert first.shape == (256, 256, 3)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
