"""This library beside others, in one run: same network, same weights, same photos, as many masks.

  python -m pip install -e '.[peers]'
  python benchmarks/peers/compare.py --photos FOLDER --out runs/peers

Every case is a process of its own, so its peak memory is its own; cases take turns, round after
round, so a machine whose speed drifts wrongs none. A process loads the network, explains one pair
to warm up (compilation, the best batch size), and then times the others. Torch runs in
channels_last, without gradients, with an allocator that keeps its memory (MALLOC_*), at the fastest
of several batch sizes, as its own documentation recommends.

Writes peers.jsonl (a line a case and round), maps, and peers.md: seconds a pair, peak memory,
insertion and deletion by this library's metric for all.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

SIZE = 112
MASKS = 2000  # of RISE
WINDOW, STRIDE = 32, 4  # occlusion: 21 x 21 positions
SAMPLES = 1000  # of LIME and KernelSHAP
GRID = 8  # cells a side of KernelSHAP's players
REFERENCES = 20  # of the map-cache job
MASKED_REFERENCES = 30  # of the mode that perturbs both images
BATCHES = (8, 16, 32, 64, 128)
KEEP_MEMORY = {
  "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184",
  "MALLOC_TOP_PAD_": "268435456",
}  # fmt: skip


def read_photos(folder, count):
  """`count` photos [n s s 3] in [0, 1], evenly from the folder: queries, then references."""
  from sane_jax.datasets import images, photos

  paths = photos.list_photos(folder)
  chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
  return np.stack([images.fit_image(images.read_image(p), (SIZE, SIZE)) for p in chosen])


def make_pairs(folder, count):
  """(queries, references): two lots of photos, from all over the folder."""
  photos = read_photos(folder, 2 * count)
  return photos[:count], photos[count:]


# --- torch ----------------------------------------------------------------------------------------


@functools.cache
def torch_network():
  import torch
  from efficientnet_lite_pytorch import EfficientNet

  from sane_jax.models import efficientnet_lite0

  torch.set_num_threads(os.cpu_count())
  net = EfficientNet.from_name("efficientnet-lite0", image_size=SIZE).eval()
  net.load_state_dict(torch.load(efficientnet_lite0._weights_path(), weights_only=True))
  return net.to(memory_format=torch.channels_last)


def torch_embed(images):
  """Unit embeddings of a tensor [n 3 s s] in [0, 1]."""
  import torch

  x = ((images * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
  return torch.nn.functional.normalize(torch_network().extract_features(x).mean((2, 3)), dim=1)


@functools.cache
def torch_batch():
  """The batch size at which torch is fastest here."""
  import torch

  rates = {}
  with torch.inference_mode():
    for size in BATCHES:
      images = torch.rand(size, 3, SIZE, SIZE)
      torch_embed(images)
      began = time.perf_counter()
      for _ in range(max(1, 128 // size)):
        torch_embed(images)
      rates[size] = max(128, size) / (time.perf_counter() - began)
  return max(rates, key=lambda size: rates[size])


def to_torch(image):
  import torch

  return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


@functools.cache
def rendered_masks(count, seed=0):
  """The first RISE masks of this library, so that both sides show the same."""
  import jax

  from sane_jax.ops import designs

  design = designs.Rise(num_masks=MASKS)
  cells = designs.grid_cells((SIZE, SIZE), design.grid)
  key = jax.random.key(seed)
  render = jax.jit(jax.vmap(lambda index: designs.mask(design, key, cells, index)[0]))
  parts = [np.asarray(render(np.arange(i, min(i + 100, count)))) for i in range(0, count, 100)]
  return np.concatenate(parts)


def plain_loop(query, references, masks):
  """RISE as its formula says, each reference by itself: all masked queries are embedded anew."""
  import torch

  batch, query, out = torch_batch(), to_torch(query), []
  fill = query.mean((2, 3), keepdim=True)
  stack = torch.from_numpy(masks)[:, None]
  with torch.inference_mode():
    for reference in references:
      other = torch_embed(to_torch(reference))[0]
      total, weight, scores = torch.zeros(SIZE, SIZE), torch.zeros(SIZE, SIZE), []
      for part in stack.split(batch):
        score = torch_embed(query * part + fill * (1 - part)) @ other
        total += torch.einsum("n,nhw->hw", score, part[:, 0])
        weight += part[:, 0].sum(0)
        scores.append(score)
      out.append((total / weight - torch.cat(scores).mean()).numpy())
  return np.stack(out)


# --- explained pair by pair -----------------------------------------------------------------------
# Each takes a query and a reference [s s 3] and gives a map [s s], higher where it matters more.


def captum_forward(reference):
  import torch

  with torch.inference_mode():
    other = torch_embed(to_torch(reference))[0].clone()

  def forward(images):
    with torch.inference_mode():
      return torch_embed(images) @ other

  return forward


def captum_map(attribution):
  return attribution.detach().mean(1)[0].numpy()


def captum_occlusion(query, reference):
  from captum.attr import Occlusion

  image = to_torch(query)
  return captum_map(
    Occlusion(captum_forward(reference)).attribute(
      image, sliding_window_shapes=(3, WINDOW, WINDOW), strides=(3, STRIDE, STRIDE),
      baselines=image.mean((2, 3), keepdim=True).expand_as(image),
      perturbations_per_eval=torch_batch(),
    )
  )  # fmt: skip


def superpixels(query):
  from sane_jax.ops import designs

  return np.asarray(designs.superpixel_cells(query).labels)


def captum_lime(query, reference):
  import torch
  from captum.attr import Lime

  labels = torch.from_numpy(superpixels(query).astype(np.int64))[None, None]
  return captum_map(
    Lime(captum_forward(reference)).attribute(
      to_torch(query), feature_mask=labels, n_samples=SAMPLES,
      perturbations_per_eval=torch_batch(),
    )
  )  # fmt: skip


def captum_kernel_shap(query, reference):
  import torch
  from captum.attr import KernelShap

  image = to_torch(query)
  rows = np.arange(SIZE) * GRID // SIZE
  labels = torch.from_numpy(rows[:, None] * GRID + rows)[None, None]
  return captum_map(
    KernelShap(captum_forward(reference)).attribute(
      image, feature_mask=labels, n_samples=SAMPLES, perturbations_per_eval=torch_batch(),
      baselines=image.mean((2, 3), keepdim=True).expand_as(image),
    )
  )  # fmt: skip


def lime_package(query, reference):
  import torch
  from lime import lime_image

  forward = captum_forward(reference)

  def classify(images):
    x = torch.from_numpy(np.asarray(images, np.float32).transpose(0, 3, 1, 2))
    score = forward(x).numpy()
    return np.stack([score, 1 - score], axis=1)

  explanation = lime_image.LimeImageExplainer(random_state=0).explain_instance(
    query.astype(np.float64), classify, labels=(0,), top_labels=None, hide_color=0,
    num_samples=SAMPLES, batch_size=torch_batch(), random_seed=0,
  )  # fmt: skip
  out = np.zeros((SIZE, SIZE))
  for segment, weight in explanation.local_exp[0]:
    out[explanation.segments == segment] = weight
  return out


@functools.cache
def xaitk_descriptors():
  import torch
  from smqtk_descriptors.interfaces.image_descriptor_generator import ImageDescriptorGenerator

  class Descriptors(ImageDescriptorGenerator):
    def generate_arrays_from_images(self, img_mat_iter):
      images = [np.asarray(image, np.float32) / 255 for image in img_mat_iter]
      with torch.inference_mode():
        for i in range(0, len(images), torch_batch()):
          x = torch.from_numpy(np.stack(images[i : i + torch_batch()]).transpose(0, 3, 1, 2))
          yield from torch_embed(x).numpy()

    def get_config(self):
      return {}

  return Descriptors()


def xaitk(query, reference, perturber):
  from xaitk_saliency.impls.gen_descriptor_sim_sal.similarity_scoring import SimilarityScoring
  from xaitk_saliency.impls.gen_image_similarity_blackbox_sal.occlusion_based import (
    PerturbationOcclusion,
  )

  eight = [np.round(image * 255).astype(np.uint8) for image in (query, reference)]
  fill = eight[0].mean((0, 1)).astype(int).tolist()
  generator = PerturbationOcclusion(
    perturber, SimilarityScoring(proximity_metric="cosine"), fill=fill, threads=os.cpu_count()
  )
  return generator.generate(eight[0], [eight[1]], xaitk_descriptors())[0]


def xaitk_sbsm(query, reference):
  from xaitk_saliency.impls.perturb_image.sliding_window import SlidingWindow

  return xaitk(query, reference, SlidingWindow((WINDOW, WINDOW), (STRIDE, STRIDE)))


def xaitk_rise(query, reference):
  from xaitk_saliency.impls.perturb_image.rise import RISEGrid

  return xaitk(query, reference, RISEGrid(MASKS, 8, 0.5, seed=0, threads=os.cpu_count()))


def loop_rise(query, reference):
  return plain_loop(query, [reference], rendered_masks(MASKS))[0]


@functools.cache
def ours(**options):
  import sane_jax

  model = sane_jax.load_model("efficientnet_lite0", image_size=SIZE)
  return sane_jax.Explainer(model, **options)


def our_map(query, reference, **options):
  return ours(**options).explain(query, reference).saliency_map


DEFAULT = "the default, and fewer masks"
POSITIONS = (SIZE - WINDOW) // STRIDE + 1
# family -> library -> one pair's map
PAIRS = {
  "occlusion": {
    "sane_jax": functools.partial(
      our_map, design="sliding_window", grid=(POSITIONS, POSITIONS), padding=0.0
    ),
    "captum Occlusion": captum_occlusion,
    "xaitk-saliency SBSM": xaitk_sbsm,
  },
  "RISE": {
    "sane_jax": functools.partial(our_map, design="rise", num_masks=MASKS),
    "xaitk-saliency RISE": xaitk_rise,
    "torch loop": loop_rise,
  },
  "LIME": {
    "sane_jax": functools.partial(our_map, design="lime", num_masks=SAMPLES),
    "captum Lime": captum_lime,
    "lime": lime_package,
  },
  "KernelSHAP": {
    "sane_jax": functools.partial(our_map, design="kernel_shap", num_masks=SAMPLES + 1),
    "captum KernelShap": captum_kernel_shap,
  },
  DEFAULT: {
    "sane_jax, 256 masks": our_map,
    "sane_jax, 128 masks": functools.partial(our_map, design="hadamard", num_masks=128),
    "sane_jax, 64 masks, 5 x 5": functools.partial(
      our_map, design="hadamard", num_masks=64, grid=(5, 5)
    ),
  },
}  # fmt: skip


# --- the map-cache job, and both images -----------------------------------------------------------


def cache_loop(photos):
  return plain_loop(photos[0], photos[1 : REFERENCES + 1], rendered_masks(MASKS))


def cache_ours(photos, **options):
  explainer = ours(**options)
  found = explainer.explain_many(photos[0], list(photos[1 : REFERENCES + 1]))
  return np.stack([e.saliency_map for e in found])


def both_loop(photos):
  """One pair, both images masked: all masked queries again for each masked reference."""
  import jax
  import torch

  from sane_jax.maps import measure

  explainer = ours(design="rise", num_masks=MASKS, mode="both")
  masking, design, start, count = measure.mask_reference(
    explainer.design, explainer.key, explainer.photo(photos[1]).pixels, explainer.fill
  )
  show = jax.vmap(lambda drawn, index: design.show(drawn, masking.cells, index)[0])
  masks = np.asarray(show(masking.drawn, np.arange(design.num_masks)))[start : start + count]
  reference = to_torch(photos[1])
  fill = reference.mean((2, 3), keepdim=True)
  stack = torch.from_numpy(masks)[:, None]
  shown = (reference * stack + fill * (1 - stack)).numpy().transpose(0, 2, 3, 1)
  return plain_loop(photos[0], shown, rendered_masks(MASKS)).mean(axis=0, keepdims=True)


def both_ours(photos):
  explainer = ours(design="rise", num_masks=MASKS, mode="both")
  return explainer.explain(photos[0], photos[1]).saliency_map[None]


JOBS = {
  "map cache: 1 query, 20 references": {
    "torch loop": cache_loop,
    "sane_jax": functools.partial(cache_ours, design="rise", num_masks=MASKS),
    "sane_jax, the default": cache_ours,
    "sane_jax, 128 Hadamard masks": functools.partial(cache_ours, design="hadamard", num_masks=128),
  },
  "both images: 2,000 x 30 masks": {"torch loop": both_loop, "sane_jax": both_ours},
}


# --- one case in a process of its own -------------------------------------------------------------


def peak_megabytes():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def warm_up(library, function, queries, references):
  """Loads and compiles: one explanation, or for a torch loop a few images."""
  if library == "torch loop":
    torch_batch()
    plain_loop(queries[0], references[:1], rendered_masks(MASKS)[: torch_batch()])
  else:
    function(queries[0], references[0])


def run_case(args):
  queries, references = make_pairs(args.photos, args.pairs + 1)
  function = {**PAIRS, **JOBS}[args.family][args.case]
  began = time.perf_counter()
  if args.family in JOBS:
    photos = np.concatenate([queries[:1], read_photos(args.photos, REFERENCES + 1)[1:]])
    if args.case == "torch loop":
      warm_up(args.case, function, queries, references)
      if args.family.startswith("both"):
        rendered_masks(MASKS)
    else:
      function(photos)
    first = time.perf_counter() - began
    began = time.perf_counter()
    maps = function(photos)
    seconds = [time.perf_counter() - began]
  else:
    warm_up(args.case, function, queries, references)
    first = time.perf_counter() - began
    maps, seconds = [], []
    for query, reference in zip(queries[1:], references[1:], strict=True):
      began = time.perf_counter()
      maps.append(function(query, reference))
      seconds.append(time.perf_counter() - began)
  np.save(args.out / f"{slug(args.family)}_{slug(args.case)}.npy", np.stack(maps))
  batch = torch_batch() if "torch" in sys.modules and "sane_jax" not in args.case else None
  print(json.dumps({
    "family": args.family, "case": args.case, "seconds": seconds, "first": first,
    "peak_megabytes": peak_megabytes(), "batch": batch,
  }))  # fmt: skip


def slug(text):
  return "".join(c if c.isalnum() else "_" for c in text.lower())


# --- all of them ----------------------------------------------------------------------------------


def quality(args):
  """Insertion and deletion of every map, by one metric, on two backgrounds."""
  import sane_jax
  from sane_jax.ops.insertion_deletion import areas

  queries, references = make_pairs(args.photos, args.pairs + 1)
  explainer = ours(design="hadamard", num_masks=128)
  photo = collections.namedtuple("Pair", "query reference saliency_map")
  out = {}
  for family, cases in PAIRS.items():
    for case in cases:
      path = args.out / f"{slug(family)}_{slug(case)}.npy"
      if not path.exists():
        continue
      pairs = [
        photo(explainer.photo(q), explainer.photo(r), m)
        for q, r, m in zip(queries[1:], references[1:], np.load(path), strict=True)
      ]
      for background in ("mean", "blur"):
        found = areas(sane_jax.insertion_deletion(explainer, pairs, background=background))
        out[family, case, background] = (found["insertion"].mean(), found["deletion"].mean())
  return out


def run_all(args):
  args.out.mkdir(parents=True, exist_ok=True)
  cases = [(f, c) for f, group in {**PAIRS, **JOBS}.items() for c in group]
  cases = [(f, c) for f, c in cases if not args.only or any(word in f for word in args.only)]
  lines = []
  for turn in range(args.rounds):
    for family, case in cases:
      slow = case == "torch loop" and family in JOBS
      if slow and turn:  # minutes each; the others' rounds show how steady the machine is
        continue
      environment = {**os.environ, **({} if case.startswith("sane_jax") else KEEP_MEMORY)}
      command = [
        sys.executable, __file__, "--photos", str(args.photos), "--out", str(args.out),
        "--pairs", str(args.pairs), "--family", family, "--case", case,
      ]  # fmt: skip
      done = subprocess.run(command, env=environment, capture_output=True, text=True)
      if done.returncode:
        print(f"{family}, {case}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        continue
      lines.append(json.loads(done.stdout.strip().splitlines()[-1]) | {"round": turn})
      print(f"{turn} {family}, {case}: {np.median(lines[-1]['seconds']):.3f} s", flush=True)
      (args.out / "peers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  write_table(args, lines)


def write_table(args, lines):
  import platform

  import jax

  scores = quality(args)
  found = collections.defaultdict(list)
  for line in lines:
    found[line["family"], line["case"]].append(line)
  text = [
    f"EfficientNet-Lite0 at {SIZE} pixels, {os.cpu_count()} CPU cores, jax {jax.__version__},"
    f" Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}; {args.pairs} pairs,"
    f" {args.rounds} rounds in turn; medians.\n",
    "| method | library | seconds a pair | to sane_jax's | to its default | peak memory, MB"
    " | insertion − deletion, mean | blur |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
  ]

  def median(family, case):
    return np.median([s for line in found.get((family, case), ()) for s in line["seconds"]])

  default = median(DEFAULT, "sane_jax, 256 masks")
  for (family, case), each in found.items():
    seconds = median(family, case)
    ratio = seconds / median(family, "sane_jax")
    peak = np.median([line["peak_megabytes"] for line in each])
    marks = [
      f"{scores[family, case, b][0] - scores[family, case, b][1]:.1f}"
      if (family, case, b) in scores
      else "–"
      for b in ("mean", "blur")
    ]
    text.append(
      f"| {family} | {case} | {seconds:.2f} | {'–' if np.isnan(ratio) else f'{ratio:.1f}'}"
      f" | {'–' if family in JOBS else f'{seconds / default:.1f}'} | {peak:,.0f}"
      f" | {marks[0]} | {marks[1]} |"
    )
  for family in JOBS:
    paths = [args.out / f"{slug(family)}_{slug(case)}.npy" for case in ("sane_jax", "torch loop")]
    if all(path.exists() for path in paths):
      one, two = (np.load(path) for path in paths)
      text.append(compare_maps(family, one, two))
  (args.out / "peers.md").write_text("\n".join(text) + "\n")
  print("\n".join(text))


def compare_maps(family, one, two):
  """This library averages RISE's map over 28 x 28 cells and enlarges it: so is the loop's here."""
  from sane_jax.ops import designs, resampling

  rows = resampling.averaging(SIZE, 28)
  up = designs._interpolation(SIZE, 28)
  same = np.einsum("ch,nhw,dw->ncd", rows, two, rows)
  theirs = np.einsum("hc,ncd,wd->nhw", up, same, up)
  return (
    f"\n{family}: largest difference between the two libraries' maps"
    f" {np.abs(one - theirs).max():.1e} (the largest value is {np.abs(theirs).max():.1e})"
  )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--photos", type=pathlib.Path, required=True, help="a folder of photos")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/peers"))
  parser.add_argument("--pairs", type=int, default=6)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--only", nargs="*", help="methods whose names contain one of these")
  parser.add_argument("--family", help=argparse.SUPPRESS)
  parser.add_argument("--case", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.case:
    run_case(given)
  else:
    run_all(given)
