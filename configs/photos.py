"""Explains why photos match: two photos, a list of pairs, or each photo's neighbours in a folder.

  python -m sane_jax.main --config=configs/photos.py
      photos that scikit-image carries: a stereo pair of a motorcycle, two crops of a cat
  python -m sane_jax.main --config=configs/photos.py --config.query=A.jpg --config.reference=B.jpg
  python -m sane_jax.main --config=configs/photos.py --config.photos=FOLDER --config.neighbors=3
  python -m sane_jax.main --config=configs/photos.py --config.pairs=FILE
  python -m sane_jax.main --config=configs/photos.py --config.photos=FOLDER --config.attributes=CSV
      the same, and which of your attributes explains each match: a column `file`, and one of 1
      and 0 for each attribute
  python -m sane_jax.main --config=configs/photos.py --config.photos=FOLDER --config.job=build_index
      measures every photo once; sane_jax.ExplanationIndex("runs/photos/index") then explains any
      two of them without the model. Run again, it appends the photos that are new
  python -m sane_jax.main --config=configs/photos.py --config.job=compare_models \
      --config.query=A.jpg --config.reference=B.jpg --config.other_model=MODEL
      where the reasons of two models differ, with error bars: WORKDIR/compare_models/index.html;
      with --config.pairs or --config.photos for all of those
  python -m sane_jax.main --config=configs/photos.py --config.job=serve
      shows that index in a browser: choose or send a photo, and see why it matches what it matches

Writes WORKDIR/explain/index.html, a PNG a pair and explanations.json. Interrupted, the same command
goes on where it stopped.

Model: EfficientNet-Lite0 with ImageNet weights (no download), cosine of pooled features.
Cost: `num_masks` passes an image, 202 a pair for insertion and deletion, whatever the pairs.
Time: the first command under a minute on two CPU cores.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "explain"  # explain build_index serve compare_models
  config.workdir = "runs/photos"  # where results go; or gs://... or s3://...

  # What is explained; at most one of (query and reference), photos, pairs.
  config.query = ""  # path of a photo
  config.reference = ""  # path of a photo
  config.contrast = ""  # path: why `reference` rather than this one
  config.photos = ""  # folder, or gs://... or s3://...: each photo's nearest neighbours in it
  config.neighbors = 3  # how many of them
  config.pairs = ""  # file with a pair a line: query reference [label], blanks or commas between
  config.pairs_folder = ""  # where the names in `pairs` are looked up; the file's own by default

  # Attributes that explain the matches, learned from a table of photos.
  config.attributes = ""  # CSV: a column `file`, and one of 1 and 0 for each attribute
  config.attributes_folder = ""  # where its files are looked up; the table's own by default
  # Weights of confidence, map fit, prior and sensitivity; (0.7, 0.1, 0, 0.2) by default.
  config.phi = config_dict.placeholder(tuple)

  # The model: a name, or module:function for your own (the function returns a sane_jax.Model).
  config.model = "efficientnet_lite0"
  config.image_size = 224  # side in pixels of what the model sees
  config.other_model = ""  # likewise: what compare_models compares it with
  config.other_image_size = config_dict.placeholder(int)  # side of what that sees; image_size

  # The explanation.
  config.design = "hadamard"  # rise sliding_window lime kernel_shap hadamard learned_mask random
  config.num_masks = config_dict.placeholder(int)  # the design's own number by default
  config.grid = config_dict.placeholder(tuple)  # (rows, columns) of cells; the design's own
  config.fill = config_dict.placeholder(str)  # mean black grey white blur; the design's own
  config.mode = "fixed"  # 'both' perturbs the reference as well
  config.key = 0  # seed: the same key gives the same answer
  config.chunk_size = config_dict.placeholder(int)  # masked images at a time; 64 on a CPU

  config.index_dtype = "float16"  # of the index's effects; int8 takes half the room

  # The viewer, on what build_index left.
  config.serve = serve = ml_collections.ConfigDict()
  serve.indexes = ()  # folders of one collection, one for each design and fill; WORKDIR/index
  serve.host = ""  # this machine alone; an address or name lets others ask, with a token
  serve.port = 8000  # 0 for any that is free
  serve.token = ""  # 16 letters or more; made up where others can ask
  serve.certificate = ""  # PEM file, for https
  serve.certificate_key = ""  # PEM file of its key
  serve.title = "Why do these match?"  # the page's heading
  serve.neighbors = 24  # matches shown of a query, at most 200
  serve.uploads = True  # takes photos, and measures other designs: loads the model
  serve.max_upload_mb = 16.0  # of a photo that is sent
  serve.max_megapixels = 24.0  # of the same
  serve.cache_gib = 1.0  # of the indexes, kept in memory
  serve.threads = 4  # that answer at once

  # Its evaluation by insertion and deletion of pixels.
  config.metrics = True  # 202 further passes a pair
  config.background = "mean"  # mean black grey white blur
  return config
