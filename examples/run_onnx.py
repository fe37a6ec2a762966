"""The classes of a photo, with ONNX Runtime alone:

limbeck export RUN --to onnx --input uint8 --out net.onnx; python run_onnx.py net.onnx photo.jpg
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

file, photo = sys.argv[1:]
said = json.loads(Path(f"{file}.json").read_text())
size, shorter = said["preprocessing"]["size"][0], said["preprocessing"]["shorter_side"]
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
scale = shorter / min(image.size)
image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
left, top = ((side - size) // 2 for side in image.size)
pixels = np.asarray(image.crop((left, top, left + size, top + size)))[None]
network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
(logits,) = network.run(["logits"], {"images": pixels})[0]
least = said["proof"]["thresholds"].get("file", {}).get("threshold", 0)
sure = 1 / np.exp(logits - logits.max()).sum() >= least  # the confidence from which to accept it
print(said["classes"][logits.argmax()] if sure else "unsure")
