"""Polyvore Outfits, with the settings of the paper: a similarity model, its maps, its attributes.

  python -m sane_jax.main --config=configs/polyvore.py --config.data.folder=FOLDER

FOLDER holds `polyvore_outfits/` (or the archive) of https://github.com/mvasil/fashion-compatibility,
with `polyvore_attributes.json` and `attribute_list.txt` of https://github.com/VisionLearningGroup/SANE.
A data set of another source in that format serves as well: configs/synthetic.py draws one.

Jobs, in order, each by --config.job=NAME; with `all`, what is finished is skipped and what was
interrupted goes on:
  convert_weights   an ImageNet ResNet, torchvision's or timm's, as a file for `weights`
  train_similarity  a type-aware embedding by triplets          -> WORKDIR/similarity
  build_index       the effect matrices of images that are explained -> WORKDIR/index, ...
  train_attributes  the attribute model, supervised by maps     -> WORKDIR/attributes
  fit_concepts      do attributes raise scores of matching pairs? -> WORKDIR/concepts
  tune_ranking      the weights by which attributes are ranked  -> WORKDIR/ranking
  evaluate          tables of how good explanations are         -> WORKDIR/evaluation
  explain_matches   pairs with the attribute that explains each -> WORKDIR/explain
and beside them:
  discover_attributes  attributes of its own where nobody annotated any
  serve             the indexes in a browser: why images match, pair by pair
  simulate_study    whether explanations help to foresee scores; material for a study of people
  study             asks people, with a web server              -> WORKDIR/study/answers.sqlite
  plan_study        how many people to ask
  study_results     what they answered: accuracies, differences, times -> WORKDIR/study/results
  benchmark_input   whether reading images keeps up with training

Source: Plummer et al., Why do These Match?, ECCV 2020; the embedding: Vasileva et al., Learning
Type-Aware Embeddings for Fashion Compatibility, ECCV 2018.
Machine: the batches are sized for one accelerator of 16 GB or more; several share them.
"""

import pathlib
import runpy

import ml_collections
from ml_collections import config_dict

_PHOTOS = runpy.run_path(str(pathlib.Path(__file__).with_name("photos.py")))
_STUDY = runpy.run_path(str(pathlib.Path(__file__).with_name("study.py")))


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "all"  # all, or one job
  config.jobs = (  # jobs that `all` runs, in order
    "train_similarity", "build_index", "train_attributes", "fit_concepts", "tune_ranking",
    "evaluate", "explain_matches",
  )  # fmt: skip
  config.workdir = "runs/polyvore"  # folder of the results; or gs://... or s3://...
  config.seed = 0  # seed of everything: the same seed and machine, the same result
  config.tensorboard = False  # whether TensorBoard gets events; needs the extra `tensorboard`
  config.num_threads = 8  # threads that read and decode images
  config.cache_gib = 16.0  # memory for decoded images, in GiB; 0 keeps none

  config.benchmark_steps = 10  # steps a turn of benchmark_input
  config.benchmark_repeats = 7  # turns of each case of benchmark_input

  config.data = data = ml_collections.ConfigDict()
  data.name = "polyvore_outfits"  # data set: polyvore_outfits or awa2
  data.folder = "data"  # folder of what was downloaded, as it came; or gs://... or s3://...
  data.prepared = ""  # folder of the checked records; WORKDIR/prepared by default
  # Folder of discover_attributes, whose attributes replace the data set's.
  data.attributes_from = ""
  data.setting = "nondisjoint"  # nondisjoint, or disjoint: no item is in two splits

  config.convert = convert = ml_collections.ConfigDict()
  convert.source = ""  # file to convert: .pth, .pth.tar or .safetensors
  convert.target = ""  # file to write, .safetensors
  convert.kind = "auto"  # model in the source: resnet, similarity, attribute; auto: by its tensors

  # The similarity model, which is then explained as a black box.
  config.similarity = similarity = ml_collections.ConfigDict()
  similarity.stage_sizes = (2, 2, 2)  # blocks a stage: ResNet-18 without its last stage
  similarity.block = "basic"  # basic or bottleneck
  similarity.width = 64  # channels of the first stage
  similarity.stem = "imagenet"  # imagenet (7x7 stride 2, max-pool) or small (3x3 stride 2)
  similarity.weights = ""  # file of convert_weights to start from; by default from scratch
  # Precision of computing: float32 or bfloat16; parameters are float32.
  similarity.dtype = "float32"
  similarity.image_size = 112  # side in pixels: the shorter side, then the square in its middle
  similarity.embedding_size = 64  # axes of the embedding
  similarity.groups_per_batch = 64  # outfits in a batch
  similarity.images_per_group = 4  # items of each outfit
  similarity.batches_per_update = 1  # batches whose gradients are averaged for an update
  similarity.num_steps = 20_000  # batches of training
  similarity.warmup_steps = 500  # updates while the learning rate grows; then a cosine down to 0
  similarity.learning_rate = 5e-4  # highest learning rate of Adam
  # Negative of a triplet, of the positive's type: random, or hard, the nearest in the batch. Hard
  # ones from scratch let all embeddings fall into one point.
  similarity.negatives = "random"
  similarity.margin = 0.3  # margin between distances of unit vectors
  similarity.mask_l1 = 5e-4  # weight of the mean of the type masks
  similarity.embedding_l2 = 5e-4  # weight of the mean square norm of embeddings
  similarity.text = 0.1  # weight of images against their titles; 0 leaves titles out
  similarity.flip = True  # whether half of the images are mirrored
  similarity.log_every_steps = 100  # batches between lines of the log
  # Batches between evaluations on the validation split; the best is kept.
  similarity.eval_every_steps = 1000
  similarity.save_every_steps = 1000  # batches between checkpoints

  # Pairs that the explanation is tuned and evaluated on: so many that match, and as many that do
  # not. The data set's own list, where it has one.
  config.pairs = pairs = ml_collections.ConfigDict()
  pairs.num_valid = 1000  # pairs to choose the weights of the ranking by
  pairs.num_test = 10_000  # pairs to evaluate on

  # The effect matrices of training images, and of the queries of pairs.
  config.index = index = ml_collections.ConfigDict()
  index.model = ""  # explained model: '' for the one trained above; a file; a name for load_model
  index.image_size = config_dict.placeholder(int)  # side in pixels; the model's own by default
  index.design = "rise"  # mask design; hadamard with 128 masks costs a sixteenth
  # Masked passes an image; the design's own by default.
  index.num_masks = config_dict.placeholder(int)
  # What hides a region. White is the background of the photos; the released code's is ImageNet's
  # mean colour.
  index.fill = "white"
  index.max_queries = config_dict.placeholder(int)  # most images that get maps; all by default
  index.matches = 20  # maps a query, each against an image that matches it
  # Whether maps against images of any type are kept, for serve: T times the room.
  index.every_type = False

  # The attribute model.
  config.attributes = attributes = ml_collections.ConfigDict()
  # Folder of the model, in WORKDIR; another keeps two side by side.
  attributes.folder = "attributes"
  attributes.trunk = "resnet"  # resnet, or efficientnet_lite0: its ImageNet features, frozen
  attributes.stage_sizes = (3, 4, 6, 3)  # blocks a stage: ResNet-50
  attributes.block = "bottleneck"  # basic or bottleneck
  attributes.width = 64  # channels of the first stage
  attributes.stem = "imagenet"  # imagenet or small
  attributes.weights = ""  # file of convert_weights to start from; by default from scratch
  attributes.dtype = "float32"  # precision of computing: float32 or bfloat16
  attributes.image_size = 112  # side in pixels; activation maps are 4 x 4 there
  attributes.batch_size = 256  # images in a batch
  attributes.batches_per_update = 1  # batches whose gradients are averaged for an update
  attributes.num_epochs = 300  # passes over the annotated training images
  attributes.learning_rate = 5e-4  # learning rate of Adam in the first epoch
  attributes.decay = 0.985  # factor of the learning rate an epoch
  attributes.map_weight = 5e-3  # λ, weight of the saliency maps; 0 is the baseline without them
  # Factor of standardised maps before their softmax; 0: maps as they are (paper).
  attributes.sharpness = 0.0
  attributes.flip = True  # whether half of the images are mirrored, with their maps
  attributes.truth = ""  # folder of pixel masks of the attributes, where there are any
  attributes.log_every_steps = 50  # batches between lines of the log
  attributes.eval_every_epochs = 1  # epochs between evaluations by validation mAP; the best is kept
  attributes.save_every_epochs = 1  # epochs between checkpoints

  # Whether moving towards an attribute raises the scores of matching pairs.
  config.concepts = concepts = ml_collections.ConfigDict()
  concepts.folder = "concepts"  # folder of the concepts, in WORKDIR
  concepts.halves = 2  # splits of the images in two, one half to fit and one to test
  concepts.num_random = 100  # times that pairs are re-matched at random, to compare scores with
  concepts.min_images = 8  # least images with and without an attribute to fit it in a space
  concepts.min_pairs = 20  # least matching pairs in a space to measure scores there
  concepts.min_accuracy = 0.6  # least accuracy on images held out of a direction that counts
  concepts.alpha = 0.05  # false discovery rate under which a score counts
  concepts.l2 = 0.01  # penalty of the classifiers, on whitened embeddings
  concepts.steps = 40  # steps of their optimiser

  # Attributes ranked by confidence, map fit, prior and sensitivity.
  config.ranking = ranking = ml_collections.ConfigDict()
  ranking.folder = "ranking"  # folder of the ranking, in WORKDIR
  ranking.attributes = "attributes"  # folder of the attribute model, in WORKDIR
  ranking.concepts = "concepts"  # folder of the concepts, whose scores are the prior, in WORKDIR
  # Common scale of the terms: normal_scores (each standard normal on the likely attributes of
  # validation pairs); none, as in the paper.
  ranking.calibration = "normal_scores"
  ranking.likely = 0.1  # share of (pair, attribute), by confidence, that counts as likely
  ranking.phi = config_dict.placeholder(tuple)  # weights of the four terms; chosen by default
  ranking.steps = 10  # steps of the grid of weights: multiples of 1/10
  # Images with, and without, an attribute that a score is averaged over.
  ranking.representatives = 3

  # Pairs explained on a page.
  config.explain_matches = explain = ml_collections.ConfigDict()
  explain.folder = "explain"  # folder of the page, in WORKDIR
  explain.num_pairs = 12  # matching pairs, drawn from the test split
  explain.design = "hadamard"  # mask design
  # Masked passes an image; the design's own by default.
  explain.num_masks = config_dict.placeholder(int)

  # The tables.
  config.evaluation = evaluation = ml_collections.ConfigDict()
  evaluation.folder = "evaluation"  # folder of the tables, in WORKDIR
  # Folder of the attribute model without maps (map_weight=0).
  evaluation.baseline = "attributes_without_maps"
  evaluation.generators = (  # saliency generators, as in configs/generators.py
    "random", "hadamard", "sliding_window", "rise", "lime", "kernel_shap", "learned_mask",
  )  # fmt: skip
  evaluation.modes = ("fixed", "both")  # fixed: the query is perturbed; both: the reference, too
  evaluation.saliency_pairs = 200  # pairs for the generators: one costs thousands of passes
  evaluation.background = "white"  # what deleted pixels become
  # How maps of hard-edged cells are drawn before they are judged: smooth, or cells, as they are.
  evaluation.drawing = "smooth"
  evaluation.sanity_pairs = 50  # pairs for the sanity checks
  # Layers of the similarity model from the output to the input, destroyed one after the other.
  evaluation.layers = ("dense", "trunk/layer3", "trunk/layer2", "trunk/layer1", "trunk/conv1")

  # Attributes found where nobody annotated any.
  config.discovery = discovery = ml_collections.ConfigDict()
  discovery.folder = "discovered"  # folder of the clusters, in WORKDIR
  # Model whose features are clustered: similarity or efficientnet_lite0.
  discovery.trunk = "similarity"
  discovery.image_size = config_dict.placeholder(int)  # side in pixels; the trunk's own by default
  # Numbers that are tried; the largest mean silhouette is kept.
  discovery.num_clusters = (16, 24, 32, 48, 64)
  discovery.weighted = True  # whether features are weighted by saliency maps

  # The viewer, on what build_index left.
  config.serve = serve = _PHOTOS["get_config"]().serve
  serve.indexes = ()  # folders of that split's indexes, one a design and fill; WORKDIR's by default
  serve.split = "test"  # split whose images are shown: train, valid or test
  serve.uploads = False  # no photos are taken: images of a data set have types

  # Whether explanations help to foresee the model's scores: a simulation, and people's answers.
  config.study = study = _STUDY["get_config"]().study
  study.seed = config.get_ref("seed")  # seed of the draw of items
  return config
