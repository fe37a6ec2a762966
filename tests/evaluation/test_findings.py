"""An analysis in words: each sentence says what the numbers say."""

from limbeck.evaluation.findings import best_match, describe, which_layers
from tests.evaluation.analyses import analysis, layer_runs, score


def said(**parts):
    found = analysis(["one", "other"], [3, 3])
    return describe(found | {"parts": parts})


def runs_of(curve, seeds=1):
    return [
        {"model": "one", "keep_blocks": k, "label_fraction": 0.1, "seed": s, "top1": top1 + s / 100}
        for k, top1 in curve.items()
        for s in range(seeds)
    ]


def test_all_parts_have_their_section():
    found = analysis(["one", "other"], [4, 12])
    text = describe(found | {"notes": ["Something was left out."]})
    sections = [line for line in text.splitlines() if line.startswith("#")]
    assert sections == [
        "# Analysis", "## Similarity of layers", "## Attention", "## Probes of every block",
        "## Which layers matter", "## Notes",
    ]  # fmt: skip
    assert (
        "Measured on 1,024 images (held-out images, stratified, seed 0, 10 of 10 classes)" in text
    )
    assert "- Something was left out." in text
    assert "| one " in text and "16 px" in text and "0123456789ab " in text


def test_where_the_similarity_falls():
    cka = [[0.9, 0.1], [0.8, 0.85], [0.3, 0.4], [0.35, 0.2]]
    text = said(similarity=[{"first": "one", "second": "other", "cka": cka}])
    assert (
        "one resembles other most at layer 0 (CKA 0.90, with its layer 0) and least at layer 3 "
        "(0.35); the last layer has 0.35. It falls most in block 1, from 0.85 to 0.40." in text
    )


def test_no_fall_is_said_too():
    cka = [[0.5, 0.4], [0.6, 0.5], [0.58, 0.59]]
    text = said(similarity=[{"first": "one", "second": "other", "cka": cka}])
    assert (
        "the last layer has 0.59. From layer to layer it nowhere falls by more than 0.05." in text
    )


def test_layers_without_a_value():
    cka = [[0.5, None], [None, None], [0.2, None]]
    assert best_match(cka) == [(0.5, 0), (None, None), (0.2, 0)]
    text = said(similarity=[{"first": "one", "second": "other", "cka": cka}])
    assert "nowhere falls" in text  # what is unknown is no fall
    cka = [[None], [None]]
    text = said(similarity=[{"first": "one", "second": "other", "cka": cka}])
    assert "one and other: no layer can be compared." in text


def test_a_network_with_itself():
    cka = [[1, 0.9, 0.3], [0.9, 1, 0.4], [0.3, 0.4, 1]]
    text = said(similarity=[{"first": "one", "second": "one", "cka": cka}])
    assert "one with itself: first and last layer 0.30; block 1 changes most" in text
    assert "(its input and output: 0.40)" in text


def attention_of(distance, entropy):
    depth = len(distance)
    return {
        "distance": distance, "entropy": entropy,
        "uniform_distance": [100.0] * depth, "uniform_entropy": [5.0] * depth,
    }  # fmt: skip


def test_how_far_heads_look():
    values = attention_of([[20, 30], [10, 20], [60, 80]], [[1, 2], [1, 1], [4, 5]])
    text = said(attention={"one": values})
    assert "block 2 looks farther than block 0 (mean distance 70.0 and 25.0 px; a head" in text
    assert (
        "everywhere alike has 100.0). Most local is block 1 (15.0 px), most global block 2" in text
    )
    assert "from 1.50 to 4.50 nats (everywhere alike: 5.00); the heads of block 2 reach" in text
    values = attention_of([None, [50, 51], [51, 50]], [None, [1, 1], [1, 1]])
    text = said(attention={"one": values})
    assert "block 2 looks about as far as block 1" in text and "Most local" not in text
    text = said(attention={"one": attention_of([None], [None])})
    assert "one: no block attends to all tokens." in text


def test_which_block_knows_most():
    probes = {
        "knn_top1": [score(0.5), score(0.8), score(0.6)],
        "linear_top1": [score(0.5), score(0.62), score(0.6)],
    }
    text = said(probing={"one": probes})
    assert "kNN: block 1 is best with 80.0 % [77.0, 83.0], 20.0 points above the last, 60.0" in text
    assert "linear: block 1 is best with 62.0 % [59.0, 65.0], 2.0 points above the last" in text
    assert text.count("(the intervals overlap)") == 1
    probes = {name: [score(0.7), score(0.7)] for name in probes}
    assert "kNN: the last block is best with 70.0 %" in said(probing={"one": probes})


def test_what_kept_blocks_gain():
    (text,) = which_layers(runs_of({0: 0.5, 3: 0.79, 6: 0.8, 12: 0.81}, seeds=2))
    assert text.startswith("one, 10 % of the labels, top-1 by kept blocks: 0: 50.5 %, 3: 79.5 %,")
    assert "Keeping 12 instead of 0 gives +31.0 points (standard deviation over seeds up to" in text
    assert text.endswith("nine tenths of that are there with 3.")


def test_what_may_be_chance_is_said():
    (text,) = which_layers(runs_of({0: 0.5, 12: 0.51}, seeds=3))
    assert "gives +1.0 points" in text and text.endswith("no more than chance may give.")
    (text,) = which_layers(runs_of({0: 0.5, 12: 0.9}))
    assert text.endswith("+40.0 points (one seed each: the luck of a run is not known).")
    (text,) = which_layers(runs_of({0: 0.9, 12: 0.5}, seeds=2))
    assert "-40.0 points" in text and "nine tenths" not in text
    assert which_layers(runs_of({3: 0.5}))[0].endswith("3: 50.0 %.")
    assert len(which_layers(layer_runs(["a", "b"], 12))) == 4


def test_layers_that_are_all_alike_are_not_ranked():
    cka = [[0.98, 0.97], [0.97, 0.99]]
    text = said(similarity=[{"first": "one", "second": "other", "cka": cka}])
    assert "one resembles other alike at all layers (CKA 0.98 to 0.99)." in text
    assert "most at layer" not in text
