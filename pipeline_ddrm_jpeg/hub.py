"""What makes a saved pipeline a Hub repo that loads on its own, without this package installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import HfApi

# The modules that pipeline.py needs, itself included. It must name each of them in a relative import of its own:
# diffusers copies just those beside it when it loads a repo.
_MODULES = (
    "pipeline",
    "entropy_decoding",
    "hub",
    "jpeg_file",
    "operators",
    "quantization",
    "scheduling_ddrm",
    "tiling",
)


def add_code(folder: Path) -> None:
    """Put the code beside saved components, and have `model_index.json` name it.

    The scheduler's module goes to `scheduler/` as well: diffusers looks for the code of a component there.
    """
    here = Path(__file__).parent
    for module in _MODULES:
        shutil.copyfile(here / f"{module}.py", folder / f"{module}.py")
    shutil.copyfile(here / "scheduling_ddrm.py", folder / "scheduler" / "scheduling_ddrm.py")
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text())
    index["_class_name"] = ["pipeline", "DDRMJPEGPipeline"]
    index["scheduler"] = ["scheduling_ddrm", "DDRMScheduler"]
    index_path.write_text(json.dumps(index, indent=2) + "\n")


def upload(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload a saved pipeline to the Hub, making the repo if need be; returns its address.

    Raises:
        OSError: where the Hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload pipeline")
    except Exception as error:  # the HTTP library's own classes differ from release to release
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise OSError(f"{repo_id} was not uploaded: {reason}") from error
    return str(address)
