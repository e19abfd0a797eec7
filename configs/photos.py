"""Explains why photos match: two photos, a list of pairs, or each photo's neighbours in a folder.

  python -m sane_jax.main --config=configs/photos.py
      photos that scikit-image carries: a stereo pair of a motorcycle, two crops of a cat
  python -m sane_jax.main --config=configs/photos.py --config.query=A.jpg --config.reference=B.jpg
  python -m sane_jax.main --config=configs/photos.py --config.photos=FOLDER --config.neighbors=3
  python -m sane_jax.main --config=configs/photos.py --config.pairs_file=FILE
  python -m sane_jax.main --config=configs/photos.py --config.photos=FOLDER \
      --config.attributes_file=CSV
      the same, and which of your attributes explains each match: a column `file`, and one of 1
      and 0 for each attribute
  python -m sane_jax.main --config=configs/photos.py --config.photos=FOLDER --config.job=build_index
      measures every photo once; sane_jax.ExplanationIndex("runs/photos/index") then explains any
      two of them without the model. Run again, it appends the photos that are new
  python -m sane_jax.main --config=configs/photos.py --config.job=compare_models \
      --config.query=A.jpg --config.reference=B.jpg --config.other_model=MODEL
      where the reasons of two models differ, with error bars: WORKDIR/compare_models/index.html;
      with --config.pairs_file or --config.photos for all of those
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
  config.job = "explain"  # explain, build_index, serve or compare_models
  config.workdir = "runs/photos"  # folder of the results; or gs://... or s3://...

  # What is explained; at most one of (query and reference), photos, pairs_file.
  config.query = ""  # path of the photo that is explained
  config.reference = ""  # path of the photo that it is compared with
  config.contrast = ""  # path of a third photo: why `reference` rather than this one
  # Folder (or gs://... or s3://...) of photos, each explained against its neighbours.
  config.photos = ""
  config.neighbors = 3  # nearest neighbours of each photo in `photos`
  config.pairs_file = ""  # file with a pair a line: query reference [label], by blanks or commas
  config.pairs_folder = ""  # folder of the names in `pairs_file`; the file's own by default

  # Attributes that explain the matches, learned from a table of photos.
  config.attributes_file = ""  # CSV: a column `file`, and one of 1 and 0 for each attribute
  config.attributes_folder = ""  # folder of the table's photos; the table's own by default
  # Weights of confidence, map fit, prior and sensitivity; (0.7, 0.1, 0, 0.2) by default.
  config.phi = config_dict.placeholder(tuple)

  # The model: a name, or module:function for your own (the function returns a sane_jax.Model).
  config.model = "efficientnet_lite0"
  config.image_size = 224  # side in pixels of what the model sees
  config.other_model = ""  # model that compare_models compares with `model`, named alike
  # Side in pixels of what `other_model` sees; `image_size` by default.
  config.other_image_size = config_dict.placeholder(int)

  # Mask design: hadamard, rise, sliding_window, lime, kernel_shap, learned_mask or random.
  config.design = "hadamard"
  # Masked passes an image; the design's own number by default.
  config.num_masks = config_dict.placeholder(int)
  # (rows, columns) of cells; the design's own by default.
  config.grid = config_dict.placeholder(tuple)
  config.fill = config_dict.placeholder(str)  # mean, black, grey, white or blur; the design's own
  config.mode = "fixed"  # fixed: the query is perturbed; both: the reference, too
  config.seed = 0  # seed of the masks: the same seed gives the same answer
  # Most masked images at a time; by default as many as suit the devices.
  config.chunk_size = config_dict.placeholder(int)

  config.index_dtype = "float16"  # type of the index's effects: float16, or int8 at half the size

  # The viewer, on what build_index left.
  config.serve = serve = ml_collections.ConfigDict()
  serve.indexes = ()  # folders of one collection's indexes, one a design and fill; WORKDIR/index
  serve.host = ""  # address to listen on: '' for this machine alone; others need a token
  serve.port = 8000  # port; 0 for one that is free
  serve.token = ""  # secret of the link, 16 letters or more; made up where others can ask
  serve.certificate = ""  # PEM file of the certificate, for https
  serve.certificate_key = ""  # PEM file of the certificate's key
  serve.title = "Why do these match?"  # heading of the page
  serve.neighbors = 24  # matches shown of a query, 1 to 200
  serve.uploads = True  # whether photos are taken and other designs measured; loads the model
  serve.max_upload_mb = 16.0  # largest photo that is taken, in MB
  serve.max_megapixels = 24.0  # largest photo that is taken, in millions of pixels
  serve.cache_gib = 1.0  # memory for what was read of the indexes, in GiB
  serve.threads = 4  # requests answered at once

  # Its evaluation by insertion and deletion of pixels.
  config.metrics = True  # whether pairs are evaluated; 202 further passes each
  config.background = "mean"  # what deleted pixels become: mean, black, grey, white or blur
  return config
