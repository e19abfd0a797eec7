"""Colours of the study's pages, by WCAG's own arithmetic, in light and dark."""

import importlib.resources
import re

import pytest

TEXT, LARGE = 4.5, 3.0  # least contrast of text; of large text, and of what marks a control
PAIRS = [  # what stands on what
  ("ink", "ground", TEXT), ("ink", "surface", TEXT), ("ink", "sunken", TEXT),
  ("muted", "ground", TEXT), ("muted", "surface", TEXT), ("muted", "sunken", TEXT),
  ("accent", "ground", TEXT), ("accent", "surface", TEXT), ("on-accent", "accent", TEXT),
  ("warm", "surface", TEXT), ("cool", "surface", TEXT), ("green", "surface", TEXT),
  ("control", "ground", LARGE), ("control", "surface", LARGE),
  ("good", "surface", LARGE), ("good", "ground", LARGE), ("accent", "surface", LARGE),
]  # fmt: skip


def palettes():
  """Colours by name, as they hold in light and in dark."""
  text = "\n".join(
    (importlib.resources.files(package) / name).read_text()
    for package, name in (("sane_jax.report", "page.css"), ("sane_jax.study.server", "study.css"))
  )
  name = re.compile(r"--([\w-]+):\s*(#[0-9a-f]{3,6})\b")
  dark_blocks = re.findall(r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", text, re.S)
  printed = re.findall(r"@media print \{\s*:root \{(.*?)\}", text, re.S)
  light_text = text
  for block in dark_blocks + printed:
    light_text = light_text.replace(block, "")
  light = dict(name.findall(light_text))
  dark = light | dict(name.findall("\n".join(dark_blocks)))
  return {"light": light, "dark": dark}


def luminance(colour):
  digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
  channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
  return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
  high, low = sorted((luminance(one), luminance(other)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_the_arithmetic_is_that_of_wcag():
  assert contrast("#000", "#ffffff") == pytest.approx(21)
  assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_what_is_read_can_be_read(scheme, front, back, least):
  palette = palettes()[scheme]
  assert contrast(palette[front], palette[back]) >= least


def test_light_and_dark_differ():
  both = palettes()
  assert luminance(both["light"]["ground"]) > 0.8 > 0.1 > luminance(both["dark"]["ground"])
  assert both["light"]["good"] != both["dark"]["good"]
