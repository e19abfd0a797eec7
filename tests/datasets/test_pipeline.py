"""What comes out of the pipeline depends on the seed and the position alone."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tiny_data
from array_record.python import array_record_data_source, array_record_module
from PIL import Image

from sane_jax.datasets import images as images_lib
from sane_jax.datasets import pipeline


@pytest.fixture
def train():
  return tiny_data.collection("train", groups=10)


def groups_of(train, **options):
  settings = {"groups_per_batch": 4, "images_per_group": 3, "seed": 5, **options}
  return pipeline.group_batches(train, pipeline.DecodedImages(train, 16), **settings)


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_decode_is_the_middle_square_shortened(rng):
  pixels = rng.integers(0, 256, size=(30, 50, 3)).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  out = pipeline.decode(buffer.getvalue(), 15)
  expected = images_lib.fit_image(pixels.astype(np.float32) / 255, (15, 15)) * 255
  assert out.dtype == np.uint8
  np.testing.assert_allclose(out, expected, atol=1.01)  # Pillow rounds between its two passes


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_decode_of_other_kinds(mode):
  image = Image.new("RGB", (40, 30), (250, 10, 10)).convert(mode)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG" if mode in ("L", "CMYK") else "PNG")
  out = pipeline.decode(buffer.getvalue(), 8)
  assert out.shape == (8, 8, 3)
  if mode != "L":
    assert np.abs(out.astype(int) - [250, 10, 10]).max() < 12


def test_decode_turns_as_exif_says():
  image = Image.new("RGB", (20, 20), "white")
  image.paste((0, 0, 0), (0, 0, 20, 10))  # black above
  exif = Image.Exif()
  exif[0x0112] = 3
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", exif=exif)
  out = pipeline.decode(buffer.getvalue(), 20)
  assert out[:8].mean() > 240 > 15 > out[12:].mean()


def encoded(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def test_a_transparent_colour_is_shown_over_white():
  data = encoded(Image.new("RGB", (20, 20), (0, 255, 0)), "PNG", transparency=(0, 255, 0))
  assert (pipeline.decode(data, 8) == 255).all()


@pytest.mark.parametrize("kind", ["EPS", "PCX"])
def test_formats_that_are_no_photos_are_refused(kind, monkeypatch):
  data = encoded(Image.new("RGB", (20, 20)), kind)
  opened = Image.open(io.BytesIO(data)).__class__  # Pillow itself would read it
  monkeypatch.setattr(opened, "load", lambda *_: pytest.fail("it was decoded"))
  with pytest.raises(images_lib.ImageError, match="cannot identify"):
    pipeline.decode(data, 8)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 390), (20, 30)])
def test_fast_decoding_shows_nearly_the_same(width, height):
  y, x = np.mgrid[:height, :width]
  pixels = np.stack([x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 30 + y / 40)], -1)
  data = encoded(Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=95)
  exact = pipeline.decode(data, 24).astype(int)
  fast = pipeline.decode(data, 24, fast=True)
  pixels = images_lib.read_image(Image.open(io.BytesIO(data)))
  whole = images_lib.fit_image(pixels, (24, 24)) * 255
  np.testing.assert_allclose(exact, whole, atol=1.01)
  assert fast.shape == exact.shape
  assert np.abs(fast - exact).mean() < 4
  if min(width, height) < 48:  # there is nothing to halve
    np.testing.assert_array_equal(fast, exact)
  else:
    assert (fast != exact).any()


def test_every_epoch_shows_each_group_once_in_a_new_order(train):
  batches = groups_of(train, groups_per_batch=5)
  epochs = [[], [], []]
  for epoch in epochs:
    for _ in range(2):
      drawn = next(batches)["groups"].reshape(5, 3)
      epoch += drawn[:, 0].tolist()
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def test_members_are_of_their_group_and_padding_is_marked(train):
  batches = groups_of(train)
  seen = set()
  for _ in range(10):
    batch = next(batches)
    for row, group, kind, image in zip(*(batch[n] for n in ("rows", "groups", "types", "images")),
                                       strict=True):  # fmt: skip
      assert train.types[row] == kind
      np.testing.assert_array_equal(image, pipeline.decode(train.images[row], 16))
      if group >= 0:
        assert row in train.groups[group]
        seen.add(int(row))
    for group, rows in zip(batch["groups"].reshape(4, 3), batch["rows"].reshape(4, 3), strict=True):
      size = len(train.groups[group[0]])
      assert (group >= 0).sum() == min(3, size)
      assert len(set(rows[group >= 0])) == min(3, size)
  assert len(seen) == len(train.ids)


def test_it_goes_on_exactly_from_any_position(train):
  batches = groups_of(train, titles=True)
  for _ in range(7):
    next(batches)
  state = batches.get_state()
  expected = [next(batches) for _ in range(4)]
  fresh = groups_of(train, titles=True)
  fresh.set_state(state)
  for batch in expected:
    equal(next(fresh), batch)


def test_threads_and_a_cache_change_nothing(train):
  expected = [b for b, _ in zip(groups_of(train, num_threads=1), range(8), strict=False)]
  kept = pipeline.DecodedImages(train, 16, max_bytes=5 * 16 * 16 * 3)
  for options in ({"num_threads": 4}, {"num_threads": 2}):
    other = pipeline.group_batches(
      train, kept, groups_per_batch=4, images_per_group=3, seed=5, **options
    )
    for batch in expected:
      equal(next(other), batch)
  assert len(kept._kept) == 5
  different = groups_of(train, seed=6)
  assert not np.array_equal(next(different)["rows"], expected[0]["rows"])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(train, processes):
  whole = groups_of(train)
  parts = [groups_of(train, process=p, processes=processes) for p in range(processes)]
  for _ in range(5):
    batch, shares = next(whole), [next(part) for part in parts]
    equal({n: np.concatenate([s[n] for s in shares]) for n in batch}, batch)
  with pytest.raises(ValueError, match="3 processes can't share 4 groups"):
    groups_of(train, processes=3)


def test_a_position_means_the_same_for_another_number_of_processes(train):
  one = groups_of(train)
  for _ in range(3):
    next(one)
  state = one.get_state()
  expected = next(one)
  second = groups_of(train, process=1, processes=2)
  second.set_state(state)
  equal(next(second), {n: a[len(a) // 2 :] for n, a in expected.items()})


def test_images_in_order_and_shuffled(train):
  images = pipeline.DecodedImages(train, 16)
  rows = np.array([4, 1, 7, 2, 9])
  batches = list(pipeline.in_order(images, rows, batch_size=2))
  pixels = np.concatenate([p for p, _ in batches])
  valid = np.concatenate([v for _, v in batches])
  assert valid.tolist() == [True] * 5 + [False]
  for row, image in zip(rows, pixels, strict=False):
    np.testing.assert_array_equal(image, pipeline.decode(train.images[row], 16))
  shuffled = pipeline.image_batches(
    images, rows, batch_size=2, seed=0, extra=lambda chosen: {"row": chosen}
  )
  drawn = np.concatenate([next(shuffled)["row"] for _ in range(5)])
  assert sorted(drawn[:5]) == sorted(drawn[5:]) == sorted(rows)
  assert len({tuple(rows), tuple(drawn[:5]), tuple(drawn[5:])}) == 3  # each a new order
  state = shuffled.get_state()
  expected = next(shuffled)
  shuffled.set_state(state)
  equal(next(shuffled), expected)


def test_every_epoch_is_whole_where_batches_lie_across_it(train):
  batches = groups_of(train)  # 10 groups, 4 a batch
  drawn = np.concatenate([next(batches)["groups"].reshape(4, 3)[:, 0] for _ in range(5)])
  assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_nothing_to_read_is_said(train):
  with pytest.raises(ValueError, match="train has no groups"):
    groups_of(train._replace(groups=()))
  with pytest.raises(ValueError, match="no rows"):
    pipeline.image_batches(
      pipeline.DecodedImages(train, 16), np.zeros(0, int), batch_size=2, seed=0, extra=lambda _: {}
    )


def test_a_damaged_record_costs_only_itself(train, tmp_path):
  """As the reader of the prepared records raises it, not by a stand-in."""
  path = str(tmp_path / "a.array_record")
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
  for image in train.images:
    writer.write(image)
  writer.close()
  data = bytearray((tmp_path / "a.array_record").read_bytes())
  begin = data.index(train.images[3]) + 300
  data[begin : begin + 40] = bytes(40)
  (tmp_path / "a.array_record").write_bytes(data)
  records = array_record_data_source.ArrayRecordDataSource([path])
  decoded = pipeline.DecodedImages(train._replace(images=records), 16)
  _, valid = decoded.stack(range(6))
  assert valid.tolist() == [True, True, True, False, True, True]
  assert "train_3" in decoded.broken


def test_a_broken_image_costs_only_itself(train):
  images = list(train.images)
  images[3] = images[3][:200]
  images[4] = b"no image"
  broken = train._replace(images=tuple(images))
  decoded = pipeline.DecodedImages(broken, 16)
  batches = pipeline.group_batches(broken, decoded, groups_per_batch=5, images_per_group=3, seed=0)
  for _ in range(4):
    batch = next(batches)
    bad = np.isin(batch["rows"], [3, 4])
    assert (batch["groups"][bad] == -1).all()
    assert (batch["images"][bad] == 0).all()
  assert set(decoded.broken) == {"train_3", "train_4"}
  _, valid = next(iter(pipeline.in_order(decoded, np.array([2, 3]), batch_size=2)))
  assert valid.tolist() == [True, False]


def test_words_hash_alike_in_every_process():
  title = "Striped Tee, long-sleeved tee"
  vector = pipeline.hash_words(title)
  assert np.linalg.norm(vector) == pytest.approx(1)
  assert np.count_nonzero(vector) == 4  # striped tee long sleeved
  assert not pipeline.hash_words("").any()
  code = f"from sane_jax.datasets import pipeline as p; print(p.hash_words({title!r}).tolist())"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  np.testing.assert_array_equal(np.array(eval(out.stdout), np.float32), vector)


def test_words_come_with_the_batch(train):
  batch = next(groups_of(train, titles=True))
  for row, words in zip(batch["rows"], batch["words"], strict=True):
    np.testing.assert_array_equal(words, pipeline.hash_words(train.titles[row]))
