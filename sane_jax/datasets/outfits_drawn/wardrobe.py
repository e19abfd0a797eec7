"""What can be drawn: colours, kinds of garment, and the attributes that each may have."""

from typing import NamedTuple

from sane_jax.datasets.outfits_drawn import patterns

SIZE = 300
COLOURS: dict[str, tuple[int, int, int]] = {
  "black": (35, 34, 38),
  "white": (233, 233, 231),
  "red": (200, 32, 42),
  "navy": (28, 40, 88),
  "green": (46, 128, 70),
  "pink": (240, 150, 180),
  "beige": (216, 194, 160),
  "grey": (142, 144, 150),
  "blue": (52, 106, 200),
  "brown": (118, 74, 44),
  "purple": (118, 62, 150),
  "orange": (238, 126, 36),
  "turquoise": (50, 186, 186),
  "burgundy": (110, 22, 46),
  "khaki": (138, 132, 82),
  "golden": (214, 166, 52),
}

KINDS: dict[str, tuple[str, ...]] = {
  "tops": ("tee", "blouse", "sweater", "tank"),
  "bottoms": ("trousers", "shorts", "skirt"),
  "all-body": ("dress", "jumpsuit"),
  "outerwear": ("coat", "jacket", "hoodie"),
  "shoes": ("boot", "pump", "sneaker"),
  "bags": ("tote", "clutch"),
  "hats": ("beanie", "sunhat"),
  "scarves": ("scarf",),
  "sunglasses": ("shades",),
  "jewellery": ("necklace",),
  "accessories": ("belt",),
}

_CLOTH = (
  "denim",
  "knitted",
  "quilted",
  "leather",
  "lace",
  "sequin",
  "ribbed",
  "mesh",
  "crochet",
  "suede",
  "",
)
_PRINTS = (*patterns.PATTERNS, "")
_SMALL_PRINTS = (*(p for p in patterns.PATTERNS if p not in ("graphic", "colorblock")), "")
_TOP = {
  "pattern": _PRINTS,
  "material": _CLOTH,
  "hem": ("cropped", "ruffled", "frayed", "peplum", "asymmetric", ""),
  "detail": ("pocketed", "logo", "embroidered", "studded", "pearlembelished", ""),
}
_SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
  "tee": {**_TOP, "sleeve": ("shortsleeve", "longsleeve"), "collar": ("cutout", "")},
  "blouse": {
    **_TOP,
    "sleeve": ("shortsleeve", "longsleeve"),
    "collar": ("collared", ""),
    "closure": ("buttoned", "bowdetailed"),
  },
  "sweater": {
    **_TOP,
    "sleeve": ("longsleeve",),
    "material": ("knitted", "ribbed", "crochet", "sequin"),
    "closure": ("buttoned", "zipped", ""),
  },
  "tank": {**_TOP, "sleeve": ("sleeveless",), "closure": ("bowdetailed", "")},
  "trousers": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "cut": ("wide", "skinny", "straightleg"),
    "hem": ("cuffed", "frayed", ""),
    "closure": ("belted", "waistbanded", ""),
    "detail": ("pocketed", "studded", "embroidered", "zipped", ""),
  },
  "shorts": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "hem": ("cuffed", "frayed", "ruffled", ""),
    "closure": ("belted", "waistbanded", ""),
    "detail": ("pocketed", "studded", "embroidered", ""),
  },
  "skirt": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "length": ("mini", "midi", "maxi"),
    "hem": ("ruffled", "pleated", "layered", "asymmetric", ""),
    "closure": ("belted", "waistbanded", "buttoned", ""),
  },
  "dress": {
    "pattern": _PRINTS,
    "material": _CLOTH,
    "sleeve": ("sleeveless", "shortsleeve", "longsleeve"),
    "length": ("mini", "midi", "maxi"),
    "collar": ("collared", "cutout", ""),
    "hem": ("ruffled", "pleated", "layered", "asymmetric", ""),
    "closure": ("belted", "bowdetailed", "buttoned", ""),
  },
  "jumpsuit": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "sleeve": ("sleeveless", "shortsleeve"),
    "cut": ("wide", "skinny", "straightleg"),
    "closure": ("belted", "zipped", "buttoned", ""),
    "collar": ("collared", ""),
  },
  "coat": {
    "pattern": _SMALL_PRINTS,
    "material": _CLOTH,
    "sleeve": ("longsleeve",),
    "collar": ("collared", "hooded"),
    "closure": ("buttoned", "zipped", "belted"),
    "detail": ("pocketed", "embroidered", "studded", ""),
  },
  "jacket": {
    "pattern": _SMALL_PRINTS,
    "material": ("denim", "leather", "quilted", "suede", "sequin"),
    "sleeve": ("longsleeve",),
    "collar": ("collared", ""),
    "closure": ("buttoned", "zipped"),
    "detail": ("pocketed", "studded", "embroidered", "chained", ""),
  },
  "hoodie": {
    "pattern": _PRINTS,
    "material": ("ribbed", "mesh", "quilted", ""),
    "sleeve": ("longsleeve",),
    "collar": ("hooded",),
    "closure": ("zipped", ""),
    "detail": ("logo", "pocketed"),
  },
  "boot": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "suede", "quilted", "knitted"),
    "shaft": ("ankle", "kneehigh"),
    "sole": ("heel", "platform", "flat"),
    "toe": ("pointy", "round"),
    "detail": ("zipped", "studded", "tasseled", "chained", ""),
  },
  "pump": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "suede", "sequin", "lace", "denim", ""),
    "sole": ("heel", "platform"),
    "toe": ("pointy", "round"),
    "detail": ("bowdetailed", "strappy", "studded", "pearlembelished", "embroidered", ""),
  },
  "sneaker": {
    "pattern": _SMALL_PRINTS,
    "material": ("mesh", "leather", "denim", "knitted", ""),
    "sole": ("platform", "flat"),
    "detail": ("logo", "studded", "embroidered", ""),
  },
  "tote": {
    "pattern": _PRINTS,
    "material": ("leather", "denim", "crochet", "quilted", "suede", "sequin", ""),
    "detail": ("logo", "pocketed", "tasseled", "studded", "bowdetailed", "embroidered", "frayed"),
  },
  "clutch": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "sequin", "quilted", "suede", "lace", "denim"),
    "detail": (
      "chained",
      "zipped",
      "tasseled",
      "pearlembelished",
      "embossed",
      "studded",
      "bowdetailed",
      "embroidered",
      "logo",
    ),
  },
  "beanie": {
    "pattern": _SMALL_PRINTS,
    "material": ("knitted", "ribbed", "crochet", "mesh", "sequin", "denim"),
    "detail": ("logo", "tasseled", "cuffed", "embroidered", "studded", "pearlembelished", ""),
  },
  "sunhat": {
    "pattern": _SMALL_PRINTS,
    "material": ("crochet", "suede", "denim", "leather", "lace", "quilted"),
    "detail": ("bowdetailed", "belted", "frayed", "tasseled", "chained", "embroidered", "studded"),
  },
  "scarf": {
    "pattern": _SMALL_PRINTS,
    "material": ("knitted", "lace", "ribbed", "crochet", "sequin", "quilted", "suede", "mesh"),
    "hem": ("tasseled", "frayed", "ruffled", ""),
    "detail": ("logo", "embroidered", "studded", ""),
  },
  "shades": {
    "pattern": (
      "striped",
      "leopardprint",
      "snakeprint",
      "checkered",
      "dotted",
      "geometricprint",
      "starry",
      "floral",
      "plaid",
      "gingham",
      "",
    ),
    "shape": ("round", "pointy"),
    "detail": ("studded", "pearlembelished", "chained", "logo", ""),
  },
  "necklace": {
    "pattern": (
      "striped",
      "dotted",
      "checkered",
      "geometricprint",
      "leopardprint",
      "snakeprint",
      "floral",
      "starry",
      "plaid",
      "gingham",
      "",
    ),
    "detail": ("chained", "pearlembelished", "studded"),
    "end": ("tasseled", "round", "embossed"),
  },
  "belt": {
    "pattern": _SMALL_PRINTS,
    "material": ("leather", "suede", "denim", "crochet", "sequin", "lace"),
    "detail": (
      "studded",
      "embossed",
      "chained",
      "tasseled",
      "bowdetailed",
      "embroidered",
      "pearlembelished",
      "logo",
    ),
  },
}


# Kinds with pieces in the second colour, where no pattern shows it.
TRIMMED = (
  "tee",
  "blouse",
  "sweater",
  "coat",
  "jacket",
  "hoodie",
  "pump",
  "sneaker",
  "tote",
  "clutch",
  "beanie",
  "necklace",
  "belt",
)


class Item(NamedTuple):
  """What is drawn.

  Attributes:
    kind: of garment, see KINDS.
    attributes: names of what it shows: colours, and at most one name of each slot of `options`.
    colours: one or two of COLOURS.
    seed: of pose, size, cut and shading.
  """

  kind: str
  attributes: tuple[str, ...]
  colours: tuple[str, ...]
  seed: int


def options(kind: str) -> dict[str, tuple[str, ...]]:
  """Slots of a kind of garment, and the attributes that may fill each; '' for none."""
  return _SLOTS[kind]
