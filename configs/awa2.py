"""Animals with Attributes 2, with the settings of the paper; or any folder in its layout.

  python -m sane_jax.main --config=configs/awa2.py --config.data.folder=FOLDER

FOLDER holds `Animals_with_Attributes2/` (or the archives) of https://cvml.ista.ac.at/AwA2. A folder
of your own needs JPEGImages/CLASS/PHOTO.jpg, classes.txt, predicates.txt, trainclasses.txt,
testclasses.txt and predicate-matrix-binary.txt.

Frozen ImageNet features in place of training both models, for few photos or no accelerator:
  python -m sane_jax.main --config=configs/awa2.py --config.data.folder=FOLDER \\
    --config.jobs='("build_index","train_attributes","fit_concepts","tune_ranking","evaluate",\\
    "explain_matches")' --config.index.model=efficientnet_lite0 --config.index.image_size=112 \\
    --config.index.num_masks=128 --config.index.matches=5 --config.index.design=hadamard \\
    --config.attributes.trunk=efficientnet_lite0 --config.attributes.learning_rate=1e-3 \\
    --config.attributes.batch_size=16 --config.attributes.num_epochs=30 \\
    --config.evaluation.layers='("conv_head","blocks_15","blocks_10","blocks_5","conv_stem")'
240 photos take five minutes on two CPU cores.

Jobs and settings that are not named here are those of configs/polyvore.py.
Source: Plummer et al., Why do These Match?, ECCV 2020.
"""

import pathlib
import runpy

import ml_collections
from ml_collections import config_dict

_POLYVORE = runpy.run_path(str(pathlib.Path(__file__).with_name("polyvore.py")))


def get_config() -> ml_collections.ConfigDict:
  config = _POLYVORE["get_config"]()
  config.workdir = "runs/awa2"  # folder of the results; or gs://... or s3://...

  config.data = data = ml_collections.ConfigDict()
  data.name = "awa2"  # data set: polyvore_outfits or awa2
  data.folder = "data"  # folder of what was downloaded, as it came; or gs://... or s3://...
  data.prepared = ""  # folder of the checked records; WORKDIR/prepared by default
  data.attributes_from = ""  # folder of discover_attributes, whose attributes replace these
  # Column of items.csv with the split; the classes' own by default.
  data.split_column = config_dict.placeholder(str)
  data.attribute_columns = ()  # columns of items.csv with attributes of single photos

  config.similarity.groups_per_batch = 32  # classes in a batch
  config.similarity.images_per_group = 8  # photos of each class
  config.similarity.text = 0.0  # weight of titles, which photos do not have
  config.index.fill = "grey"  # what hides a region
  config.evaluation.background = "grey"  # what deleted pixels become
  return config
