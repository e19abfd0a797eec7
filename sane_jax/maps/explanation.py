"""What the explainer hands back: maps, errors, correspondences; saved, drawn, shown as a page."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from sane_jax import report
from sane_jax.datasets import photos as photos_lib
from sane_jax.maps import export, reasons
from sane_jax.ops import arrays, designs, effects, numerics, resampling, statistics
from sane_jax.ops import matches as matching
from sane_jax.runs import files


@dataclasses.dataclass(frozen=True)
class Photo:
  """An image as the model sees it: [h w 3] float32 in [0, 1]; where it was read, if from a file."""

  name: str
  pixels: Float[np.ndarray, "h w 3"]
  path: str | None = None

  @property
  def uint8(self) -> np.ndarray:
    """[h w 3], to be shown."""
    return np.round(self.pixels * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
  """A reference that is no image: a vector in the model's space, such as that of a text.

  Attributes:
    vector: [d], of any length but 0; what counts is where it points.
    name: what to call it: the text.
  """

  vector: Float[np.ndarray, " d"]
  name: str = ""
  uint8: ClassVar[None] = None  # there is no picture of it

  @functools.cached_property
  def unit(self) -> Float[np.ndarray, " d"]:
    """[d] float32, of length 1.

    Raises:
      ValueError: it is no vector of finite numbers, or of zero length.
    """
    vector = np.asarray(arrays.to_numpy(self.vector), np.float64)
    what = f"the reference embedding {self.name!r}" if self.name else "the reference embedding"
    if vector.ndim != 1 or not len(vector):
      raise ValueError(
        f"{what} is one vector [d]; given an array {list(vector.shape)}. Several are given as"
        " several references"
      )
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or length == 0:
      why = "zeros alone" if length == 0 else "NaN or infinity"
      raise ValueError(f"{what} holds {why}: it points nowhere; look at what made it")
    return (vector / length).astype(np.float32)


class SaliencyMap(NamedTuple):
  """A signed map with its standard error, over pixels [h w] and over cells [c].

  Attributes:
    p_values: [c], of no effect: by Student's t, after Holm's correction for the number of cells.
      NaN where no error is known.
    by_fill: (fill, cells [c]) for each of several fills, where each has masks of its own.
    notes: what a reader should know.
  """

  values: Float[np.ndarray, "h w"]
  errors: Float[np.ndarray, "h w"]
  cells: Float[np.ndarray, " c"]
  cell_errors: Float[np.ndarray, " c"]
  p_values: Float[np.ndarray, " c"]
  by_fill: tuple[tuple[str, np.ndarray], ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def sure(self) -> Bool[np.ndarray, " c"]:
    """Cells whose effect is not the draw of masks; in 5 % of maps, at most, any is a false one."""
    return np.nan_to_num(self.p_values, nan=1) <= statistics.SIGNIFICANCE


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
  """The effect matrix of one image, with its replicates: enough to explain it against anything.

  Attributes:
    photo: the image.
    design, key: the masks that were shown.
    settings: all that fixes the measurement, as in `Explainer.settings`.
    cells: the regions they switch.
    moments: sums over the masks, a block a replicate.
    strata: between how many fills whole replicates took turns; 1 where pairs of masks did.
    whole: unit embedding [d] of the unmasked image.
    passes: encoder passes spent.
    notes: what a reader should know.
    engine: the engine that ran the model, by a name that no other has.
    digest: SHA-256 of the parameters of the model that was measured; '' for one on the host, which
      is known by `whole`: it has to give that again.
  """

  photo: Photo
  design: designs.Design
  key: Any
  settings: dict[str, Any]
  cells: designs.Cells
  moments: effects.Moments
  whole: np.ndarray
  passes: int
  notes: tuple[str, ...] = ()
  strata: int = 1
  engine: str = ""
  digest: str = ""

  @functools.cached_property
  @numerics.ours()
  def matrix(self) -> jax.Array:
    """E [c d]: how much each cell moves each axis of the embedding."""
    return effects.effect_matrix(self.design, self.cells, self.moments)


class ReferenceSide(NamedTuple):
  """The other half of an explanation, made when it is asked for."""

  saliency: SaliencyMap
  labels: Int[np.ndarray, "h w"]
  matrices: tuple[Any, Any] | None  # E of query and reference, where there are embeddings
  valid: tuple[np.ndarray, np.ndarray] | None
  passes: int


@dataclasses.dataclass(eq=False)
class Explanation:
  """Why a model gives a query and a reference their score. Made by `Explainer`.

  Attributes:
    query, reference: the images as the model saw them (`contrast`: what the reference is
      preferred to, for `Explainer.contrast`); a reference may be an `Embedding`, which has no map.
    score: cosine similarity of the two; for a contrast, the difference of two.
    grid: (rows, columns) of the cells, row-major; None for superpixels and learned masks.
    query_cells: [h w], the cell of each pixel of the query.
    settings: all that fixes the answer.
    warnings: what a reader of the map should know.
    embeddings: of the whole query and reference; directions: [k d], what the query's effects were
      read against: the reference's, or those of its masked versions; effects: the query's. None
      where there are none.
    key: of the masks, as the explainer has it; None for what an index answers.
  """

  query: Photo
  reference: Photo | Embedding
  score: float
  saliency: SaliencyMap
  grid: tuple[int, int] | None
  query_cells: Int[np.ndarray, "h w"]
  settings: dict[str, Any]
  warnings: list[str]
  passes: int
  make_reference_side: Callable[[], ReferenceSide] | None = dataclasses.field(repr=False)
  contrast: Photo | Embedding | None = None
  seconds: float | None = None
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  ranker: reasons.Ranker | None = dataclasses.field(default=None, repr=False)
  embeddings: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(default=None, repr=False)
  directions: np.ndarray | None = dataclasses.field(default=None, repr=False)
  effects: Effects | None = dataclasses.field(default=None, repr=False)
  key: jax.Array | None = dataclasses.field(default=None, repr=False)
  _reference_side: ReferenceSide | None = dataclasses.field(default=None, init=False, repr=False)

  def __post_init__(self):
    """Files of one name keep as much of their paths as tells them apart."""
    sides = {side: getattr(self, side) for side in ("query", "reference", "contrast")}
    paths = {side: p.path for side, p in sides.items() if isinstance(p, Photo) and p.path}
    if len({sides[side].name for side in paths}) < len({*paths.values()}):
      for side, name in zip(paths, photos_lib.tell_apart([*paths.values()]), strict=True):
        setattr(self, side, dataclasses.replace(sides[side], name=name))

  @property
  def saliency_map(self) -> Float[np.ndarray, "h w"]:
    """[h w], signed: above zero where showing the query's region raises the score."""
    return self.saliency.values

  @property
  def standard_error(self) -> Float[np.ndarray, "h w"]:
    """[h w], of the saliency map, from replicates of the design; 0 where nothing was sampled.

    Of the draw of masks alone: not of what fills differ by, nor of a ridge's bias. NaN where there
    is no second replicate to compare with, and for learned masks.
    """
    return self.saliency.errors

  @property
  def sure(self) -> Bool[np.ndarray, "h w"]:
    """[h w], where the effect of the pixel's cell is not the draw of masks.

    By Student's t and Holm's correction: in 5 % of maps, at most, any cell is named wrongly. None
    is where no error is known.
    """
    return self.saliency.sure[self.query_cells]

  @property
  def maps_by_fill(self) -> dict[str, Float[np.ndarray, " c"]]:
    """The map [c] behind each fill alone, where several took turns; empty where they share masks.

    With `hadamard` each fill has masks of its own from two replicates a fill on: 512 masks behind
    'mean+blur'. The map is the mean of these. How far they differ is no part of the standard error.
    """
    return dict(self.saliency.by_fill)

  @property
  @numerics.ours()
  def reference_side(self) -> ReferenceSide:
    if self._reference_side is None:
      if self.make_reference_side is None:
        why = "" if self.reference.uint8 is not None else ": an embedding has no regions"
        raise ValueError(f"this explanation has no map on the reference{why}")
      self._reference_side = self.make_reference_side()
    return self._reference_side

  @property
  def reference_saliency_map(self) -> Float[np.ndarray, "h w"]:
    """[h w] over the reference. Perturbing it takes N further passes, spent on first use."""
    return self.reference_side.saliency.values

  @property
  def reference_standard_error(self) -> Float[np.ndarray, "h w"]:
    """[h w], of `reference_saliency_map`."""
    return self.reference_side.saliency.errors

  @property
  def reference_cells(self) -> Int[np.ndarray, "h w"]:
    """[h w], the cell of each pixel of the reference."""
    return self.reference_side.labels

  @functools.cached_property
  @numerics.ours()
  def correspondence(self) -> Float[np.ndarray, "cq cr"]:
    """[c_q c_r] in [−1, 1]: which region of the query matches which of the reference.

    Row-major in `grid`, or by `query_cells` and `reference_cells`. The cosine between the
    effects of two regions on the embedding, each centred over its image's regions. The largest
    entry of a row is no match by itself: see `matches`.

    Raises:
      ValueError: a design or a model without effect matrices.
    """
    query, reference = self._matrices
    return np.asarray(effects.correspondence(query, reference))

  @property
  def match_threshold(self) -> float:
    """The cosine in `correspondence` from which two regions match, see `ops.matches`."""
    query, reference = self._matrices
    return matching.match_threshold(len(query), len(reference), query.shape[1])

  @functools.cached_property
  @numerics.ours()
  def matches(self) -> list[tuple[int, int, float]]:
    """Regions that are each other's best match, with a cosine of `match_threshold` or more.

    (query's region, reference's region, cosine), surest first; empty where nothing matches, as in
    photos that have nothing in common.
    """
    return matching.mutual_matches(self.correspondence, self.match_threshold)

  @property
  @numerics.ours()
  def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
    """Effects of both images' regions [c_q d], [c_r d]."""
    side = self.reference_side
    if side.matrices is None or side.valid is None:
      raise ValueError(
        "correspondence compares effects on embeddings: it needs a model that gives embeddings"
        f" and a design of masks; here the design is {self.settings['design']}"
      )
    query, reference = (m[v] for m, v in zip(side.matrices, side.valid, strict=True))
    return query, reference

  @functools.cached_property
  @numerics.ours()
  def explained_by(self) -> reasons.Attributes:
    """Attributes that explain the pair, ranked; jointly; and as a sentence.

    Raises:
      ValueError: the explainer was given no attributes.
    """
    if self.ranker is None:
      raise ValueError(
        "this explanation knows no attributes: give the explainer some, as in"
        " sane_jax.Explainer(model, attributes=sane_jax.load_attributes('runs/demo'))"
      )
    return rank(self, self.ranker)

  @property
  def attributes(self) -> tuple[reasons.RankedAttribute, ...]:
    """All attributes, best first: name, total, each term, its map."""
    return self.explained_by.ranked

  @property
  def attribute_margin(self) -> float:
    """How far the first attribute's total is from the second's."""
    return self.explained_by.margin

  @functools.cached_property
  @numerics.ours()
  def attribute_regions(self) -> Float[np.ndarray, "c a"]:
    """How far showing each region of the query moves its embedding as each attribute would.

        attribute_regions[c, a] = E_q[c] · p_a

    with E_q the query's effect matrix and p_a the attribute's pattern, the direction in which
    embeddings of images with it differ from others (`ops.concepts.patterns`), in the order of
    `attributes`. Where the model itself sees an attribute: the attribute model has no part in it.
    Columns of attributes without a concept are 0.

    Raises:
      ValueError: no attributes, or without patterns; a model or a design that gives no effect
        matrix.
    """
    ranked = self.attributes
    if self.effects is None:
      raise ValueError(
        "regions are scored by their effects on embeddings: that needs a model that gives"
        f" embeddings and a design of masks; here the design is {self.settings['design']}"
      )
    patterns = [a.pattern for a in ranked if a.pattern is not None]
    if len(patterns) < len(ranked):
      raise ValueError(
        "these concepts hold no patterns of attributes, only normals of classifiers, by which a"
        " region may seem to speak against what it shows; fit them again with"
        " --config.job=fit_concepts in another --config.concepts.folder"
      )
    return np.asarray(self.effects.matrix) @ np.stack(patterns, axis=1)

  @property
  def sentence(self) -> str:
    """Why the two match, in words, made from what was measured."""
    return self.explained_by.sentence

  @property
  def encoder_passes(self) -> int:
    """Images that went through the encoder for this explanation, counted at the model."""
    side = self._reference_side
    return self.passes + (side.passes if side is not None else 0)

  # --- out ----------------------------------------------------------------------------------------

  @numerics.ours()
  def view(self) -> report.PairView:
    """What the page and the figure show. Computes the reference's side if there is one."""
    return export.view(self)

  def snippet(self) -> str:
    """Python that reproduces the explanation, given the `model`; with a picture as fill, here."""
    return export.snippet(self)

  def _title(self) -> str:
    return export.title(self)

  def plot(self):
    """A matplotlib figure of the pair with its maps."""
    return report.draw_figure(self.view())

  def to_html(self, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the pair as one self-contained page, and returns its path."""
    path = files.at(path)
    page = report.render_page([self.view()], title=export.title(self))
    files.write_bytes(path, page.encode())
    return path

  def record(self) -> dict[str, Any]:
    """Everything but the arrays, for JSON."""
    return export.record(self)

  def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes explanation.json, maps.npz, figure.png and index.html into `folder`."""
    return export.save(self, folder)

  def _repr_png_(self) -> bytes:
    """Notebooks show the figure."""
    return report.figure_png(self.view())


def rank(e: Explanation, ranker: reasons.Ranker) -> reasons.Attributes:
  """The attributes that `ranker` explains a pair by."""
  grid = e.grid or (resampling.PAGE_GRID, resampling.PAGE_GRID)
  cells = e.saliency.cells
  if e.grid is None:  # superpixels, or a mask at another size
    rows, columns = (
      resampling.averaging(n, g) for n, g in zip(e.saliency_map.shape, grid, strict=True)
    )
    cells = rows @ np.nan_to_num(e.saliency_map) @ columns.T
  return ranker(e.query.pixels, np.asarray(cells).reshape(grid), e.embeddings)
