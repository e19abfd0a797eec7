"""The study with people: its material, a simulation of it, the server that asks, and the results.

  python -m sane_jax.main --config=configs/study.py --config.workdir=WORKDIR
      serves the questions that simulate_study left in WORKDIR/study/export
  python -m sane_jax.main --config=configs/study.py --config.workdir=WORKDIR \\
      --config.job=study_results
      evaluates the answers                                     -> WORKDIR/study/results
  python -m sane_jax.main --config=configs/study.py --config.job=plan_study
      how many people to ask
  python -m sane_jax.main --config=configs/study.py --config.workdir=WORKDIR \\
      --config.job=simulate_study
      simulates the study and draws the questions               -> WORKDIR/study

WORKDIR is one in which `evaluate` ran, with the records of its data set; a config of a data set,
such as configs/demo.py, has all of these settings, too. docs/study.md is the guide.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.job = "study"  # simulate_study, study, study_results or plan_study
  config.workdir = "runs/demo"  # folder of the results; or gs://... or s3://...
  config.seed = 0  # seed of the draw of items

  config.data = data = ml_collections.ConfigDict()
  data.name = "polyvore_outfits"  # data set: polyvore_outfits or awa2
  # Folder of what was downloaded, as it came; or gs://... or s3://....
  data.folder = "runs/demo/drawn"
  data.prepared = ""  # folder of the checked records; WORKDIR/prepared by default
  # Folder of discover_attributes, whose attributes replace the data set's.
  data.attributes_from = ""

  config.evaluation = evaluation = ml_collections.ConfigDict()
  evaluation.folder = "evaluation"  # folder of the evaluation, in WORKDIR

  config.study = study = ml_collections.ConfigDict()
  study.folder = "study"  # folder of the study, in WORKDIR
  study.seed = config.get_ref("seed")  # seed of the draw of items
  study.num_items = 1000  # questions to the simulated subject: which of two pairs scores higher
  study.min_gap = 0.5  # least gap of the two scores, in standard deviations of the scores
  study.exchanges = 19  # controls that see other pairs' explanations
  study.num_exported = 40  # questions exported for people
  study.num_practice = 5  # practice questions before them, each followed by its answer
  study.num_checks = 3  # attention checks among them, which whoever looks gets right
  study.num_subjects = 20  # lists of who sees which question under what condition
  study.image_size = 224  # side in pixels of exported pictures
  # The server that asks people, job `study`.
  study.host = ""  # address to listen on: '' for this machine alone; others need a token
  study.port = 8000  # port; 0 for one that is free
  study.token = ""  # secret of the invitation link; made up where one is needed
  study.certificate = ""  # PEM file of the certificate, for https
  study.certificate_key = ""  # PEM file of the certificate's key
  study.public_url = ""  # address at which subjects reach the server, where that is another
  study.design_of_subjects = "within"  # within: each sees all conditions; between: each sees one
  study.items_per_subject = config_dict.placeholder(int)  # items a subject; all by default
  study.max_subjects = 500  # most subjects who take part or have finished
  study.closes = ""  # last day or minute to begin, in UTC: 2027-01-31, or 2027-01-31T18:00
  study.drop_out_hours = 24.0  # hours without an answer until the place is given to another
  study.title = "A study of image pairs"  # heading of all pages
  study.contact = ""  # name and address of whom to write to
  study.consent = ""  # paragraphs of the page of consent; a text for all by default
  # What job `study_results` makes of the answers: who is left out, settled before anybody is asked.
  study.exclusion = exclusion = ml_collections.ConfigDict()
  exclusion.max_failed_checks = 1  # most failed attention checks of a subject who counts
  exclusion.min_share = 0.5  # least share of items answered of a subject who counts
  exclusion.min_median_seconds = 1.5  # least median time an item of a subject who counts
  exclusion.max_same_side = 0.9  # most A, or B, as a share, of a subject who counts
  exclusion.seconds = (0.3, 120.0)  # shortest and longest time that counts as a time
  # How many to ask, job `plan_study`.
  study.plan = plan = ml_collections.ConfigDict()
  plan.baseline = 0.6  # share of right answers with nothing shown, guessed or from a pilot
  plan.gain = 0.1  # smallest difference of shares that is not to be missed
  plan.num_items = 40  # items that a subject answers
  plan.num_conditions = 5  # conditions among which they are shared
  plan.within = True  # whether each subject sees all conditions, or one
  plan.subject_sd = 0.5  # standard deviation of subjects' intercepts, in logits
  plan.item_sd = 0.8  # standard deviation of items' intercepts, in logits
  plan.power = 0.8  # probability of finding the gain
  plan.level = 0.05  # level of the two-sided test of one comparison; see docs/study_statistics.md
  return config
