"""The files of a Hugging Face repository, on the hub or in a local folder, told apart by names."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from limbeck.documents import fit, read_json
from limbeck.errors import UserError
from limbeck.files import MIB, is_inside, printable, read_file
from limbeck.models.finished import Count, Finite
from limbeck.models.origins.files import read_weights
from limbeck.models.origins.hub import AbsentError, fetch
from limbeck.models.origins.layouts import Weights
from limbeck.models.stated import MAX_SIDE
from limbeck.models.tensor_files import as_float32, read_safetensors

_INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILES = ("model.safetensors", _INDEX_FILE, "pytorch_model.bin")
_PROCESSOR_FILE = "preprocessor_config.json"


def _as_list(value: Any) -> Any:
    """One number for all channels, or both sides, as a list; {"height": ..., "width": ...} too."""
    if isinstance(value, dict) and value.keys() == {"height", "width"}:
        return [value["height"], value["width"]]
    return value if isinstance(value, list) or value is None else [value]


def _spread(value: Any) -> Any:
    value = _as_list(value)
    return value * 3 if isinstance(value, list) and len(value) == 1 else value


Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Sides = Annotated[list[Side], Field(min_length=1, max_length=2), BeforeValidator(_as_list)]
Three = Annotated[list[Finite], Field(min_length=3, max_length=3), BeforeValidator(_spread)]
Above0 = Annotated[Finite, Field(gt=1e-15)]
ThreeAbove0 = Annotated[list[Above0], Field(min_length=3, max_length=3), BeforeValidator(_spread)]
Heads = Annotated[int, Field(ge=1, le=1024)]
_Name = str | int | float


class UnaskedError(UserError):
    """Nobody could be asked whether there is a file."""


class Vision(TypedDict, total=False):
    """What of a vision encoder's config is read."""

    image_size: Sides
    hidden_act: str
    layer_norm_eps: Above0
    num_attention_heads: Heads
    use_gated_mlp: bool
    key_bias: bool
    rope_theta: Above0


class Pretrained(TypedDict, total=False):
    """What of a timm folder's config describes its weights; the rest is about where they lay."""

    input_size: Annotated[list[Side], Field(min_length=3, max_length=3)]
    fixed_input_size: bool
    mean: Three
    std: ThreeAbove0
    num_classes: Count
    license: str
    label_names: list[_Name] | dict[str, Any]


class HubConfig(Vision, Pretrained, total=False):
    """The ``config.json`` of a model of Hugging Face or timm, as far as it is read."""

    model_type: str
    vision_config: Vision
    id2label: dict[str, _Name]
    decoder_num_attention_heads: Heads
    decoder_num_hidden_layers: Heads
    architecture: str
    pretrained_cfg: Pretrained
    model_args: dict[str, Any]


class Processor(TypedDict, total=False):
    """What of an image processor's config is read."""

    do_rescale: bool
    rescale_factor: Annotated[float, Field(gt=1e-6, le=1000)]
    do_normalize: bool
    image_mean: Three
    image_std: ThreeAbove0


class _Index(TypedDict):
    weight_map: dict[str, str]


def read_hub_config(file: Path) -> HubConfig | None:
    """The ``config.json`` of a model of Hugging Face or timm; None if there is none.

    Raises UserError where it can't be read, or an entry is not what it should be.
    """
    if not file.is_file():
        return None
    config = _told(read_json(file))
    if not ("model_type" in config or "architecture" in config):
        return None
    inner = {key: _told(config[key]) for key in ("vision_config", "pretrained_cfg") & config.keys()}
    return fit(config | inner, HubConfig, str(file))


def _told(values: Any) -> Any:
    """An object without what is null, which stands for what is not said."""
    is_object = isinstance(values, dict)
    return {k: v for k, v in values.items() if v is not None} if is_object else values


def find_file(place: str | Path, names: tuple[str, ...], source: str) -> Path:
    """The first of ``names`` that a hub repository or a folder has; raises UserError without."""
    if not isinstance(place, Path):
        return fetch(place, names, source)
    for name in names:
        if (place / name).exists():
            return place / name
    raise AbsentError(f"{place} has none of the files {', '.join(names)}; complete the folder.")


def read_all(file: Path, place: str | Path, source: str) -> Weights:
    """All tensors of a weights file, or of the shards that an index lists, as float32."""
    if file.name != _INDEX_FILE:
        # Not through read_weights for safetensors: it strips prefixes that the renaming knows.
        if file.suffix != ".safetensors":
            return read_weights(file)[0]
        return as_float32(read_safetensors(file)[0], file)
    shards = sorted(set(read_json(file, _Index)["weight_map"].values()))
    for shard in shards:
        if not is_inside(shard):
            raise UserError(
                f"{file} names '{printable(shard)}', which is no file of its folder; get the "
                "folder again."
            )
    weights: Weights = {}
    for shard in shards:
        found = find_file(place, (shard,), source)
        weights |= as_float32(read_safetensors(found)[0], found)
    return weights


def read_processor(place: str | Path, source: str) -> Processor | None:
    """How images are prepared for a model; None where no file tells it.

    transformers 5 nests it in ``processor_config.json``, which goes before the file of earlier
    ones. Raises UserError where an entry is not what it should be, and UnaskedError where nothing
    that is at hand tells it and the hub can't be asked.
    """
    unasked: UnaskedError | None = None
    for name, inner in (("processor_config.json", "image_processor"), (_PROCESSOR_FILE, None)):
        try:
            file = find_optional(place, name, source)
        except UnaskedError as error:
            unasked = error
            continue
        said = read_json(file) if file else {}
        said = said if inner is None else said.get(inner)
        if said is not None and file:
            return fit(_told(said), Processor, str(file))
    if unasked is not None:
        raise unasked
    return None


def read_licence(place: str | Path, source: str) -> str | None:
    """The licence that a model card states in its head."""
    try:
        card = find_optional(place, "README.md", source)
        text = read_file(card, MIB).decode() if card else ""
    except (UnaskedError, OSError, UnicodeDecodeError):
        return None
    head = text.removeprefix("---\n").partition("\n---\n")[0] if text.startswith("---\n") else ""
    found = re.search(r"^license: *(\S+)", head, re.MULTILINE)
    return found.group(1) if found else None


def find_optional(place: str | Path, name: str, source: str) -> Path | None:
    """A file that need not be there, None where it is not.

    Raises UnaskedError where the hub does not tell, or does not give it.
    """
    try:
        return find_file(place, (name,), source)
    except AbsentError:
        return None
    except UserError as error:
        raise UnaskedError(str(error)) from error
