"""The whole pipeline on outfits that are drawn here, sized for two CPU cores; nothing to download.

  python -m sane_jax.main --config=configs/synthetic.py

Jobs as in configs/polyvore.py, after one more:
  draw_outfits      a data set in Polyvore Outfits' format, with the true pixels of each attribute
                                                                -> WORKDIR/drawn

Settings that are not named here are those of configs/polyvore.py.
"""

import pathlib
import runpy

import ml_collections
from ml_collections import config_dict

_POLYVORE = runpy.run_path(str(pathlib.Path(__file__).with_name("polyvore.py")))


def get_config() -> ml_collections.ConfigDict:
  config = _POLYVORE["get_config"]()
  config.jobs = ("draw_outfits", *config.jobs)  # jobs that `all` runs, in order
  config.workdir = "runs/synthetic"  # folder of the results; or gs://... or s3://...
  config.num_threads = 2  # threads that read and decode images
  config.cache_gib = 2.0  # memory for decoded images, in GiB
  config.data.folder = "runs/synthetic/drawn"  # folder that draw_outfits writes

  config.outfits = outfits = ml_collections.ConfigDict()
  outfits.folder = config.data.get_ref("folder")  # folder that draw_outfits writes
  outfits.num_outfits = (1500, 200, 400)  # outfits of train, valid and test
  outfits.seed = 0  # seed of the drawing
  outfits.missing = 0.3  # share of annotations that are missing
  outfits.processes = config_dict.placeholder(int)  # worker processes; one a core by default

  # A network that learns from scratch in minutes.
  similarity = config.similarity
  similarity.stage_sizes = (1, 1, 1)  # blocks a stage
  similarity.width = 32  # channels of the first stage
  similarity.stem = "small"  # 3x3 convolution of stride 2
  similarity.image_size = 64  # side in pixels of the images
  similarity.groups_per_batch = 24  # outfits in a batch
  similarity.num_steps = 450  # batches of training
  similarity.warmup_steps = 50  # updates while the learning rate grows
  similarity.learning_rate = 2e-3  # highest learning rate of Adam
  similarity.log_every_steps = 20  # batches between lines of the log
  similarity.eval_every_steps = 150  # batches between evaluations on the validation split
  similarity.save_every_steps = 150  # batches between checkpoints

  config.pairs.num_valid = 300  # pairs to choose the weights of the ranking by
  config.pairs.num_test = 400  # pairs to evaluate on

  index = config.index
  index.design = "hadamard"  # mask design; fewer passes than rise for the same map
  index.num_masks = 128  # masked passes an image
  index.max_queries = 1500  # most images that get maps

  attributes = config.attributes
  attributes.stage_sizes = (1, 1, 1)  # blocks a stage
  attributes.block = "basic"  # basic or bottleneck
  attributes.width = 32  # channels of the first stage
  attributes.stem = "small"  # 3x3 convolution of stride 2
  attributes.image_size = 64  # side in pixels; activation maps are 8 x 8
  attributes.batch_size = 64  # images in a batch
  attributes.num_epochs = 12  # passes over the annotated training images
  attributes.learning_rate = 2e-3  # learning rate of Adam in the first epoch
  attributes.decay = 0.9  # factor of the learning rate an epoch
  # λ, weight of the maps: the label loss is a mean over 205 attributes, some 1e-3, which 5e-3
  # would let the maps outweigh.
  attributes.map_weight = 5e-4
  attributes.sharpness = 2.0  # factor of standardised maps before their softmax
  attributes.truth = "runs/synthetic/drawn/truth"  # folder of the pixel masks of the attributes
  attributes.log_every_steps = 20  # batches between lines of the log

  evaluation = config.evaluation
  evaluation.generators = (  # saliency generators; lime and learned_mask take minutes here
    "random", "hadamard:num_masks=128", "hadamard", "sliding_window", "rise", "kernel_shap",
  )  # fmt: skip
  evaluation.saliency_pairs = 48  # pairs for the generators
  evaluation.sanity_pairs = 24  # pairs for the sanity checks
  return config
