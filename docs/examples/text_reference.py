"""A text over a photo: a small CLIP learns drawn shapes, and its reasons for a caption are tested.

  python -m pip install -e '.[torch,onnx]' transformers
  python docs/examples/text_reference.py

Nothing is downloaded: the model (transformers' CLIPModel) is made here and learns in some 20 s of
one core that "a red circle" goes with pictures that hold one. Then pictures of two shapes are
explained by the caption of one of them. The true shape is known, so it is counted how often the
map's strongest point lies in its quarter of the picture: by chance one time in four. With weights
from elsewhere the same three steps do; see docs/text.md.
"""

import itertools
import os
import pathlib
import sys

import numpy as np
import torch
import tqdm
import transformers

import sane_jax

SIDE = 32
COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.75, 0.2), "blue": (0.15, 0.25, 0.95)}
SHAPES = ("circle", "square", "cross")
CAPTIONS = [f"a {colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]
WORDS = ["<pad>", "a", *COLOURS, *SHAPES, "<start>", "<end>"]
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def draw(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """A picture [h w 3] of two shapes of two colours in two quadrants; pixels [h w] by caption."""
  picture = 0.55 + 0.05 * rng.normal(size=(SIDE, SIDE, 3))
  y, x = np.mgrid[:SIDE, :SIDE]
  where = {}
  colours = rng.choice(list(COLOURS), 2, replace=False)
  for colour, quadrant in zip(colours, rng.choice(4, 2, replace=False), strict=True):
    shape = str(rng.choice(SHAPES))
    cy, cx = (SIDE / 4 + SIDE / 2 * np.array(divmod(quadrant, 2))) + rng.uniform(-1.5, 1.5, 2)
    dy, dx = np.abs(y - cy), np.abs(x - cx)
    inside = {
      "circle": np.hypot(dy, dx) < 5.5,
      "square": np.maximum(dy, dx) < 5,
      "cross": (np.minimum(dy, dx) < 2) & (np.maximum(dy, dx) < 6),
    }[shape]
    picture[inside] = np.array(COLOURS[str(colour)]) + 0.03 * rng.normal(size=3)
    where[f"a {colour} {shape}"] = inside
  return picture.clip(0, 1).astype(np.float32), where


def tokens(captions: list[str]) -> torch.Tensor:
  """Word numbers [n 5]; a real CLIP has a tokenizer for this."""
  return torch.tensor(
    [[WORDS.index(w) for w in ("<start>", *c.split(), "<end>")] for c in captions]
  )


def make_clip() -> transformers.CLIPModel:
  """CLIP's two towers, small, with random weights."""
  size: dict = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
  text = transformers.CLIPTextConfig(
    vocab_size=len(WORDS), max_position_embeddings=5, num_hidden_layers=1, pad_token_id=0,
    bos_token_id=WORDS.index("<start>"), eos_token_id=WORDS.index("<end>"), **size,
  )  # fmt: skip
  image = transformers.CLIPVisionConfig(image_size=SIDE, patch_size=8, num_hidden_layers=2, **size)
  config = transformers.CLIPConfig(
    text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=32
  )
  config._attn_implementation = "eager"  # which ONNX can hold
  return transformers.CLIPModel(config)


class ImageTower(torch.nn.Module):
  """CLIP's images -> embeddings, as sane_jax.from_torch takes them."""

  def __init__(self, clip: transformers.CLIPModel):
    super().__init__()
    self.clip = clip

  def forward(self, pixels):
    out = self.clip.get_image_features(pixel_values=pixels)
    return getattr(out, "pooler_output", out)  # transformers before 5 gives the tensor itself


def embed_texts(clip: transformers.CLIPModel, ids: torch.Tensor) -> torch.Tensor:
  out = clip.get_text_features(input_ids=ids)
  return getattr(out, "pooler_output", out)


def train(clip: transformers.CLIPModel, steps: int, batch: int = 64, seed: int = 0) -> float:
  """Teaches which captions go with a picture (a sigmoid for each, Zhai et al. 2023).

  Returns:
    How often, on pictures that were not seen, the two captions of the picture are its best two.
  """
  rng = np.random.default_rng(seed)
  ids, unit = tokens(CAPTIONS), torch.nn.functional.normalize
  bias = torch.nn.Parameter(torch.tensor(-2.0))
  optimizer = torch.optim.AdamW([*clip.parameters(), bias], lr=2e-3, weight_decay=0.01)
  schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
  tower = ImageTower(clip)

  def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    pictures, truths = zip(*(draw(rng) for _ in range(count)), strict=True)
    pixels = torch.from_numpy((np.stack(pictures).transpose(0, 3, 1, 2) - 0.5) / 0.25).float()
    return pixels, torch.tensor([[float(c in truth) for c in CAPTIONS] for truth in truths])

  def cosine(pixels: torch.Tensor) -> torch.Tensor:
    return unit(tower(pixels), dim=1) @ unit(embed_texts(clip, ids), dim=1).T

  pixels, labels = drawn(2000)
  clip.train()
  for _ in tqdm.trange(steps, desc="training", disable=None):
    some = torch.from_numpy(rng.integers(len(pixels), size=batch))
    logits = 10 * cosine(pixels[some]) + bias
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[some])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
  clip.eval()
  pixels, labels = drawn(300)
  with torch.inference_mode():
    best = cosine(pixels).topk(2, dim=1).indices
    return float((labels.gather(1, best).sum(dim=1) == 2).float().mean())


def point(explainer: sane_jax.Explainer, clip, count: int, seed: int = 1) -> tuple[float, float]:
  """How often the map of a picture lies on what its caption names.

  Returns:
    Of `count` new pictures, the share whose map's top pixel is in the quarter of the caption's
    shape, and that in the quarter of the other.
  """
  rng = np.random.default_rng(seed)
  hits = np.zeros(2)
  with torch.inference_mode():
    vectors = embed_texts(clip, tokens(CAPTIONS)).numpy()
  for _ in range(count):
    picture, where = draw(rng)
    caption, other = rng.permutation(list(where))
    e = explainer.explain(
      picture, reference_embedding=vectors[CAPTIONS.index(caption)], reference_name=str(caption)
    )
    top = np.unravel_index(np.argmax(e.saliency_map), e.saliency_map.shape)
    quadrants = [_quadrant(where[name]) for name in (caption, other)]
    hits += [q == (top[0] // (SIDE // 2), top[1] // (SIDE // 2)) for q in quadrants]
  return tuple(hits / count)


def _quadrant(inside: np.ndarray) -> tuple[int, int]:
  row, column = np.argwhere(inside).mean(axis=0)
  return int(row // (SIDE // 2)), int(column // (SIDE // 2))


def export(clip: transformers.CLIPModel, path: str | os.PathLike[str]) -> None:
  """The image tower as an ONNX file that takes any number of images."""
  torch.onnx.export(
    ImageTower(clip).eval(), (torch.zeros(2, 3, SIDE, SIDE),), os.fspath(path), dynamo=False,
    input_names=["pixels"], output_names=["embeddings"], opset_version=17,
    dynamic_axes={"pixels": {0: "images"}, "embeddings": {0: "images"}},
  )  # fmt: skip


def main(folder: str = "runs/text", steps: int = 300, pictures: int = 40) -> dict[str, float]:
  out = pathlib.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  torch.manual_seed(0)
  clip = make_clip().eval()
  design = sane_jax.Hadamard(grid=(4, 4), num_masks=64)

  def explainer(model: sane_jax.Model) -> sane_jax.Explainer:
    return sane_jax.Explainer(model, design=design, fill="mean")

  model = sane_jax.from_torch(ImageTower(clip), image_size=SIDE, mean=MEAN, std=STD)
  untrained = point(explainer(model), clip, pictures)
  known = train(clip, steps)
  right, wrong = point(explainer(model), clip, pictures)
  export(clip, out / "clip_images.onnx")
  exported = sane_jax.from_onnx(os.fspath(out / "clip_images.onnx"), mean=MEAN, std=STD)

  picture, where = draw(np.random.default_rng(7))
  caption = next(iter(where))
  with torch.inference_mode():
    (vector,) = embed_texts(clip, tokens([caption])).numpy()
  one, other = (
    explainer(m).explain(picture, reference_embedding=vector, reference_name=caption)
    for m in (model, exported)
  )
  apart = float(
    np.abs(one.saliency_map - other.saliency_map).max() / np.abs(one.saliency_map).max()
  )
  page = one.to_html(out / "why.html")
  print(
    f"both captions of a new picture found: {known:.0%}\n"
    f"the caption's shape is pointed at: {right:.0%}, the other one: {wrong:.0%}"
    f" (before training {untrained[0]:.0%} and {untrained[1]:.0%})\n"
    f"torch and ONNX differ by {apart:.1e} of the map's largest value\nopen {page}"
  )
  return {
    "known": known, "right": right, "wrong": wrong, "untrained": untrained[0], "apart": apart,
  }  # fmt: skip


if __name__ == "__main__":
  main(*sys.argv[1:2])
