"""Are the standard errors of the default design right? On photos, against a pool of masks.

  python benchmarks/coverage.py FOLDER [--size 96] [--replicates 24]

FOLDER holds photos, in folders of their own or not. For four of them `--replicates` of 128 masks
are measured behind each fill alone, and as many with pairs of masks taking turns. Maps of 256, 512
and 1,024 masks are then put together from replicates at random, each with the error that the
library would give, and compared with the mean of the replicates that it lacks. Prints Markdown
tables: errors against what they claim, how many maps name a cell where nothing is there (the same
maps less the truth), the error that an index keeps, and how far the fills' maps differ.
"""

import argparse
import pathlib

import numpy as np

import sane_jax
from sane_jax.ops import effects, resampling, statistics

FILLS = ("mean", "blur")
REPLICATE = 128
TRIALS = 8  # of each photo, reference and number of masks


def measure(model, photos, replicates):
  """E [photo replicate c d] behind each fill alone and with pairs in turn; photos' embeddings."""
  out = {}
  for fill in FILLS:
    explainer = sane_jax.Explainer(
      model, num_masks=REPLICATE * replicates, fill=fill, key=FILLS.index(fill)
    )
    out[fill] = np.stack([by_replicate(explainer.effects(photo)) for photo in photos[:4]])
  keys = range(10, 10 + replicates // 2)  # the default's two replicates, pairs in turn
  explainers = [sane_jax.Explainer(model, fill="+".join(FILLS), key=key) for key in keys]
  out["in turn"] = np.stack(
    [np.concatenate([by_replicate(e.effects(photo)) for e in explainers]) for photo in photos[:4]]
  )
  return out, explainers[0].embed(photos).astype(np.float64)


def by_replicate(measured):
  """E [replicate c d] as each replicate alone would have it."""
  smooth = resampling.neighbors(8, measured.design.smoothing)
  response = np.asarray(measured.moments.response, np.float64)[:, 1:]
  return np.einsum("cx,rxd->rcd", np.kron(smooth, smooth), 2 * response / REPLICATE)


def draw(rng, pool, count):
  """Replicates of one map, their strata, the truth of the others, and that truth's variance."""
  means = [pool[fill].mean(axis=0) for fill in FILLS]
  noise = sum(pool[fill].var(axis=0, ddof=1).mean() for fill in FILLS) / 4
  total = len(pool["mean"])
  if count == 2:  # too few for replicates of each fill
    chosen = rng.choice(total, count, replace=False)
    return pool["in turn"][chosen], 1, np.mean(means, axis=0), noise / total
  each = count // 2
  chosen = [rng.choice(total, each, replace=False) for _ in FILLS]
  blocks = np.stack([pool[f][i] for f, i in zip(FILLS, chosen, strict=True)], axis=1)
  rest = [np.delete(pool[f], i, axis=0) for f, i in zip(FILLS, chosen, strict=True)]
  truth = np.mean([r.mean(axis=0) for r in rest], axis=0)
  return blocks.reshape(count, *blocks.shape[2:]), 2, truth, noise / (total - each)


def leave_out(blocks, strata):
  """The map with each replicate left out in turn, fills keeping their equal parts."""
  each = len(blocks) // strata
  groups = blocks.reshape(each, strata, *blocks.shape[1:])
  return (blocks.mean(axis=0) + (groups.mean(axis=0) - groups) / ((each - 1) * strata)).reshape(
    blocks.shape
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--size", type=int, default=96)
  parser.add_argument("--replicates", type=int, default=24)
  options = parser.parse_args()
  sane_jax.use_all_cores()
  model = sane_jax.load_model("efficientnet_lite0", image_size=options.size)
  photos = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
  photos = [str(photos[i]) for i in np.linspace(0, len(photos) - 1, 8).astype(int)]
  pools, references = measure(model, photos, options.replicates)
  rng, valid = np.random.default_rng(0), np.ones(64, bool)
  print("| masks | error / claim | within 2 SE | within 95 % by t | a false cell | sure cells |")
  print("| ---: | ---: | ---: | ---: | ---: | ---: |")
  index = {}
  for count in (2, 4, 8):
    rows = []
    for q, r in np.ndindex(4, 8):
      if q == r:
        continue
      pool = {name: values[q] @ references[r] for name, values in pools.items()}
      for _ in range(TRIALS):
        blocks, strata, truth, doubt = draw(rng, pool, count)
        variance, dof = effects.moderated(leave_out(blocks, strata)[..., None], valid, strata)
        error, value = np.sqrt(variance[:, 0]), blocks.mean(axis=0)
        wide = error * np.sqrt(1 + doubt / variance.mean())  # the truth is of masks, too
        p = effects.p_values(value - truth, wide, float(dof[0]))
        sure = statistics.holm(effects.p_values(value, error, float(dof[0]))) <= 0.05
        rows.append(
          (
            ((value - truth) ** 2).mean() - doubt, (error**2).mean(),
            (np.abs(value - truth) < 2 * wide).mean(), (p > 0.05).mean(),
            (statistics.holm(p) <= 0.05).any(), sure.sum(),
          )
        )  # fmt: skip
    mse, claim, two, t, false, named = np.mean(rows, axis=0)
    print(
      f"| {count * REPLICATE} | {np.sqrt(mse / claim):.2f} | {100 * two:.1f} % | {100 * t:.1f} % |"
      f" {100 * false:.1f} % | {named:.1f} |"
    )
    for q in range(4):  # the index: all directions at once
      pool = {name: values[q] for name, values in pools.items()}
      blocks, strata, _, _ = draw(rng, pool, count)
      left_out = leave_out(blocks, strata)
      kept = {k: effects.error_factor(left_out, strata, k) for k in (8, 32)}
      sources = FILLS if strata > 1 else ("in turn",)
      for e in references:
        own, _ = effects.moderated((left_out @ e)[..., None], valid, strata)
        true = sum((pool[f] @ e).var(axis=0, ddof=1) for f in sources) / len(sources) / count
        for k, factor in kept.items():
          index.setdefault((count, f"{k} + rest"), []).append(
            (factor(e) / np.sqrt(true), factor(e) / np.sqrt(own[:, 0]))
          )
        trace = (kept[8].columns ** 2).sum()
        enlarged = np.linalg.norm(e @ kept[8].columns) * np.sqrt(
          1 + len(e) * kept[8].rest ** 2 / trace
        )
        index.setdefault((count, "8, enlarged (as it was)"), []).append(
          (enlarged / np.sqrt(true), enlarged / np.sqrt(own[:, 0]))
        )
  print("\n| masks | columns | index / true error of a cell | in 0.8 to 1.25 | of explainer's |")
  print("| ---: | --- | --- | ---: | ---: |")
  for (count, name), ratios in sorted(index.items()):
    true, own = (np.concatenate(r) for r in zip(*ratios, strict=True))
    low, middle, high = np.quantile(true, [0.05, 0.5, 0.95])
    near = [100 * np.mean((r > 0.8) & (r < 1.25)) for r in (true, own)]
    print(
      f"| {count * REPLICATE} | {name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {near[0]:.0f} % |"
      f" {near[1]:.0f} % |"
    )
  print("\n| photo | correlation of the fills' maps | half their rms difference | SE, 256 masks |")
  print("| ---: | ---: | ---: | ---: |")
  for q in range(4):
    a, b = (pools[fill][q] @ references[(q + 1) % 8] for fill in FILLS)
    noise = [x.var(axis=0, ddof=1).mean() for x in (a, b)]
    a, b = a.mean(axis=0), b.mean(axis=0)
    half = np.sqrt(max(((a - b) ** 2).mean() - sum(noise) / options.replicates, 0)) / 2
    turn = (pools["in turn"][q] @ references[(q + 1) % 8]).var(axis=0, ddof=1).mean() / 2
    print(
      f"| {q} | {np.corrcoef(a, b)[0, 1]:.2f} | {half:.4f} | {np.sqrt(turn):.4f} (replicates a"
      f" fill: {np.sqrt(sum(noise) / 4):.4f}) |"
    )


if __name__ == "__main__":
  main()
