"""What makes a saved pipeline a Hub repo that loads on its own, without this package installed, and uploading it."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.utils import logging
from huggingface_hub import CommitInfo, HfApi, ModelCardData, get_token, hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from .modular_blocks import DDRMJPEGBlocks
from .priors import EMBEDDED, SCHEDULERS, Origin, origin_of

_HERE = Path(__file__).parent
# diffusers copies what a module names in lines like "from .module import", folder.module at most, and follows them in
# what it copies, with one request for each way that leads to a module. So in a repo what it loads, `pipeline.py` for
# both forms of the pipeline, ends with a list of all modules, and a space behind the first dot, which is nothing to
# Python, hides every other import. It copies into one package for all repos and loads into a module that is there, so
# what it loads begins anew, and imports a module of its own: an object that was loaded before keeps what it had.
_LOADED = '''"""What diffusers loads of this repo."""

import importlib
import sys

# Modules of the same names go that another repo, or another version of this one, has left in the same package.
_package = importlib.import_module(__package__)
for _name in """
{names}
""".split():
    sys.modules.pop(f"{{__package__}}.{{_name}}", None)
    vars(_package).pop(_name, None)

from . {module} import *  # noqa: E402, F403 once those are gone; all that the pipeline's module has
'''
_LIST = "\n\n# What diffusers copies beside this module. It looks for such lines and does not run them.\nif False:\n"
_MODULAR = "from .modular_blocks import DDRMJPEGBlocks  # the modular form\n"
_RELATIVE_IMPORT = re.compile(r"^(\s*from \.)(?=[\w.])", re.MULTILINE)
# What a repo holds for people beside the card, under the names that a checkout has for it too.
_DOCUMENTS = ("LICENSE", "examples/*.jpg")
_COMPARISON = "docs/comparison.png"  # of what the embedded prior does

_CARD = """# DDRM-JPEG with another prior

{purpose}

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(REPO, trust_remote_code=True)  # needs jpeglib
pipe("photo.jpg", num_samples=8).images[0].save("photo.png")
```

The code in this repo is loaded with the weights; `revision=` pins the commit that you have read. It is a modular
pipeline as well, for `ModularPipeline.from_pretrained`, and `diffusers-cli run` takes `{{"file": "photo.jpg"}}`.

{terms}

What the prior invents is plausible, not evidence: not for forensic or medical use.
"""
_PURPOSE = (
    'Restores JPEG files with {prior}, by "[JPEG Artifact Correction using Denoising Diffusion Restoration'
    ' Models](https://arxiv.org/abs/2209.11888)" (Kawar, Song, Ermon and Elad, 2022).'
)
_TERMS = "{terms} The code beside them is under the MIT licence, the images in `examples/` are in the public domain."

_PATIENCE = 10  # seconds for the Hub to answer, where it is asked without having been named

logger = logging.get_logger(__name__)


def _weights(variant: str | None) -> list[str]:
    """Patterns of the files that hold or list the weights of a variant, in whatever layout: shards, format."""
    dot = f".{variant}" if variant else ""
    layouts = (f"{dot}.KIND", f"{dot}-?????-of-?????.KIND", f".KIND.index{dot}.json")
    return [
        f"diffusion_pytorch_model{layout.replace('KIND', kind)}"
        for kind in ("safetensors", "bin")
        for layout in layouts
    ]


@contextmanager
def replacing(folder: Path, variant: str | None) -> Iterator[Path]:
    """An empty folder to save into, whose files at the end replace those of `folder`; an error leaves it as it was.

    Weights of the same variant in another layout leave it: some of them would be loaded instead of the new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".saving-", dir=folder) as name:
        yield Path(name)
        new = [path.relative_to(name) for path in Path(name).rglob("*") if path.is_file()]
        for path in new:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (name / path).replace(folder / path)
        for pattern in _weights(variant):
            for path in (folder / "unet").glob(pattern):
                if path.relative_to(folder) not in new:
                    path.unlink()


def complete(folder: Path, unet: torch.nn.Module) -> None:
    """Make a repo of the components in a folder: code beside them, card, licence and example images.

    A repo that the prior was loaded from hands its own card on; for the embedded prior that is `model_card.md`. Any
    other prior gets a card that claims nothing but the licence found where the prior came from.
    """
    _add_code(folder)
    origin = origin_of(unet)
    if origin:
        _fetch_documents(origin)
    source = origin.folder if origin else None
    package = next((root for root in (EMBEDDED, _HERE.parent) if (root / "model_card.md").exists()), None)
    repo = source if source and (source / "pipeline.py").exists() else None
    root, card = (package, "model_card.md") if source == EMBEDDED else (repo, "README.md")
    if root and (root / card).exists() and _is_as_stored(unet, source):
        _copy(root, folder, *_DOCUMENTS, _COMPARISON)
        shutil.copyfile(root / card, folder / "README.md")
    else:
        if package or repo:
            _copy(package or repo, folder, *_DOCUMENTS)
        _write_other_card(folder, origin)


def _add_code(folder: Path) -> None:
    """Put the code beside saved components, and the scheduler's to `scheduler/` too, where diffusers looks for it."""
    copy_modules(_HERE, "pipeline", folder, _MODULAR)
    DDRMJPEGBlocks().save_pretrained(folder)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    name = config["_class_name"] if config["_class_name"] in SCHEDULERS else "DDRMScheduler"
    module = _module_of(name)
    copy_modules(Path(inspect.getfile(SCHEDULERS[name])).parent, module, folder / "scheduler")
    named = {
        "model_index.json": {"_class_name": ["pipeline", "DDRMJPEGPipeline"], "scheduler": [module, name]},
        "modular_config.json": {"auto_map": {"ModularPipelineBlocks": "pipeline.DDRMJPEGBlocks"}},
        "unet/config.json": {},
    }
    for path, changes in named.items():
        config = json.loads((folder / path).read_text()) | changes
        config.pop("_name_or_path", None)  # a path of whoever saved it; and a second save must equal the first
        _write_json(folder / path, config)
    _write_modular_index(folder)


def copy_modules(package: Path, module: str, folder: Path, end: str = "") -> None:
    """A module that diffusers will load, and all that it needs, in the form that diffusers takes."""
    texts = {name: (package / f"{name}.py").read_text("utf-8") for name in needed(package, module)}
    if _LIST not in texts[module]:  # as in a repo
        texts = {name: _RELATIVE_IMPORT.sub(r"\1 ", text) for name, text in texts.items()}
        texts[f"{module}_itself"] = texts.pop(module)
        names = sorted(name.replace("/", ".") for name in texts)
        names_of_folders = sorted({name.partition(".")[0] for name in names if "." in name})
        texts[module] = _LOADED.format(names="\n".join([*names, *names_of_folders]), module=f"{module}_itself")
        texts[module] += _LIST + "".join(f"    from .{name} import *\n" for name in names) + end
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text, "utf-8")


def needed(package: Path, module: str) -> list[str]:
    """A module of a package and all that it imports of it, but for what an `__init__.py` says: `"folder/module"`."""
    found, new = set(), {package / f"{module}.py"}
    while new:
        found |= new
        named = set()
        for path in new:
            for level, source, imported in _relative_imports(path.read_text("utf-8")):
                place = path.parents[level - 1].joinpath(*source.split("."))
                named |= {place, *(place / one for one in imported)}  # any of them may be a module
        new = {path for path in (place.with_suffix(".py") for place in named) if path.is_file()} - found
    return sorted(path.relative_to(package).with_suffix("").as_posix() for path in found)


@cache  # of all modules it takes longer than the rest of a save
def _relative_imports(text: str) -> list[tuple[int, str, list[str]]]:
    """What a module's text imports from its package: from how far up, from which module, and which names."""
    return [
        (node.level, node.module or "", [one.name for one in node.names])
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def _module_of(name: str) -> str:
    """The module of one of our schedulers, as a repo has it beside its config."""
    return SCHEDULERS[name].__module__.rpartition(".")[2]


def _write_modular_index(folder: Path, repo_id: str | None = None, revision: str | None = None) -> None:
    """Say where a modular pipeline loads its components from: a Hub repo, or the folder that it is itself loaded from.

    The scheduler is named as one of diffusers' own: only such are found there. The blocks make what they need of it.
    """
    index = json.loads((folder / "model_index.json").read_text())
    content = {"_blocks_class_name": "DDRMJPEGBlocks", "_class_name": "ModularPipeline"}
    content |= {name: index.get(name) for name in ("_diffusers_version", "denoiser_error")}
    for name, kind in {"unet": ("diffusers", "UNet2DModel"), "scheduler": ("diffusers", "DDPMScheduler")}.items():
        place = {"pretrained_model_name_or_path": repo_id, "revision": revision, "variant": None}
        content[name] = [*kind, {"subfolder": name, "type_hint": kind} | place]
    _write_json(folder / "modular_model_index.json", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_card(folder: Path, prior: str, terms: str, **metadata: Any) -> None:
    """Write the card of a pipeline whose prior is not the embedded one.

    `prior` is what the prior is, in Markdown: "Restores JPEG files with ..."; `terms` are sentences on what the weights
    may be used for; the rest goes into the YAML header (`license`, `license_name`, `license_link`, `base_model`).
    """
    data = ModelCardData(
        library_name="diffusers", pipeline_tag="image-to-image", tags=["jpeg", "image-restoration", "ddrm"], **metadata
    )
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False).fill
    words = {"purpose": wrap(_PURPOSE.format(prior=prior)), "terms": wrap(_TERMS.format(terms=terms))}
    card = f"---\n{data.to_yaml()}\n---\n{_CARD.format(**words)}"
    (folder / "README.md").write_text(card, "utf-8")


def _write_other_card(folder: Path, origin: Origin | None) -> None:
    """The card of a prior of which only the place it came from may be known."""
    stated = _metadata(origin.folder) if origin else {}
    metadata = {name: stated[name] for name in ("license", "license_name", "license_link") if name in stated}
    prior = "a prior of its own"
    if origin and origin.repo_id:
        metadata["base_model"] = origin.repo_id
        prior = f"the prior of [{origin.repo_id}](https://huggingface.co/{origin.repo_id})"
    terms = "It is not known under which terms the weights may be used."
    if "license" in metadata:
        name = metadata.get("license_name", metadata["license"])
        terms = f"The weights stay under the terms that their own card states ({name})."
    write_card(folder, prior, terms, **metadata)


def _fetch_documents(origin: Origin) -> None:
    """Have the card and other documents of a Hub repo in the cache, where they are allowed to be fetched and can be."""
    known = all((origin.folder / name).exists() for name in ("README.md", "LICENSE"))
    if origin.repo_id is None or origin.local_files_only or known:
        return
    try:
        info = HfApi(token=origin.token).model_info(origin.repo_id, revision=origin.commit, timeout=_PATIENCE)
        for name in (file.rfilename for file in info.siblings):
            if any(fnmatch(name, pattern) for pattern in ("README.md", "pipeline.py", *_DOCUMENTS, _COMPARISON)):
                place = {"revision": origin.commit, "cache_dir": origin.cache_dir, "token": origin.token}
                hf_hub_download(origin.repo_id, name, **place, etag_timeout=_PATIENCE)
    except Exception as error:  # the HTTP library's own classes differ from release to release
        logger.warning(
            f"The card of {origin.repo_id} at {origin.commit}, asked for at {HfApi().endpoint}, could not be fetched,"
            f" and is not saved: {first_line(error)}"
        )


def _is_as_stored(unet: torch.nn.Module, source: Path) -> bool:
    """Whether the prior still has the weights of its repo, and so deserves the card of it: judged by its last layer."""
    weight = unet.conv_out.weight.detach()
    if weight.is_meta:  # offloaded to disk
        return True
    found = []
    for path in (source / "unet").glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            found += [stored.get_tensor(name) for name in stored.keys() if name == "conv_out.weight"]  # noqa: SIM118 not iterable
    return any(torch.equal(one.to(weight.dtype), weight.cpu()) for one in found)


def _copy(source: Path, target: Path, *patterns: str) -> None:
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def _metadata(folder: Path) -> dict[str, Any]:
    """The YAML header of a repo's card; empty if there is none that can be read."""
    try:
        return metadata_load(folder / "README.md") or {}
    except Exception:  # no file, no text, no YAML: the classes of three libraries
        return {}


def assemble_space(folder: Path) -> None:
    """Put the web demo into an empty folder: `space/` of this checkout, and the package.

    Raises `FileNotFoundError` where there is no `space/`.
    """
    source = _HERE.parent / "space"
    if not (source / "app.py").exists():
        raise FileNotFoundError("there is no space/app.py beside the package; push the Space from a checkout")
    rubbish = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, folder, ignore=rubbish, dirs_exist_ok=True)
    shutil.copytree(_HERE, folder / _HERE.name, ignore=rubbish)


def check(folder: Path, repo_id: str) -> None:
    """Raise `ValueError` if a folder cannot be published under a name; the Hub is not asked."""
    validate_repo_id(repo_id)
    if not _metadata(folder).get("license"):
        raise ValueError(
            f"{repo_id} was not uploaded: its card names no licence for the weights; write `license: ...` into the"
            " metadata of the README.md beside the prior"
        )


def name_repo(folder: Path, repo_id: str) -> None:
    """Write the repo's name where its card shows how to load it."""
    text = (folder / "README.md").read_text("utf-8").replace("from_pretrained(REPO,", f'from_pretrained("{repo_id}",')
    (folder / "README.md").write_text(text, "utf-8")


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    repo_type: str = "model",
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    variant: str | None = None,
) -> CommitInfo:
    """Upload a folder to the Hub, making repo and branch if need be; returns the commit, with its pull request.

    Where nothing differs there is no commit. Weights that the folder does not have (old shards, another format, a
    variant made of older weights) leave the repo; where a `variant` is uploaded, only those of this variant. Raises as
    `push_to_hub` of the pipeline.
    """
    folder = Path(folder)
    check(folder, repo_id)
    token = token or get_token()
    if token is None:
        raise OSError(f"{repo_id} was not uploaded: no token of the Hub; run `hf auth login` or set HF_TOKEN")
    api = HfApi(token=token)
    try:
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        repo_id = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **sdk).repo_id
        place = {"repo_id": repo_id, "repo_type": repo_type}
        if revision is not None:
            api.create_branch(**place, branch=revision, exist_ok=True)
        if repo_type == "model":
            _write_modular_index(folder, repo_id, revision)
        commit = api.upload_folder(
            **place,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload pipeline",
            ignore_patterns=["**/__pycache__/**"],
            delete_patterns=["unet/*"] if variant is None else [f"unet/{name}" for name in _weights(variant)],
        )
        if repo_type == "model" and not create_pr:
            _upload_modular(api, folder, repo_id, revision, commit.oid)
        return commit
    except Exception as error:  # the HTTP library's own classes differ from release to release
        raise OSError(f"{repo_id} was not uploaded: {_reason(error, api)}".replace(token, "***")) from None


def _upload_modular(api: HfApi, folder: Path, repo_id: str, revision: str | None, commit: str) -> None:
    """Put the modular form alone on a branch, without `model_index.json`, beside which `diffusers-cli` ignores it."""
    branch = f"{revision}-modular" if revision else "modular"
    api.create_branch(repo_id, branch=branch, exist_ok=True)
    with TemporaryDirectory() as name:
        copy_modules(folder, "pipeline", Path(name), _MODULAR)
        _copy(folder, Path(name), "*.md", "LICENSE", "modular_config.json", "model_index.json")
        _write_modular_index(Path(name), repo_id, commit)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=name,
            revision=branch,
            commit_message=f"The modular form of {commit}",
            ignore_patterns=["model_index.json"],
            delete_patterns=["model_index.json", "unet/*", "scheduler/*"],
        )


_MEANINGS = {
    401: "the Hub does not accept the token; run `hf auth login` again",
    403: "the token may not write there",
    404: "there is no such owner, repo or branch, or the token may not see it",
}


def _reason(error: Exception, api: HfApi) -> str:
    said = getattr(error, "server_message", None) or first_line(error)
    if not isinstance(error, HfHubHTTPError):
        return f"talking to the Hub at {api.endpoint} failed ({said})"
    status = error.response.status_code
    return f"{_MEANINGS.get(status, 'the Hub refused')} ({status}: {said})"


def first_line(error: Exception) -> str:
    """What an error says first, or what it is."""
    return str(error).partition("\n")[0] or type(error).__name__


class PublishedPipeline:
    """The part of a pipeline that makes it a repo: loaded as the class that is asked for, saved whole, uploaded."""

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """The index of a repo, as one of the class that is asked to load it, which then needs no code of the repo."""
        return {**super()._dict_from_json_file(json_file), "_class_name": cls.__name__}

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """As of the base class, with the scheduler's class as the one imported here, which needs no trust.

        diffusers 0.42 does not pass `trust_remote_code` on where it plans a `device_map="balanced"`.
        """
        components, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        module, name = components.get("scheduler") or ("", "")
        if name in SCHEDULERS and module == _module_of(name):
            components["scheduler"] = (SCHEDULERS[name].__module__, name)
        return components, unused, hidden

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
    ) -> None:
        """Write the pipeline as a repo that `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` loads.

        Beside components and code it has a card, a licence and example images. The card is that of the repo the
        prior was loaded from (a Hub repo is asked for it, unless it is in the cache or `local_files_only` was given),
        or one that states no more than the prior's licence. Arguments are those of diffusers; weights of the same
        `variant` that are there in another layout go.

        Raises:
            ValueError: for `push_to_hub=True`; the method of that name uploads.
            OSError: if a file cannot be written; the folder then is as it was.
        """
        if push_to_hub:
            raise ValueError("save_pretrained does not upload; call push_to_hub(repo_id) instead")
        with replacing(Path(save_directory), variant) as folder:
            super().save_pretrained(folder, safe_serialization, variant, max_shard_size, use_flashpack=use_flashpack)
            complete(folder, self.unet)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        max_shard_size: int | str | None = None,
        revision: str | None = None,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes to `"owner/name"`; repo and branch (`revision`) are made if need be.

        Weights that were in the repo and are not uploaded now leave it, so that nobody loads old ones; those of other
        variants stay where a `variant` is pushed. Gives the commit: its `oid`, which is the `revision` to name for
        loading just this; `repo_url`; and `pr_url`.

        Raises:
            ValueError: for a name that no repo can have, or a prior whose card names no licence.
            OSError: where the Hub refuses or cannot be reached.
        """
        options = {"commit_message": commit_message, "create_pr": create_pr, "variant": variant}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size)
            name_repo(Path(folder), repo_id)
            return upload(folder, repo_id, private, revision, token=token, **options)
