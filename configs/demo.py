"""Why do these match? The whole method on a fresh machine: two cores, nothing to download.

  python -m sane_jax.main --config=configs/demo.py

Draws outfits in Polyvore Outfits' format, trains a similarity model on them, measures saliency
maps, trains an attribute model that the maps supervise, fits concepts, chooses the weights of the
ranking, evaluates, and explains 12 pairs. Open runs/demo/explain/index.html.

Interrupted, the same command goes on where it stopped; run again, it finds everything done.
Time: about 6 minutes on two CPU cores (drawing 27 s, similarity 89, index 71, attributes 91,
concepts 20, ranking 3, evaluation 49, explaining 19). The same seed gives the same page.
Settings that are not named here are those of configs/synthetic.py and configs/polyvore.py.
"""

import pathlib
import runpy

import ml_collections

_SYNTHETIC = runpy.run_path(str(pathlib.Path(__file__).with_name("synthetic.py")))


def get_config() -> ml_collections.ConfigDict:
  config = _SYNTHETIC["get_config"]()
  config.workdir = "runs/demo"  # folder of the results; or gs://... or s3://...
  config.data.folder = "runs/demo/drawn"  # folder that draw_outfits writes
  config.outfits.num_outfits = (800, 100, 120)  # outfits of train, valid and test
  config.attributes.truth = "runs/demo/drawn/truth"  # folder of the pixel masks of the attributes
  config.similarity.num_steps = 250  # batches
  config.pairs.num_valid = 100  # pairs to choose the weights of the ranking by
  config.pairs.num_test = 120  # pairs to evaluate on
  config.index.max_queries = 400  # most images that get maps
  config.attributes.num_epochs = 10  # passes over the annotated training images
  evaluation = config.evaluation
  # Saliency generators that are evaluated.
  evaluation.generators = ("random", "hadamard:num_masks=128", "rise")
  evaluation.modes = ("fixed",)  # fixed: the query is perturbed
  evaluation.saliency_pairs = 16  # pairs for the generators
  evaluation.sanity_pairs = 12  # pairs for the sanity checks
  return config
