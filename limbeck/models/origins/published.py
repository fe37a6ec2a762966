"""An encoder, and its decoder, in MAE's published names (arXiv 2111.06377).

They are timm's names, so what is done here is to see that the layout can hold the network: readers
of such a file build MAE's own ViT from its sizes and compute with that.
"""

from timm.models.vision_transformer import VisionTransformer

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder
from limbeck.models.mae import MaeDecoder
from limbeck.models.origins.layouts import IMAGENET_NORM, Weights, name_list
from limbeck.models.vit import VitEncoder, has_usual_blocks

_PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def to_mae(
    encoder: Encoder, decoder: MaeDecoder | None = None
) -> tuple[Weights, dict[str, str], list[str]]:
    """The tensors of MAE's file, what they do not tell (as strings), and the names left out.

    Without a ``decoder`` it is the encoder-only file. A classifier is left out. Raises UserError
    for a network that the layout can't hold.
    """
    source = encoder.facts.origin.get("source", "the encoder")
    reasons = _misfits(encoder)
    if reasons:
        raise UserError(
            f"MAE's layout can't hold {source}: {'; '.join(reasons)}. It is for plain ViTs; "
            "safetensors files in timm's names are in every finished run."
        )
    facts = encoder.facts
    state = encoder.model.state_dict()
    left = [name for name in state if name.startswith("head.")]
    weights = {name: value for name, value in state.items() if name not in left}
    told = {"num_heads": str(facts.num_heads[0]), "source": str(source)}
    if decoder is not None:
        _check_fit(encoder, decoder, str(source))
        weights |= decoder.state_dict()
        told["decoder_num_heads"] = str(decoder.decoder_blocks[0].attn.num_heads)
        told["decoder_depth"] = str(len(decoder.decoder_blocks))
    # Copies: a file must not hold the storage of more than its tensors.
    return {name: value.detach().cpu().clone() for name, value in weights.items()}, told, left


def _misfits(encoder: Encoder) -> list[str]:
    """What MAE's layout has no place for, in words; nothing where it can hold the network."""
    facts = encoder.facts
    if not isinstance(encoder, VitEncoder) or type(encoder.model) is not VisionTransformer:
        name = facts.architecture.get("name", type(encoder).__name__)
        return [f"{name} is no plain ViT"]
    model = encoder.model
    places = {f"blocks.{index}.{part}" for index in range(facts.depth) for part in _PARTS}
    places |= {"patch_embed.proj", "norm"}
    known = {f"{place}.{end}" for place in places for end in ("weight", "bias")}
    known |= {"cls_token", "pos_embed"}
    own = {name for name in model.state_dict() if not name.startswith("head.")}
    reasons = []
    if own - known:
        reasons.append(f"there is no place for {name_list(sorted(own - known), 5)}")
    if known - own:
        reasons.append(f"it lacks {name_list(sorted(known - own), 5)}")
    num_rows = 1 + facts.grid[0] * facts.grid[1]
    if model.pos_embed is not None and model.pos_embed.shape[1] != num_rows:
        reasons.append(f"its {model.pos_embed.shape[1]} positions are not those of CLS and patches")
    if facts.grid[0] != facts.grid[1]:
        reasons.append(f"its images of {facts.img_size[0]} x {facts.img_size[1]} are not square")
    if len(set(facts.num_heads)) > 1:
        reasons.append(
            f"its blocks differ in heads ({', '.join(map(str, facts.num_heads))}), and --num-heads "
            f"{facts.num_heads[0]} gives all of them one count, as TinyMIM does with an adapted "
            "last block before it fine-tunes"
        )
    if not has_usual_blocks(model):
        reasons.append("its blocks are not pre-norm with GELU and an epsilon of 1e-6")
    if (tuple(facts.mean), tuple(facts.std)) != IMAGENET_NORM:
        reasons.append("its images are not normalised with ImageNet's mean and std")
    return reasons


def _check_fit(encoder: VitEncoder, decoder: MaeDecoder, source: str) -> None:
    facts = encoder.facts
    told = {
        "width of the encoder": (facts.embed_dim, decoder.decoder_embed.in_features),
        "patches": (facts.grid, decoder.grid),
        "values per patch": (3 * facts.patch_size**2, decoder.decoder_pred.out_features),
        "CLS token": (1, decoder.num_cls_tokens),
    }
    wrong = [f"{name} {own} and {theirs}" for name, (own, theirs) in told.items() if own != theirs]
    if wrong:
        raise UserError(f"Encoder and decoder of {source} do not fit: {', '.join(wrong)}.")
