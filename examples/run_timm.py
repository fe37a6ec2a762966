"""The classes of a photo, with timm alone:

limbeck export RUN --to timm --out net.safetensors; python run_timm.py net.safetensors photo.jpg
"""

import json
import sys
from pathlib import Path

import timm
from PIL import Image, ImageOps
from safetensors.torch import load_file
from timm.data import create_transform

file, photo = sys.argv[1:]
said = json.loads(Path(f"{file}.json").read_text())
known = said["preprocessing"]
shown = create_transform(
    (3, *known["size"]), mean=known["mean"], std=known["std"], interpolation="bicubic",
    crop_pct=known["size"][0] / known["shorter_side"],
)  # fmt: skip
network = timm.create_model(said["timm"]["name"], **said["timm"]["kwargs"]).eval()
network.load_state_dict(load_file(file))
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
(logits,) = network(shown(image)[None])
print(said["classes"][logits.argmax()])
