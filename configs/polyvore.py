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
  fit_concepts      how much each attribute matters to the similarity model -> WORKDIR/concepts
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

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "all"  # all, or one of jobs, or convert_weights
  config.jobs = (  # what all means
    "train_similarity", "build_index", "train_attributes", "fit_concepts", "tune_ranking",
    "evaluate", "explain_matches",
  )  # fmt: skip
  config.workdir = "runs/polyvore"  # where results go; or gs://... or s3://...
  config.key = 0  # seed: the same key and machine, the same result
  config.tensorboard = False  # events for TensorBoard too; needs the extra `tensorboard`
  config.num_threads = 8  # that read and decode images
  config.cache_gib = 16.0  # decoded images kept in memory, at most; 0 keeps none

  config.benchmark_steps = 10  # of benchmark_input: steps a turn
  config.benchmark_repeats = 7  # and turns of each case

  config.data = data = ml_collections.ConfigDict()
  data.name = "polyvore_outfits"  # polyvore_outfits awa2
  data.folder = "data"  # what was downloaded, as it came; or in a bucket
  data.prepared = ""  # where its records are kept once they are checked; WORKDIR/prepared
  data.attributes_from = ""  # folder of discover_attributes: its attributes in place of these
  data.setting = "nondisjoint"  # nondisjoint; disjoint: no item is in two splits

  config.convert = convert = ml_collections.ConfigDict()
  convert.source = ""  # .pth, .pth.tar or .safetensors
  convert.target = ""  # .safetensors to write
  convert.kind = "auto"  # what the source is; auto looks at its tensors

  # The similarity model, which is then explained as a black box.
  config.similarity = similarity = ml_collections.ConfigDict()
  similarity.stage_sizes = (2, 2, 2)  # ResNet-18 without its last stage
  similarity.block = "basic"  # basic bottleneck
  similarity.width = 64  # channels of the first stage
  similarity.stem = "imagenet"  # imagenet (7x7 stride 2, max-pool); small (3x3 stride 2)
  similarity.weights = ""  # file of convert_weights to start from; none: from scratch
  similarity.dtype = "float32"  # bfloat16 computes in that, and keeps parameters in float32
  similarity.image_size = 112  # pixels: shorter side, then the square in its middle
  similarity.embedding_size = 64  # axes
  similarity.groups_per_batch = 64  # outfits a batch
  similarity.images_per_group = 4  # items of each
  similarity.batches_per_update = 1  # more accumulate their gradients
  similarity.num_steps = 20_000  # batches
  similarity.warmup_steps = 500  # of linear growth, then a cosine down to 0
  similarity.learning_rate = 5e-4  # of Adam
  # Which image of the positive's type, in the batch: random, or hard, the nearest. Hard ones from
  # scratch let all embeddings fall into one point.
  similarity.negatives = "random"
  similarity.margin = 0.3  # between distances of unit vectors
  similarity.mask_l1 = 5e-4  # weight of the mean of the type masks
  similarity.embedding_l2 = 5e-4  # weight of the mean square norm of embeddings
  similarity.text = 0.1  # weight of images against their titles; 0 leaves titles out
  similarity.flip = True  # mirror half of the images
  similarity.log_every_steps = 100  # numbers written
  similarity.eval_every_steps = 1000  # on the validation split; the best is what is kept
  similarity.save_every_steps = 1000  # checkpoints

  # Pairs that the explanation is tuned and evaluated on: so many that match, and as many that do
  # not. The data set's own list, where it has one.
  config.pairs = pairs = ml_collections.ConfigDict()
  pairs.num_valid = 1000  # to choose the weights of the ranking by
  pairs.num_test = 10_000  # to evaluate on

  # The effect matrices of training images, and of the queries of pairs.
  config.index = index = ml_collections.ConfigDict()
  index.model = ""  # what is explained: '', the one trained above; a file; a name for load_model
  index.image_size = config_dict.placeholder(int)  # pixels; the model's own
  index.design = "rise"  # as for explain; hadamard with 128 masks costs a sixteenth
  index.num_masks = config_dict.placeholder(int)  # passes an image; the design's own number
  index.fill = "white"  # what hides a region: the background of the photos
  index.max_queries = config_dict.placeholder(int)  # images that get maps; all by default
  index.matches = 20  # maps a query: against that many images that match it
  index.every_type = False  # maps against images of any type, for serve: T times the room

  # The attribute model.
  config.attributes = attributes = ml_collections.ConfigDict()
  attributes.folder = "attributes"  # in WORKDIR; another keeps two models side by side
  attributes.trunk = "resnet"  # resnet; efficientnet_lite0: its ImageNet features, frozen
  attributes.stage_sizes = (3, 4, 6, 3)  # ResNet-50
  attributes.block = "bottleneck"  # basic bottleneck
  attributes.width = 64  # channels of the first stage
  attributes.stem = "imagenet"  # imagenet small
  attributes.weights = ""  # file of convert_weights to start from; none: from scratch
  attributes.dtype = "float32"  # float32 bfloat16
  attributes.image_size = 112  # pixels; activation maps are 4 x 4 there
  attributes.batch_size = 256  # images
  attributes.batches_per_update = 1  # more accumulate their gradients
  attributes.num_epochs = 300  # passes over the annotated training images
  attributes.learning_rate = 5e-4  # of Adam in the first epoch
  attributes.decay = 0.985  # factor an epoch
  attributes.map_weight = 5e-3  # λ of the saliency maps; 0 is the baseline without them
  # Maps are standardised and multiplied by this before their softmax; 0: as they are (paper).
  attributes.sharpness = 0.0
  attributes.flip = True  # mirror half of the images, and their maps
  attributes.truth = ""  # folder of pixel masks of the attributes, where somebody has them
  attributes.log_every_steps = 50  # numbers written
  attributes.eval_every_epochs = 1  # validation mAP; the best is what is kept
  attributes.save_every_epochs = 1  # checkpoints

  # How much each attribute matters to the similarity model.
  config.concepts = concepts = ml_collections.ConfigDict()
  concepts.folder = "concepts"  # in WORKDIR
  concepts.halves = 2  # how often images are split in two to fit and to try
  concepts.num_random = 30  # random concepts for each size, powers of 2
  concepts.min_images = 8  # with and without an attribute, in a space, to fit it there
  concepts.min_pairs = 20  # matching pairs in a space, to measure scores there
  concepts.min_accuracy = 0.6  # on images held out, under which a direction is none
  concepts.alpha = 0.05  # false discovery rate under which a score counts
  concepts.l2 = 0.01  # penalty of the separators, on whitened embeddings
  concepts.steps = 40  # of their descent

  # Attributes ranked by confidence, map fit, prior and sensitivity.
  config.ranking = ranking = ml_collections.ConfigDict()
  ranking.folder = "ranking"  # in WORKDIR
  ranking.attributes = "attributes"  # in WORKDIR: the attribute model
  ranking.concepts = "concepts"  # in WORKDIR: the prior
  # Puts the terms on one scale: normal_scores (each standard normal on the likely attributes of
  # validation pairs); none, as in the paper.
  ranking.calibration = "normal_scores"
  ranking.likely = 0.1  # share of (pair, attribute), by confidence, that counts as likely
  ranking.phi = config_dict.placeholder(tuple)  # weights of the four; chosen by default
  ranking.steps = 10  # of the grid of weights: multiples of 1/10
  ranking.representatives = 3  # images with and without an attribute that a score is averaged over

  # Pairs explained on a page.
  config.explain = explain = ml_collections.ConfigDict()
  explain.folder = "explain"  # in WORKDIR
  explain.num_pairs = 12  # that match, drawn from the test split
  explain.design = "hadamard"  # as for index
  explain.num_masks = config_dict.placeholder(int)  # passes an image; the design's own number

  # The tables.
  config.evaluation = evaluation = ml_collections.ConfigDict()
  evaluation.folder = "evaluation"  # in WORKDIR
  evaluation.baseline = "attributes_without_maps"  # attributes.folder of a run with map_weight=0
  evaluation.generators = (  # of saliency maps, as in configs/generators.py
    "random", "hadamard", "sliding_window", "rise", "lime", "kernel_shap", "learned_mask",
  )  # fmt: skip
  evaluation.modes = ("fixed", "both")  # what is perturbed: the query, or both images
  evaluation.saliency_pairs = 200  # for them: a pair costs thousands of passes
  evaluation.background = "white"  # what deleted pixels become
  evaluation.sanity_pairs = 50  # for the sanity checks
  # Layers of the similarity model from the output to the input, destroyed one after the other.
  evaluation.layers = ("dense", "trunk/layer3", "trunk/layer2", "trunk/layer1", "trunk/conv1")

  # Attributes found where nobody annotated any.
  config.discovery = discovery = ml_collections.ConfigDict()
  discovery.folder = "discovered"  # in WORKDIR
  discovery.trunk = "similarity"  # whose features: the trained model's; efficientnet_lite0
  discovery.image_size = config_dict.placeholder(int)  # pixels; the trunk's own
  discovery.num_clusters = (16, 24, 32, 48, 64)  # tried; the largest mean silhouette is kept
  discovery.weighted = True  # by saliency maps; False: clusters of the images as they are

  # The viewer, on what build_index left.
  config.serve = serve = ml_collections.ConfigDict()
  serve.split = "test"  # whose images: train valid test
  serve.indexes = ()  # folders of that split, one for each design and fill; that of WORKDIR
  serve.host = ""  # this machine alone; an address or name lets others ask, with a token
  serve.port = 8000  # 0 for any that is free
  serve.token = ""  # 16 letters or more; made up where others can ask
  serve.certificate = ""  # PEM file, for https
  serve.certificate_key = ""  # PEM file of its key
  serve.title = "Why do these match?"  # the page's heading
  serve.neighbors = 24  # matches shown of a query, at most 200
  serve.uploads = False  # an image of a data set has a type, and a photo that is sent has none
  serve.max_upload_mb = 16.0  # as in configs/photos.py
  serve.max_megapixels = 24.0  # of the same
  serve.cache_gib = 1.0  # of the indexes, kept in memory
  serve.threads = 4  # that answer at once

  # Whether explanations help to foresee the model's scores: a simulation, and material for people.
  config.study = study = ml_collections.ConfigDict()
  study.folder = "study"  # in WORKDIR
  study.key = config.get_ref("key")  # seed of the draw of items
  study.num_items = 1000  # questions to the simulated subject: which of two pairs scores higher
  study.min_gap = 0.5  # between the two scores, in standard deviations of the scores
  study.exchanges = 19  # controls that see other pairs' explanations
  study.num_exported = 40  # questions exported for people
  study.num_practice = 5  # questions before them, each with the right answer after it
  study.num_checks = 3  # questions among them that whoever looks gets right
  study.num_subjects = 20  # lists of who sees which under what condition
  study.image_size = 224  # pixels a side of exported pictures
  # The server that asks people, job `study`.
  study.host = ""  # address to listen on: '' for this machine alone; 0.0.0.0 for all, with a token
  study.port = 8000  # 0 for one that is free
  study.token = ""  # that the invitation link carries; made up where one is needed
  study.certificate = ""  # file for https, unless something before the server does it
  study.certificate_key = ""  # its key
  study.public_url = ""  # how subjects reach it, where that is not its own address
  study.design_of_subjects = "within"  # within: each sees all conditions; between: each sees one
  study.items_per_subject = config_dict.placeholder(int)  # all that are exported
  study.max_subjects = 500  # who take part or have finished
  study.closes = ""  # 2027-01-31, or 2027-01-31T18:00: nobody begins after that, in UTC
  study.drop_out_hours = 24.0  # without an answer, until the place is given to another
  study.title = "A study of image pairs"  # at the top of all pages
  study.contact = ""  # whom to write to: a name and an address
  study.consent = ""  # paragraphs of the page of consent; a text for all by default
  # What job `study_results` makes of the answers: who is left out, settled before anybody is asked.
  study.exclusion = exclusion = ml_collections.ConfigDict()
  exclusion.max_failed_checks = 1  # attention checks; who fails more is left out
  exclusion.min_share = 0.5  # of a subject's items; who answered fewer is left out
  exclusion.min_median_seconds = 1.5  # whose median item took less is left out
  exclusion.max_same_side = 0.9  # who says A, or B, on more than this share is left out
  exclusion.seconds = (0.3, 120.0)  # times outside do not count as times
  # How many to ask, job `plan_study`.
  study.plan = plan = ml_collections.ConfigDict()
  plan.baseline = 0.6  # share of right answers with nothing shown, guessed or from a pilot
  plan.gain = 0.1  # smallest difference of shares that is not to be missed
  plan.num_items = 40  # that a subject answers
  plan.num_conditions = 5  # among which they are shared
  plan.within = True  # each subject sees all conditions; False: one
  plan.subject_sd = 0.5  # of subjects' intercepts, in logits
  plan.item_sd = 0.8  # of items'
  plan.power = 0.8  # probability of finding the gain
  plan.level = 0.05  # of the two-sided test, of one comparison; see docs/study_statistics.md
  return config
