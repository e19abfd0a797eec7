"""Which items there are, and which of them make an outfit: by rules that show in the pictures.

An outfit is made for one reason, its rule, which all of its items carry:

    palette   every item has one accent colour
    pattern   every item has one pattern
    style     every item has a material or detail of one style, in that style's colours

What a rule leaves open is drawn at random. So do random items of the same types obey a rule now and
then, but rarely.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sane_jax.datasets.outfits_drawn import wardrobe
from sane_jax.datasets.outfits_drawn.wardrobe import Item

RULES = {"palette": 0.4, "pattern": 0.3, "style": 0.3}  # how often each is the reason
REUSED = 0.4  # share of an outfit's places that an item drawn earlier fills, where one fits
SIZES = ((2, 0.08), (3, 0.22), (4, 0.3), (5, 0.22), (6, 0.1), (7, 0.05), (8, 0.03))
BODY = 0.25  # share of outfits around a dress rather than top and bottoms

STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # marks, colours
  "denim": (("denim", "frayed"), ("blue", "navy", "white")),
  "punk": (("leather", "studded", "zipped"), ("black", "red", "burgundy")),
  "romantic": (("lace", "ruffled", "bowdetailed", "pearlembelished"), ("pink", "white", "purple")),
  "cosy": (("knitted", "ribbed", "quilted"), ("beige", "grey", "brown")),
  "boho": (("suede", "crochet", "tasseled", "embroidered"), ("brown", "khaki", "orange")),
  "evening": (("sequin", "chained", "embossed"), ("golden", "black", "navy")),
  "sporty": (("logo", "mesh", "hooded"), ("white", "turquoise", "green")),
}
PATTERN_SLOT = "pattern"


class Rule(NamedTuple):
  """Why the items of an outfit match."""

  kind: str  # a key of RULES
  attributes: tuple[str, ...]  # names, one or more of which each item carries


class Outfit(NamedTuple):
  """Items by index, and why they match."""

  items: tuple[int, ...]
  rule: Rule


def categories() -> tuple[str, ...]:
  """Semantic categories that are drawn."""
  return tuple(wardrobe.KINDS)


def category_of(kind: str) -> str:
  """The semantic category of a kind of garment."""
  return next(c for c, kinds in wardrobe.KINDS.items() if kind in kinds)


def _patterns() -> tuple[str, ...]:
  """Patterns that some kind of every frequent category can have."""
  found = dict.fromkeys(
    name
    for kinds in wardrobe.KINDS.values()
    for kind in kinds
    for name in wardrobe.options(kind).get(PATTERN_SLOT, ())
    if name
  )
  return tuple(found)


def draw_rule(rng: np.random.Generator) -> Rule:
  """A reason to match."""
  kind = str(rng.choice(list(RULES), p=list(RULES.values())))
  if kind == "palette":
    return Rule(kind, (str(rng.choice(list(wardrobe.COLOURS))),))
  if kind == "pattern":
    return Rule(kind, (str(rng.choice(_patterns())),))
  style = str(rng.choice(list(STYLES)))
  return Rule(kind, (*STYLES[style][0], *STYLES[style][1]))


def obeys(item: Item, rule: Rule) -> bool:
  """Whether an item carries what a rule asks for."""
  carried = set(item.attributes)
  if rule.kind == "style":
    marks, colours = next(v for v in STYLES.values() if (*v[0], *v[1]) == rule.attributes)
    return bool(carried & set(marks)) and item.colours[0] in colours
  return bool(carried & set(rule.attributes))


def draw_item(rng: np.random.Generator, category: str, rule: Rule | None) -> Item | None:
  """An item of a category that obeys the rule; None where no garment of it can."""
  kinds = [
    kind for kind in wardrobe.KINDS[category] if rule is None or _slots_for(kind, rule) is not None
  ]
  if not kinds:
    return None
  kind = str(rng.choice(kinds))
  chosen: dict[str, str] = {}
  for slot, names in wardrobe.options(kind).items():
    # Most slots stay empty where they may: a garment with everything on it is none.
    empty = "" in names and rng.uniform() < 0.6
    full = [name for name in names if name]
    chosen[slot] = "" if empty or not full else str(rng.choice(full))
  colours = [str(c) for c in rng.choice(list(wardrobe.COLOURS), 2, replace=False)]
  if rule is not None:
    slots = _slots_for(kind, rule)
    if rule.kind == "palette":
      colours = [rule.attributes[0], *(c for c in colours if c != rule.attributes[0])][:2]
    elif slots:
      slot, name = slots[rng.integers(len(slots))]
      chosen[slot] = name
    if rule.kind == "style":
      _, palette = next(v for v in STYLES.values() if (*v[0], *v[1]) == rule.attributes)
      colours[0] = str(rng.choice(palette))
      if colours[1] == colours[0]:
        colours[1] = str(rng.choice([c for c in wardrobe.COLOURS if c != colours[0]]))
  two = bool(chosen.get(PATTERN_SLOT)) or (kind in wardrobe.TRIMMED and rng.uniform() < 0.3)
  colours = colours[: 1 + two]
  names = tuple(dict.fromkeys([*colours, *(n for n in chosen.values() if n)]))
  return Item(kind, names, tuple(colours), int(rng.integers(2**31)))


def _slots_for(kind: str, rule: Rule) -> list[tuple[str, str]] | None:
  """Slots of a kind that carry the rule, with what goes there; None where it can't obey."""
  if rule.kind == "palette":
    return []
  found = [
    (slot, name)
    for slot, names in wardrobe.options(kind).items()
    for name in names
    if name and name in rule.attributes
  ]
  return found or None


def compose(
  rng: np.random.Generator, count: int, items: list[Item], pools: Sequence[list[int]]
) -> list[Outfit]:
  """`count` outfits; items they need and that are not in the pools are added to `items`.

  Args:
    items: all items so far, extended here.
    pools: indices of items that may be worn again; new ones join the first pool.
  """
  by_category: dict[str, list[int]] = {}
  for pool in pools:
    for index in pool:
      by_category.setdefault(category_of(items[index].kind), []).append(index)
  outfits = []
  sizes, weights = zip(*SIZES, strict=True)
  while len(outfits) < count:
    rule = draw_rule(rng)
    size = int(rng.choice(sizes, p=weights))
    body = "all-body" if rng.uniform() < BODY else ""
    core = [body] if body else ["tops", "bottoms"]
    others = [c for c in wardrobe.KINDS if c not in ("tops", "bottoms", "all-body")]
    wanted = [*core, *rng.permutation(others).tolist()]
    chosen: list[int] = []
    for category in wanted:
      if len(chosen) == size:
        break
      fits = [i for i in by_category.get(category, [])[-60:] if obeys(items[i], rule)]
      if fits and rng.uniform() < REUSED:
        chosen.append(int(rng.choice(fits)))
        continue
      item = draw_item(rng, category, rule)
      if item is None or not obeys(item, rule):
        continue
      items.append(item)
      pools[0].append(len(items) - 1)
      by_category.setdefault(category, []).append(len(items) - 1)
      chosen.append(len(items) - 1)
    if len(chosen) >= 2:
      outfits.append(Outfit(tuple(chosen), rule))
  return outfits
