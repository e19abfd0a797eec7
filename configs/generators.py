"""Compares all saliency generators, in both modes, by insertion and deletion on pairs of photos.

  python -m sane_jax.main --config=configs/generators.py --config.pairs_file=FILE \
      --config.pairs_folder=FOLDER

Writes WORKDIR/generators/table.md, table.csv and results.json. Every part is kept as soon as it is
done; the same command goes on from there. `docs/generators.md` shows the table for 104 pairs of
garments; against one background that took an hour on two busy cores, half of it the learned masks.

Method: Petsiuk et al., BMVC 2018: 101 thresholds, per-pair min-max, AUC of the mean curve × 100;
95 % bootstrap intervals over pairs. Settings of each generator: its defaults, see `ops/designs.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "compare_generators"  # job that runs
  config.workdir = "runs/generators"  # folder of the results; or gs://... or s3://...

  config.pairs_file = ""  # file with a pair a line: query reference [label]
  config.pairs_folder = ""  # folder of the names in `pairs_file`; the file's own by default
  # Most pairs; queries are drawn, each with all its pairs, until there are as many.
  config.max_pairs = 120
  config.model = "efficientnet_lite0"  # a name, or module:function
  config.image_size = 112  # side in pixels of what the model sees; the paper's
  config.seed = 0  # seed of the masks and of the draw of queries

  # Saliency generators: names or name:field=value,... as in hadamard:num_masks=128.
  config.generators = (
    "random",
    "hadamard:num_masks=128",
    "hadamard:num_masks=512",
    "sliding_window",
    "rise",
    "lime",
    "kernel_shap",
    "learned_mask",
  )
  config.baseline = ""  # generator that the others are compared with; the first by default
  config.modes = ("fixed", "both")  # fixed: the query is perturbed; both: the reference, too
  # How maps of hard-edged cells are drawn before they are judged. cells: as they are, which
  # deletion favours; smooth: interpolated, so that no generator's regions are the judge's.
  config.drawings = ("smooth", "cells")
  # What deleted pixels become; the masks' own fill is mean, LIME's black, a learned mask's blur.
  config.backgrounds = ("mean", "blur")
  return config
