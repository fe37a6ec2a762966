"""The objects in a photo, with ONNX Runtime alone: class, score, left, top, right and bottom.

limbeck export RUN --to onnx --input uint8 --out net.onnx; python run_onnx_boxes.py net.onnx x.jpg
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

file, photo = sys.argv[1:]
said = json.loads(Path(f"{file}.json").read_text())
(side, _), fill = said["preprocessing"]["size"], said["preprocessing"]["fill"]
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
width, height = (max(1, round(each * side / max(image.size))) for each in image.size)
square = Image.new("RGB", (side, side), tuple(fill))
square.paste(image.resize((width, height), Image.Resampling.BILINEAR))
network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
outputs = network.run(["boxes", "scores", "classes"], {"images": np.asarray(square)[None]})
scale = np.divide(image.size * 2, (width, height) * 2)
least = said["proof"]["thresholds"].get("file", {}).get("threshold", 0.3)
for box, score, kind in zip(*(each[0] for each in outputs), strict=True):
    if score >= least:
        corners = np.clip(box * scale, 0, image.size * 2)
        print(said["classes"][kind], f"{score:.3f}", *corners.round(1).tolist())
