"""The plain versions that every ratio is against: distillation as one writes it first.

Teacher in float32 to its end, attention as explicit softmax(q k^T) v, relation maps held whole and
differentiated by autograd, the student up to its last block's queries, keys and values, torchvision
transforms on PIL images, AdamW as it comes. It shares the networks' weights with ours, no code.
"""

import io
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from limbeck.data.source import Source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Qkv = tuple[Tensor, Tensor, Tensor]


def plain_batches(
    source: Source, batch_size: int, img_size: int, jitter: float = 0.4
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (student's, teacher's) of normalised images (B, 3, S, S), on the CPU.

    Both see one crop and flip, and the student alone the colour jitter; without jitter they are
    one tensor.
    """
    shared = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                img_size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
        ]
    )
    disturb = transforms.ColorJitter(jitter, jitter, jitter)
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    place = 0
    while True:
        views = []
        for _ in range(batch_size):
            data = source.read(place % len(source)).data
            crop = shared(Image.open(io.BytesIO(data)).convert("RGB"))
            views.append(
                (to_tensor(disturb(crop)), to_tensor(crop)) if jitter else (to_tensor(crop),)
            )
            place += 1
        sides = [torch.stack(side) for side in zip(*views, strict=True)]
        yield sides[0], sides[-1]


def plain_relation_loss(
    student_a: Tensor, student_b: Tensor, teacher_a: Tensor, teacher_b: Tensor
) -> Tensor:
    """KL(teacher || student) of whole relation maps, by autograd; (B, nh, N, hd) each."""
    student = (student_a @ student_b.transpose(-2, -1)) * student_a.shape[-1] ** -0.5
    teacher = (teacher_a @ teacher_b.transpose(-2, -1)) * teacher_a.shape[-1] ** -0.5
    log_ratio = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none")
    return log_ratio.sum(dim=-1).mean()


def plain_losses(student: Qkv, teacher: Qkv) -> Tensor:
    """QK + VV."""
    (s_q, s_k, s_v), (t_q, t_k, t_v) = student, teacher
    return plain_relation_loss(s_q, s_k, t_q, t_k) + plain_relation_loss(s_v, s_v, t_v, t_v)


def plain_student(model: nn.Module, images: Tensor) -> Qkv:
    """Queries, keys and values of the last block of a timm ViT; nothing after them is run."""
    x = _embed(model, images)
    for block in model.blocks[:-1]:
        x, _ = _run_block(block, x)
    return _qkv(model.blocks[-1], x)


@torch.no_grad()
def plain_teacher(model: nn.Module, images: Tensor) -> Qkv:
    """The same of a network that runs to its end, as one that is handed to a hook does."""
    x = _embed(model, images)
    for block in model.blocks:
        x, qkv = _run_block(block, x)
    model.norm(x)
    return qkv


def plain_d_mae_loss(
    student: nn.Module,
    decoder: nn.Module,
    mixer: Tensor,
    target: Tensor,
    images: Tensor,
    ids_shuffle: Tensor,
    num_keep: int,
) -> Tensor:
    """D-MAE's loss of normalised images (B, 3, H, W): the decoder draws every patch.

    ``target`` the teacher's scores (B, nh, N, N), ``ids_shuffle`` (B, L) a permutation whose first
    ``num_keep`` patches are seen.
    """
    scores, tokens = plain_masked(student, images, ids_shuffle[:, :num_keep])
    mixed = torch.einsum("th,bhij->btij", mixer, scores)
    x = plain_decoded(decoder, tokens, ids_shuffle, len(decoder.decoder_blocks))
    guess = decoder.decoder_pred(decoder.decoder_norm(x))[:, 1:]  # [B, L, p * p * 3]
    side = int((guess.shape[-1] / 3) ** 0.5)
    pixels = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, gh, gw, p, p]
    pixels = pixels.permute(0, 2, 3, 4, 5, 1).reshape(guess.shape)
    pixels = pixels - pixels.mean(dim=-1, keepdim=True)
    pixels = pixels / (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    is_masked = (ids_shuffle.argsort(dim=1) >= num_keep).float()
    error = ((guess - pixels) ** 2).mean(dim=-1)
    return (error * is_masked).sum() / is_masked.sum() + F.mse_loss(mixed.float(), target.float())


def plain_generic_loss(
    student: nn.Module,
    decoder: nn.Module,
    projection: nn.Module,
    target: Tensor,
    images: Tensor,
    ids_shuffle: Tensor,
    num_keep: int,
) -> Tensor:
    """G2SD's generic loss of normalised images: smooth L1 (beta 2) to the normed ``target``.

    ``target`` (B, 1 + L, D): of the teacher's decoder. The rest as of ``plain_d_mae_loss``.
    """
    _, tokens = plain_masked(student, images, ids_shuffle[:, :num_keep])
    x = plain_decoded(decoder, tokens, ids_shuffle, len(decoder.decoder_blocks))
    target = F.layer_norm(target.float(), target.shape[-1:], eps=1e-6)
    return F.smooth_l1_loss(projection(x).float(), target, beta=2.0)


def plain_specific_loss(
    student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """G2SD's specific loss: the distillation token, last, learns the teacher's arg-max.

    ``teacher`` pools the patches before its norm. Both see images normalised alike.
    """
    with torch.no_grad():
        pooled = _run(teacher, _embed(teacher, images))[:, 1:].mean(dim=1)
        target = teacher.head(teacher.fc_norm(pooled)).argmax(dim=1)
    token = student.dist_token.expand(len(images), -1, -1)
    x = student.norm(_run(student, torch.cat((_embed(student, images), token), dim=1)))
    from_labels = F.cross_entropy(student.head(x[:, 0]), labels)
    return (from_labels + F.cross_entropy(student.head_dist(x[:, -1]), target)) / 2


def plain_decoded(
    decoder: nn.Module, tokens: Tensor, ids_shuffle: Tensor, num_blocks: int
) -> Tensor:
    """The tokens (B, 1 + L, Dd) of all patches after that many blocks of a decoder.

    ``tokens`` (B, 1 + kept, D) are of the first patches of ``ids_shuffle`` (B, L).
    """
    x = decoder.decoder_embed(tokens)
    B, L = ids_shuffle.shape
    hidden = decoder.mask_token.expand(B, L + 1 - x.shape[1], -1).to(x.dtype)
    ids_restore = ids_shuffle.argsort(dim=1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    filled = torch.cat((x[:, 1:], hidden), dim=1).gather(1, ids_restore)
    x = torch.cat((x[:, :1], filled), dim=1) + decoder.decoder_pos_embed
    for block in decoder.decoder_blocks[:num_blocks]:
        x, _ = _run_block(block, x)
    return x


def plain_masked(model: nn.Module, images: Tensor, ids_keep: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the last block and the normed output of the patches kept; run to its end."""
    x = _embed(model, images)
    kept = x[:, 1:].gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    x = torch.cat((x[:, :1], kept), dim=1)  # [B, 1 + kept, D]
    for block in model.blocks:
        x, (q, k, _) = _run_block(block, x)
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5, model.norm(x)


def plain_segmenter(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the auxiliary head's, of UPerNet on a ViT with relative positions.

    ``network`` has the layers: a backbone of 12 blocks, the published neck and both heads.
    """
    model, x = network.backbone.model, _embed(network.backbone.model, images)
    rows, columns = model.patch_embed.grid_size
    taps = []
    for block in model.blocks:
        q, k, v = _qkv(block, x)
        attn, (table, places) = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, _table(block)
        attn = (attn + table[places].permute(2, 0, 1)).softmax(dim=-1)  # [B, nh, N, N]
        added = block.attn.proj((attn @ v).transpose(1, 2).flatten(2))
        x = x + block.drop_path1(block.gamma_1 * added)
        x = x + block.drop_path2(block.gamma_2 * block.mlp(block.norm2(x)))
        taps.append(x[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)))
    neck, head, aux = network.neck, network.head, network.aux_head
    maps = [neck.up4(taps[3]), neck.up2(taps[5]), taps[7], F.max_pool2d(taps[11], 2, 2)]
    pooled = [
        _resize(_unit(unit, F.adaptive_avg_pool2d(maps[3], side)), maps[3])
        for unit, side in zip(head.pools, (1, 2, 3, 6), strict=True)
    ]
    levels = [_unit(unit, x) for unit, x in zip(head.laterals, maps[:3], strict=True)]
    levels.append(_unit(head.bottleneck, torch.cat((maps[3], *pooled), dim=1)))
    for level in (2, 1, 0):
        levels[level] = levels[level] + _resize(levels[level + 1], levels[level])
    smooth = [_unit(unit, x) for unit, x in zip(head.smooth, levels[:3], strict=True)]
    joined = torch.cat([_resize(x, levels[0]) for x in (*smooth, levels[3])], dim=1)
    return _classify(head.classify, _unit(head.fuse, joined)), _classify(
        aux.classify, _unit(aux.unit, maps[2])
    )


def _table(block: nn.Module) -> tuple[Tensor, Tensor]:
    return block.attn.relative_position_bias_table, block.attn.relative_position_index


def _unit(unit: nn.Module, x: Tensor) -> Tensor:
    return F.relu(unit.norm(unit.conv(x)))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def _classify(end: nn.Module, x: Tensor) -> Tensor:
    return end.conv(end.dropout(x))


def _run(model: nn.Module, x: Tensor) -> Tensor:
    for block in model.blocks:
        x, _ = _run_block(block, x)
    return x


def _embed(model: nn.Module, images: Tensor) -> Tensor:
    x = model.patch_embed(images)  # [B, L, D]
    return torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1) + model.pos_embed


def _qkv(block: nn.Module, x: Tensor) -> Qkv:
    num_heads, width = block.attn.num_heads, x.shape[-1]
    qkv = block.attn.qkv(block.norm1(x))
    qkv = qkv.reshape(*x.shape[:2], 3, num_heads, width // num_heads)
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, nh, N, hd] each


def _run_block(block: nn.Module, x: Tensor) -> tuple[Tensor, Qkv]:
    q, k, v = _qkv(block, x)
    attn = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)  # [B, nh, N, N]
    x = x + block.drop_path1(block.attn.proj((attn @ v).transpose(1, 2).flatten(2)))
    return x + block.drop_path2(block.mlp(block.norm2(x))), (q, k, v)
