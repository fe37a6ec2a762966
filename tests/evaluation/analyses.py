"""Made-up analyses, as ``limbeck analyze`` writes them."""

import math
import random


def similarity(first, second, rows, columns):
    """A heat map that fades away from the diagonal and towards the top."""
    cka = [
        [
            math.exp(-4 * abs(i / rows - j / columns)) * (1 - 0.6 * (i / rows) ** 3)
            for j in range(columns + 1)
        ]
        for i in range(rows + 1)
    ]
    return {"first": first, "second": second, "cka": cka, "reasons": []}


def attention(depth, heads, rng):
    """Heads that spread as blocks go on."""
    distance = [
        [40 + 70 * block / depth + 25 * rng.random() for _ in range(heads)]
        for block in range(depth)
    ]
    return {
        "distance": distance,
        "entropy": [[each / 30 for each in block] for block in distance],
        "uniform_distance": [116.5] * depth,
        "uniform_entropy": [5.28] * depth,
        "num_images": 1024,
    }


def score(mean):
    """As ``Score.plain``."""
    low, high = max(0.0, mean - 0.03), min(1.0, mean + 0.03)
    return {"mean": mean, "low": low, "high": high, "num_test": 1024}


def probing(depth, top):
    """Accuracy that grows to ``top`` before the last blocks and falls a little then."""
    curve = [top * (1 - math.exp(-3 * (b + 1) / depth)) for b in range(depth)]
    curve[-1] -= 0.08
    return {
        "knn_top1": [score(0.8 * value) for value in curve],
        "linear_top1": [score(value) for value in curve],
    }


def layer_runs(names, depth, fractions=(1.0, 0.1), seeds=3):
    """More blocks help, the more so with few labels."""
    rng = random.Random(1)
    return [
        {
            "model": name,
            "keep_blocks": count,
            "label_fraction": fraction,
            "seed": seed,
            "top1": 0.8 - 0.3 * (1 - fraction) * (1 - count / depth) + 0.02 * rng.random()
            - 0.05 * place + 0.1 * (1 - math.exp(-4 * count / depth)),
            "run": f"layers/{name}",
        }
        for place, name in enumerate(names)
        for fraction in fractions
        for count in (0, depth // 4, depth // 2, depth)
        for seed in range(seeds)
    ]  # fmt: skip


def analysis(names, depths):
    """All parts for networks of these names and depths; the layers of all against the last."""
    rng = random.Random(0)
    models = [
        {
            "name": name, "weights": "0123456789abcdef", "architecture": {}, "depth": depth,
            "embed_dim": 192, "num_heads": [12] * depth, "patch_size": 16, "img_size": [224, 224],
        }
        for name, depth in zip(names, depths, strict=True)
    ]  # fmt: skip
    return {
        "models": models,
        "images": {
            "from": "held-out images", "num_images": 1024, "sampling": "stratified", "seed": 0,
            "num_classes": 10, "num_classes_covered": 10, "fingerprint": "0" * 32,
        },
        "parts": {
            "similarity": [
                similarity(name, names[-1], depth, depths[-1])
                for name, depth in zip(names, depths, strict=True)
            ],
            "attention": {
                name: attention(depth, 12, rng) for name, depth in zip(names, depths, strict=True)
            },
            "probing": {
                name: probing(depth, 0.9 - 0.1 * place)
                for place, (name, depth) in enumerate(zip(names, depths, strict=True))
            },
            "layers": layer_runs(names, depths[0]),
        },
        "notes": [],
    }  # fmt: skip
