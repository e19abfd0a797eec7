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
  config.jobs = ("draw_outfits", *config.jobs)  # what all means
  config.workdir = "runs/synthetic"  # where results go; or gs://... or s3://...
  config.num_threads = 2  # that read and decode images
  config.cache_gib = 2.0  # decoded images kept in memory, at most
  config.data.folder = "runs/synthetic/drawn"  # where draw_outfits writes

  config.outfits = outfits = ml_collections.ConfigDict()
  outfits.folder = config.data.get_ref("folder")  # where to draw
  outfits.num_outfits = (1500, 200, 400)  # train, valid, test
  outfits.key = 0  # seed of the drawing
  outfits.missing = 0.3  # rate of missing annotations
  outfits.processes = config_dict.placeholder(int)  # that draw; one a core

  # A network that learns from scratch in minutes.
  similarity = config.similarity
  similarity.stage_sizes = (1, 1, 1)  # blocks a stage
  similarity.width = 32  # channels of the first stage
  similarity.stem = "small"  # 3x3 convolution of stride 2
  similarity.image_size = 64  # pixels
  similarity.groups_per_batch = 24  # outfits a batch
  similarity.num_steps = 450  # batches
  similarity.warmup_steps = 50  # of linear growth
  similarity.learning_rate = 2e-3  # of Adam
  similarity.log_every_steps = 20  # numbers written
  similarity.eval_every_steps = 150  # on the validation split
  similarity.save_every_steps = 150  # checkpoints

  config.pairs.num_valid = 300  # to choose the weights of the ranking by
  config.pairs.num_test = 400  # to evaluate on

  index = config.index
  index.design = "hadamard"  # fewer passes than rise for the same map
  index.num_masks = 128  # passes an image
  index.max_queries = 1500  # images that get maps

  attributes = config.attributes
  attributes.stage_sizes = (1, 1, 1)  # blocks a stage
  attributes.block = "basic"  # basic bottleneck
  attributes.width = 32  # channels of the first stage
  attributes.stem = "small"  # 3x3 convolution of stride 2
  attributes.image_size = 64  # pixels; activation maps are 8 x 8
  attributes.batch_size = 64  # images
  attributes.num_epochs = 12  # passes over the annotated training images
  attributes.learning_rate = 2e-3  # of Adam in the first epoch
  attributes.decay = 0.9  # factor an epoch
  # λ: the label loss is a mean over 205 attributes, some 1e-3, and 5e-3 lets the maps outweigh it.
  attributes.map_weight = 5e-4
  attributes.sharpness = 2.0  # maps standardised, times this, before their softmax
  attributes.truth = "runs/synthetic/drawn/truth"  # where each attribute is
  attributes.log_every_steps = 20  # numbers written

  evaluation = config.evaluation
  evaluation.generators = (  # of saliency maps; lime and learned_mask take minutes here
    "random", "hadamard:num_masks=128", "hadamard", "sliding_window", "rise", "kernel_shap",
  )  # fmt: skip
  evaluation.saliency_pairs = 48  # for them
  evaluation.sanity_pairs = 24  # for the sanity checks
  return config
