"""Seeded damage to valid bytes: flips, cuts, splices, and numbers that lie."""

from collections.abc import Sequence

import numpy as np

# What breaks readers of sizes, counts and offsets.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40)


def damage(rng: np.random.Generator, data: bytes, others: Sequence[bytes]) -> bytes:
  """One to four changes, more of them near the start, where headers are."""
  out = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    if not out:
      break
    reach = len(out) if rng.random() < 0.5 else min(len(out), 128)
    at = int(rng.integers(reach))
    kind = rng.integers(7)
    if kind == 0:
      out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      out[at] = int(rng.integers(256))
    elif kind == 2:  # a number that lies
      size = int(rng.choice([1, 2, 4, 8]))
      number = int(rng.choice(_NUMBERS)) % (1 << (8 * size))
      out[at : at + size] = number.to_bytes(size, "little" if rng.random() < 0.5 else "big")
    elif kind == 3:
      del out[at:]
    elif kind == 4:
      del out[at : at + int(rng.integers(1, 65))]
    elif kind == 5:  # the end of another one
      other = others[int(rng.integers(len(others)))]
      out[at:] = other[int(rng.integers(len(other) + 1)) :]
    else:
      piece = bytes(out[at : at + int(rng.integers(1, 65))])
      out[at:at] = piece * int(rng.integers(1, 9))
  return bytes(out)


NASTY = (
  "", " ", "a b", "a\nb", "\r\n", "\0", '"', "'", "\\", "../../etc/passwd", "/dev/zero", "~",
  "a" * 5000, "𝔘𝔫𝔦 ☃", "\ud800", "\u202egnp.exe", "\x1b[2J", "%s%n{0}{x}", "{{7*7}}", "{% raw %}",
  "<script>window.pwned=1</script>", "\"'><img src=x onerror='window.pwned=1'>", "</script><b>",
  "javascript:window.pwned=1", "<!--", "]]>", "&lt;b&gt;", "$\\frac{1}{0}$", "$x",
  "\\input{/etc/passwd}",
  "\\write18{touch pwned}", "^^5c", "=1+1", "=cmd|'/c calc'!A0", "+1", "-1", "@SUM(A1)",
  "\t=1+1",
  "＝1+1",
  "`touch pwned`", "$(touch pwned)", "| pipe |", "[a](http://b)", "# heading", "nan", "inf",
  "-inf", "1e400", "None", "True", "[]", "()", "{}", "0", "-0", "999999999999999999999", "0x10",
)  # fmt: skip


def text(rng: np.random.Generator) -> str:
  """A name that somebody would rather not meet."""
  return "".join(str(rng.choice(NASTY)) for _ in range(rng.integers(1, 3)))
