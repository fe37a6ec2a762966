"""Stored tokens say what the live teacher says, to the precision in which they are stored.

That every arm of every method can be trained from them or says why not is in
tests/contracts/test_targets.py.
"""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load, save

from limbeck.data.options import StoreOptions
from limbeck.data.target_store.manifest import Manifest, read_manifest
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.attention_map import AttentionMap
from limbeck.methods.cls_token import ClsToken
from limbeck.methods.distiller import Distiller
from limbeck.methods.feature import Feature
from limbeck.methods.logit import Logit
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.methods.options import RegressionOptions
from limbeck.methods.relation import Relation
from limbeck.methods.targets import StoredTeacher, plan_targets
from limbeck.methods.teacher import Teacher
from limbeck.models.build import keep_dropping_paths, set_drop_path
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder
from tests.methods.decoder_reader import DecoderReader
from tests.models.families import DEPTH, EMBED_DIM, small_encoder

CPU = torch.device("cpu")
NUM_PATCHES = 16
NO_PIXELS = {"weight": 0.0}
L1 = RegressionOptions(mask_patch_size=8)

# A token errs by up to 2^-8 in bf16 and by about as much in int8; a loss is a mean of many such
# errors, which are independent. In a teacher that computes in bf16 they also tip its own roundings.
CLOSE = {"bf16": 0.005, "int8": 0.01}
every_code = pytest.mark.parametrize("dtype", CLOSE)


def build(kind=Relation, family="augreg", precision="fp32", **options):
    """Student, method and live teacher."""
    student, teacher = small_encoder("augreg"), small_encoder(family)
    method = kind(kind.Options(**options), student.facts, teacher.facts)
    for tap in method.student_taps:
        if tap.num_heads:
            student.set_num_heads(tap.block, tap.num_heads)
    return student, method, Teacher(teacher, CPU, precision)


def plan(method, teacher, dtype="int8"):
    return plan_targets(StoreOptions(token_dtype=dtype), method, teacher)


def manifest_of(targets, teacher):
    """As read from the disk."""
    manifest = Manifest(
        kind=targets.kind,
        params=targets.params,
        arrays=targets.arrays,
        teacher={"facts": asdict(teacher.facts), "precision": teacher.precision},
        recipe={"seed": 0},
        num_views=1,
        num_parts=1,
        data={},
        versions={},
    )
    return read_manifest(manifest.to_json(), "store")


def reopened(targets, teacher):
    """The teacher of what is on the disk."""
    return StoredTeacher(manifest_of(targets, teacher), load(save(targets.weights)), CPU)


def batch():
    images, teacher_images = torch.rand(2, 4, 3, 32, 32)
    return Batch(images, teacher_images, None, tuple("abcd"), torch.arange(4))


def both_losses(student, method, teacher, dtype):
    """The losses of one batch by a live and by a stored teacher."""
    one, targets = batch(), plan(method, teacher, dtype)
    arrays = targets.encode(teacher.answer(method.prepare(one), targets.taps))
    stored = reopened(targets, teacher)
    live = Distiller(student, method, teacher)(one)
    return live, Distiller(student, method, stored)(replace(one, targets=arrays))


@every_code
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "family", ["augreg", "dinov2-registers-swiglu", "deit-distilled", "siglip", "beit", "dinov3"]
)
def test_relations_are_those_of_the_live_teacher(family, precision, dtype):
    live, stored = both_losses(*build(family=family, precision=precision), dtype)
    for name, part in live.parts.items():
        torch.testing.assert_close(stored.parts[name], part, rtol=CLOSE[dtype], atol=0)


@every_code
@pytest.mark.parametrize("family", ["augreg", "dinov2-registers-swiglu", "deit-distilled"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Relation, {"teacher_block": 1, "mask_ratio": 0.5}),
        (Relation, {"mask_ratio": 0.5, "teacher_sees": "all"}),
        (Relation, {"mask_ratio": 0.5, "masking": "mask-token", "regression": L1}),
        (ClsToken, {}),
        (ClsToken, {"teacher_block": 0}),
        (AttentionMap, {"mask_ratio": 0.5, "reconstruction": NO_PIXELS}),
        (AttentionMap, {"mask_ratio": 0.5, "target": "maps"}),
        (AttentionMap, {"mask_ratio": 0.5, "target": "tokens"}),
    ],
)
def test_so_are_masked_scores_and_tokens(family, kind, options, dtype):
    live, stored = both_losses(*build(kind, family, "bf16", **options), dtype)
    torch.testing.assert_close(stored.total, live.total, rtol=CLOSE[dtype], atol=0)


@every_code
@pytest.mark.parametrize(
    "target",
    [
        *("qkv", "queries", "keys", "values", "attention_output", "attention_tokens"),
        *("mlp_output", "tokens", "output"),
    ],
)
def test_so_are_all_features_of_the_block(target, dtype):
    live, stored = both_losses(*build(Feature, precision="bf16", target=target), dtype)
    torch.testing.assert_close(stored.total, live.total, rtol=CLOSE[dtype], atol=0)


def test_a_teacher_with_a_mask_token_of_its_own_sees_the_mask():
    student, _, live = build()
    live.encoder.mask_token = torch.randn(1, 1, EMBED_DIM)
    options = {"mask_ratio": 0.5, "masking": "mask-token", "regression": L1}
    method = Relation(Relation.Options(**options), student.facts, live.facts)
    losses = both_losses(student, method, live, "bf16")
    torch.testing.assert_close(losses[0].total, losses[1].total, rtol=CLOSE["bf16"], atol=0)
    targets = plan(method, live)
    assert targets.params["num_tokens"] == 1 + NUM_PATCHES
    with pytest.raises(UserError, match="shows the teacher whole images and .* masking mask-token"):
        targets.check(build()[1])


def test_tokens_that_bf16_holds_exactly_give_the_live_answer_to_the_bit():
    _, method, teacher = build(precision="bf16")
    targets = plan(method, teacher, "bf16")
    tokens = teacher(batch().images, None, targets.taps).taps[targets.tap].bfloat16().float()
    stored = reopened(targets, teacher)
    shown = targets.encode(Features(None, 1, (4, 4), {targets.tap: tokens}))
    again = stored.answer(replace(batch(), targets=shown), method.teacher_taps)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        live = teacher.encoder.continue_from(targets.tap.block, tokens, method.teacher_taps)
    for tap, value in live.taps.items():
        assert value.dtype == torch.bfloat16 and torch.equal(again.taps[tap], value)


def test_the_precision_is_the_teacher_s_whatever_the_student_s():
    _, method, teacher = build(precision="fp32")
    targets = plan(method, teacher)
    arrays = targets.encode(teacher(batch().images, None, targets.taps))
    with torch.autocast("cpu", torch.bfloat16):
        shown = replace(batch(), targets=arrays)
        answer = reopened(targets, teacher).answer(shown, method.teacher_taps)
    assert {value.dtype for value in answer.taps.values()} == {torch.float32}


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_what_a_view_takes_on_disk(mask_ratio):
    _, method, teacher = build(mask_ratio=mask_ratio)
    n, d = 1 + (4 if mask_ratio else NUM_PATCHES), EMBED_DIM
    for dtype, num_bytes in (("int8", n * (d + 2) + 4 * d), ("bf16", 2 * n * d)):
        targets = plan(method, teacher, dtype)
        shown = method.prepare(batch())
        arrays = targets.encode(teacher.answer(shown, targets.taps))
        assert sum(array[0].nbytes for array in arrays.values()) == num_bytes
        for name, spec in targets.arrays.items():
            assert arrays[name].shape[1:] == spec.shape
            assert str(arrays[name].dtype) == f"torch.{spec.dtype}"


def test_only_the_block_is_kept_of_the_teacher():
    _, method, teacher = build(teacher_block=1)
    assert all(name.startswith("model.blocks.1.") for name in plan(method, teacher).weights)
    of_last = set(plan(build()[1], teacher).weights)
    assert {"model.norm.weight", "model.blocks.2.norm1.weight"} <= of_last


def test_a_store_serves_all_methods_of_its_block():
    _, method, teacher = build()
    stored = reopened(plan(method, teacher), teacher)
    for kind, options in (
        (Feature, {"target": "output"}),
        (Feature, {"target": "attention_output"}),
        (ClsToken, {}),
        (Relation, {"relations": ("qq",), "teacher_block": DEPTH - 1}),
        (Relation, {"mask_ratio": 0.5, "teacher_sees": "all"}),
    ):
        stored.check(build(kind, **options)[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher_block": 0}, "reads block 0 .* the store has the tokens before block 2; set"),
        ({"mask_ratio": 0.5}, "masking drop, mask_ratio 0.5, .* saw whole images; set the same"),
    ],
)
def test_what_the_store_does_not_tell_is_refused(options, words):
    _, method, teacher = build()
    stored = reopened(plan(method, teacher), teacher)
    with pytest.raises(UserError, match=words):
        stored.check(build(**options)[1])


def test_another_mask_ratio_is_another_mask():
    _, method, teacher = build(mask_ratio=0.5)
    with pytest.raises(UserError, match="mask_ratio 0.75.* mask_ratio 0.5"):
        plan(method, teacher).check(build(mask_ratio=0.75)[1])


def test_methods_without_inner_tensors_of_a_teacher_say_so():
    student, _, teacher = build()
    alone = MaskedPixel(MaskedPixel.Options(), student.facts, None)
    with pytest.raises(UserError, match="MaskedPixel has no teacher, so there is nothing to store"):
        plan(alone, teacher)
    logit = Logit(Logit.Options(), student.facts, teacher.facts)
    with pytest.raises(UserError, match="Logit reads the teacher's logits, .* probabilities"):
        plan(logit, teacher)


def test_several_blocks_are_named():
    _, method, teacher = build(AttentionMap, block_pairs=((0, 0), (1, 2)))
    with pytest.raises(UserError, match="AttentionMap reads blocks 0, 2 of the teacher"):
        plan(method, teacher)


def test_a_mask_that_the_method_does_not_state_is_refused():
    class Own(Relation):
        def prepare(self, batch):
            return batch

    _, _, teacher = build()
    method = Own(Own.Options(), small_encoder("augreg").facts, teacher.facts)
    with pytest.raises(UserError, match="does not say which patches it shows .* shown_to_teacher"):
        plan(method, teacher)
    Own.shown_to_teacher = lambda self: {}
    assert plan(method, teacher).params["shown"] == {}


@pytest.mark.parametrize("family", ["dinov3", "beit"])
def test_kept_tokens_that_need_their_places_are_refused_before_anything_is_stored(family):
    _, method, teacher = build(family=family, mask_ratio=0.5)
    with pytest.raises(UserError, match="needs the places of its tokens.*teacher_sees all"):
        plan(method, teacher)


def test_a_teacher_that_is_disturbed_is_refused():
    _, method, teacher = build()
    set_drop_path(teacher.encoder, [0.1, 0.1, 0.0])
    keep_dropping_paths(teacher.encoder)
    with pytest.raises(UserError, match="drop path says something else each time"):
        plan(method, teacher)


def test_a_teacher_of_one_s_own_that_can_t_go_on_is_refused():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method = Relation(Relation.Options(), student.facts, teacher.facts)
    with pytest.raises(UserError, match="can't go on from the tokens"):
        plan(method, Teacher(teacher, CPU, "fp32"))


@every_code
def test_tokens_that_are_not_finite_are_never_stored(dtype):
    _, method, teacher = build()
    targets = plan(method, teacher, dtype)
    tokens = torch.zeros(1, 1 + NUM_PATCHES, EMBED_DIM)
    tokens[0, 3, 3] = torch.inf
    with pytest.raises(NotFiniteError, match="before block 2 are not finite"):
        targets.encode(Features(None, 1, (4, 4), {Tap("block_input", 2): tokens}))


# --- A decoder's tokens --------------------------------------------------------------------------


def build_reader(precision="fp32", **options):
    """Student, method and a live masked autoencoder with two blocks in its decoder."""
    student, encoder = small_encoder("augreg"), small_encoder("dinov2-registers-swiglu")
    decoder = MaeDecoder(EMBED_DIM, (4, 4), 8, 24, 2, 3, True)
    teacher = Teacher(MaskedAutoencoder(encoder, decoder), CPU, precision)
    method = DecoderReader(DecoderReader.Options(**options), student.facts, teacher.facts)
    return student, method, teacher


@every_code
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("block", [0, -1])
def test_a_decoder_s_tokens_are_those_of_the_live_teacher(block, precision, dtype):
    live, stored = both_losses(*build_reader(precision, block=block), dtype)
    torch.testing.assert_close(stored.total, live.total, rtol=CLOSE[dtype], atol=0)


def test_of_a_decoder_nothing_but_its_tokens_is_stored():
    _, method, teacher = build_reader(block=-2)
    targets = plan(method, teacher, "bf16")
    assert targets.weights == {} and targets.tap == Tap("decoder_tokens", 0)
    # The CLS token and every place, with a mask token where nothing was seen; no registers.
    assert targets.params["num_tokens"] == 1 + NUM_PATCHES
    arrays = targets.encode(teacher.answer(method.prepare(batch()), targets.taps))
    assert arrays["tokens"].shape == (4, 17, 24)
    torch.testing.assert_close(targets.distance(arrays, arrays), torch.zeros(4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": 1}, "reads block 1 of the decoder of the teacher and .* after block 0 of the d"),
        ({"block": 2}, "reads block 2 of the decoder .* after block 0 of the decoder"),
        ({"encoder_too": True}, "both the teacher's decoder and its encoder.* the decoder alone"),
    ],
)
def test_what_a_store_of_decoder_tokens_does_not_tell_is_refused(options, words):
    student, method, teacher = build_reader()
    stored = reopened(plan(method, teacher), teacher)
    stored.check(build_reader(block=-2)[1])
    other = DecoderReader(DecoderReader.Options(**options), student.facts, teacher.facts)
    with pytest.raises(UserError, match=words):
        stored.check(other)


def test_a_store_of_one_network_is_not_one_of_the_other():
    _, method, teacher = build_reader()
    stored = reopened(plan(method, teacher), teacher)
    relation = Relation(Relation.Options(), small_encoder("augreg").facts, teacher.facts)
    with pytest.raises(UserError, match="reads block 2 of the teacher .* after block 0 of the dec"):
        stored.check(relation)


def test_a_block_that_the_decoder_lacks_is_never_planned():
    student, _, teacher = build_reader()
    method = DecoderReader(DecoderReader.Options(block=2), student.facts, teacher.facts)
    with pytest.raises(UserError, match="there is no block 2 in it"):
        plan(method, teacher)


def test_decoder_tokens_that_are_not_finite_are_told_by_their_place():
    _, method, teacher = build_reader()
    targets = plan(method, teacher)
    tokens = torch.full((1, 17, 24), torch.nan)
    with pytest.raises(NotFiniteError, match="after block 0 of the decoder are not finite"):
        targets.encode(Features(None, 1, (4, 4), {targets.tap: tokens}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_of_a_store_that_states_no_precision_it_is_that_of_the_weights(precision):
    _, method, teacher = build(precision=precision)
    targets = plan(method, teacher)
    manifest = manifest_of(targets, teacher)
    del manifest.teacher["precision"]
    assert StoredTeacher(manifest, targets.weights, CPU).precision == precision


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"block": 99}, "its tokens are of block 99 of 3"),
        ({"block": -1}, "its tokens are of block -1 of 3"),
        ({"block": "1"}, "'block' is '1'"),
        ({"point": "logits"}, "'point' is 'logits'"),
        ({"point": "decoder_tokens"}, "its tokens are of block 2 of 0"),
        ({"dtype": "float128"}, "'dtype' is 'float128'"),
        ({"num_tokens": 2**40}, r"no tokens of \(1099511627776, 32\) int8"),
        ({"shown": []}, "'shown' is "),
    ],
)
def test_what_a_store_says_that_can_not_be_is_told(params, said):
    _, method, teacher = build()
    targets = plan(method, teacher)
    manifest = manifest_of(targets, teacher)
    manifest.params.update(params)
    with pytest.raises(UserError, match=f"teacher and targets can't be .*{said}.*; write it again"):
        StoredTeacher(manifest, targets.weights, CPU)


@pytest.mark.parametrize("how", ["none", "one less", "one more", "another shape", "no place"])
def test_weights_of_another_block_are_told(how):
    _, method, teacher = build()
    targets = plan(method, teacher)
    weights = targets.weights
    name = next(iter(weights))
    value = weights.pop(name)
    weights = {
        "none": {},
        "one less": weights,
        "one more": targets.weights | {"model.blocks.0.norm1.weight": torch.ones(EMBED_DIM)},
        "another shape": weights | {name: value[..., :3]},
        "no place": weights | {"../../x": value},
    }[how]
    with pytest.raises(UserError, match="teacher and targets can't be .*; write it again in anoth"):
        StoredTeacher(manifest_of(targets, teacher), weights, CPU)
