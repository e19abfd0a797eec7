"""Lists of photos and of pairs: every layout and notation, and that no bad line passes unseen."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from sane_jax.datasets import photos
from sane_jax.datasets.images import fit_image, read_image
from sane_jax.datasets.photos import Pair, list_photos, read_pairs, sample_pairs

CLOTHING = Path(__file__).parents[3] / "shared" / "data" / "clothing"


def touch(folder, *names):
  """Empty files: nothing here opens a photo."""
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


@pytest.fixture
def folder(tmp_path):
  """Three photos beside the pairs file to be."""
  touch(tmp_path, "a.jpg", "b.png", "my cat, asleep.jpg")
  return tmp_path


def write(folder, content, name="pairs.txt"):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


# --- list_photos ----------------------------------------------------------------------------------


def test_photos_are_found_in_all_folders_and_sorted(tmp_path):
  wanted = ["B.JPG", "a.jpg", "sub/c.Jpeg", "sub/deep/d.webp", "z.png", "e.tif", "e.TIFF", "f.ppm"]
  wanted += ["g.bmp", "h.gif", "with blank.jpg"]
  touch(tmp_path, *wanted, "notes.txt", "jpg", "a.jpg.bak", "movie.mp4", "sub.jpg/x.txt")
  found = list_photos(tmp_path)
  assert found == sorted(tmp_path / name for name in wanted)
  assert list_photos(str(tmp_path)) == found


def test_hidden_files_and_folders_are_passed_over(tmp_path):
  home = tmp_path / ".cache"  # a hidden folder that was asked for is read
  touch(home, "a.jpg", "._a.jpg", ".thumbs/b.jpg", "sub/.c.jpg", "sub/d.jpg")
  assert list_photos(home) == [home / "a.jpg", home / "sub/d.jpg"]


def test_links_to_folders_are_not_followed(tmp_path):
  inside, outside = tmp_path / "inside", tmp_path / "outside"
  touch(inside, "a.jpg")
  touch(outside, "b.jpg")
  (inside / "out").symlink_to(outside)
  (inside / "round").symlink_to(inside)
  (inside / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
  (inside / "linked.jpg").symlink_to(outside / "b.jpg")
  os.mkfifo(inside / "pipe.jpg")
  assert list_photos(inside) == [inside / "a.jpg", inside / "linked.jpg"]


def test_wrong_folders_are_named(tmp_path):
  touch(tmp_path, "empty/notes.txt", "a.jpg")
  for given, says in [
    ("nowhere", "nowhere: no such folder"),
    ("a.jpg", "a.jpg: a file; give the folder"),
    ("empty", r"empty: no photos .*\.jpg \.jpeg \.jfif .*\.webp .*\.pfm"),
  ]:
    with pytest.raises(ValueError, match=says):
      list_photos(tmp_path / given)


# --- read_pairs: notations ------------------------------------------------------------------------


@pytest.mark.parametrize(
  "content",
  [
    "a b 1\nb a 0\na.jpg b.png\n",
    "  a   b 1  \nb a 0\na.jpg b.png",
    "a,b,1\nb,a,0\na.jpg,b.png\n",
    "a, b, 1\nb , a , 0 \na.jpg,b.png,\n",
    '"a","b","1"\n"b","a",0\n"a.jpg", "b.png",,,\n',
    "a\tb\t1\nb\ta\t0\na.jpg\tb.png\t\n",
    "query,reference,label\na,b,1\nb,a,0\na,b\n",
    "Query\tReference\na\tb\t1\nb\ta\t0\na\tb\n",
    "query reference label\na b 1\nb a 0\na b\n",
    "# two lines\n\n   \n  # of comment\na b 1\n\nb a 0\n#c d 1\na b\n\n",
    "a b 1\r\nb a 0\r\na b\r\n",
    "a b 1\rb a 0\ra b",
    "a b 1.0\nb a +0\na b\n",
    b"\xef\xbb\xbfa,b,1\nb,a,0\na,b\n",
    "query\treference\na\tb\t1\nb\ta\t0\na\tb\n".encode("utf-16"),
    "./a ./b 1\nb a 0\na b",
  ],
)
def test_notations(folder, content):
  pairs, problems = read_pairs(write(folder, content))
  a, b = folder / "a.jpg", folder / "b.png"
  assert pairs == [Pair(a, b, 1), Pair(b, a, 0), Pair(a, b, None)]
  assert problems == []
  assert pairs[0].query == a and pairs[0].label == 1  # noqa: PT018


def test_names_with_separators_in_them(folder):
  cat = folder / "my cat, asleep.jpg"
  for content in [
    '"my cat, asleep.jpg",a.jpg,1\n',
    'a.jpg,"my cat, asleep",1\n',
    "my cat, asleep.jpg\ta.jpg\t1\n",
    '"my cat, asleep"\ta\n',
  ]:
    pairs, problems = read_pairs(write(folder, content))
    assert not problems
    assert cat in pairs[0][:2]
  touch(folder, 'a "quoted" one.jpg', "#1.jpg")
  pairs, _ = read_pairs(write(folder, '"a ""quoted"" one.jpg","#1.jpg"\n'))
  assert pairs == [Pair(folder / 'a "quoted" one.jpg', folder / "#1.jpg", None)]


def test_latin_1_and_utf_8_names(folder):
  touch(folder, "größe.jpg", "x\x85y.jpg")
  for encoding in ("utf-8", "latin-1"):
    pairs, problems = read_pairs(write(folder, "größe,x\x85y.jpg,1\n".encode(encoding)))
    assert pairs == [Pair(folder / "größe.jpg", folder / "x\x85y.jpg", 1)]
    assert not problems


def test_negative_labels_are_kept(folder):
  assert read_pairs(write(folder, "a b -1\n"))[0][0].label == -1


# --- read_pairs: where photos are -----------------------------------------------------------------


def test_the_layout_of_awa2(tmp_path):
  names = ["JPEGImages/grizzly+bear/grizzly+bear_10001.jpg", "JPEGImages/t-shirt/t-shirt_7.jpg"]
  touch(tmp_path, *names, "lists/unused.txt")
  line = "grizzly+bear_10001 t-shirt_7 0\n"
  want = [Pair(tmp_path / names[0], tmp_path / names[1], 0)]
  assert read_pairs(write(tmp_path, line)) == (want, [])
  elsewhere = write(tmp_path / "lists", line)
  assert read_pairs(elsewhere, folder=tmp_path) == (want, [])
  assert read_pairs(elsewhere, folder=str(tmp_path / "JPEGImages")) == (want, [])
  with pytest.raises(ValueError, match=r"no photo 'grizzly\+bear_10001' in .*lists"):
    read_pairs(elsewhere)


def test_the_folder_comes_before_the_files_own(tmp_path):
  touch(tmp_path, "lists/a.jpg", "photos/a.jpg", "lists/b.jpg", "photos/sub/c.jpg", "d.jpg")
  path = write(tmp_path / "lists", "a b\nsub/c.jpg ../d.jpg\n")
  pairs, problems = read_pairs(path, folder=tmp_path / "photos")
  assert not problems
  assert pairs[0] == (tmp_path / "photos/a.jpg", tmp_path / "lists/b.jpg", None)
  assert pairs[1].query == tmp_path / "photos/sub/c.jpg"
  assert pairs[1].reference.resolve() == (tmp_path / "d.jpg").resolve()
  absolute = write(tmp_path / "lists", f"{tmp_path}/d.jpg {tmp_path}/d\n", "absolute.txt")
  assert read_pairs(absolute)[0] == [Pair(tmp_path / "d.jpg", tmp_path / "d.jpg", None)]


def test_dots_in_names_are_no_suffix(folder):
  touch(folder, "v1.2_cat.jpg", "v1.jpg")
  pairs, _ = read_pairs(write(folder, "v1.2_cat v1\n"))
  assert pairs == [Pair(folder / "v1.2_cat.jpg", folder / "v1.jpg", None)]


def test_two_photos_of_one_name_need_the_suffix(folder):
  touch(folder, "a.png")
  pairs, problems = read_pairs(write(folder, "a b 1\na.png a.jpg 0\n"))
  assert pairs == [Pair(folder / "a.png", folder / "a.jpg", 0)]
  assert len(problems) == 1
  assert "may be a.jpg or a.png; write the suffix" in problems[0]


# --- read_pairs: problems -------------------------------------------------------------------------


def test_bad_lines_are_told_and_good_ones_kept(folder):
  touch(folder, "dir.jpg/x.txt")
  path = write(
    folder,
    "# line 1\na,b,1\nmissing,b,1\na,gone.jpg\na\na,b,1,2\na,b,yes\na,b,0.5\n,b,1\n"
    '"a,b,1\nb,a,0\ndir.jpg,a\na b 1\na,b,\xb2\na,b\0,1\n',
  )
  pairs, problems = read_pairs(path)
  assert [pair.label for pair in pairs] == [1, 0]
  expected = [
    (3, f"no photo 'missing' in {folder}; correct the name"),
    (4, "no photo 'gone.jpg'"),
    (5, "1 fields where 2 or 3 are expected"),
    (6, "4 fields"),
    (7, "label 'yes' is no integer"),
    (8, "label '0.5' is no integer"),
    (9, "an empty name"),
    (10, "unexpected end of data"),
    (12, "no photo 'dir.jpg'"),
    (13, "1 fields"),
    (14, "label '²' is no integer"),
    (15, ""),
  ]
  assert len(problems) == len(expected)
  for problem, (line, says) in zip(problems, expected, strict=True):
    assert problem.startswith(f"{path}:{line}: ")
    assert says in problem
    assert "\n" not in problem


def test_blanks_in_names_are_explained(folder):
  _, problems = read_pairs(write(folder, "a b 1\nmy cat.jpg a 1\n"))
  assert "4 fields" in problems[0]
  assert '"my cat.jpg",b.jpg,1' in problems[0]


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", "pairs.txt: an empty file"),
    (b" \n\r\n", "an empty file"),
    (b"# nothing\n", "nothing but blank lines"),
    (b"query,reference,label\n", "nothing but blank lines, comments or a header"),
    (b"x y 1\n" * 9, r"no pair in it; .*a\.jpg b\.jpg 1\n.*:1: no photo 'x'(.|\n)*:5:.*\n  and 4"),
    (bytes(range(256)) * 4, "no pair in it"),
  ],
)
def test_no_good_line_is_an_error(folder, content, says):
  with pytest.raises(ValueError, match=says):
    read_pairs(write(folder, content))


def test_what_is_no_pairs_file(folder):
  for path, options, says in [
    (folder / "nowhere.txt", {}, r"nowhere\.txt: can't be read \(No such file"),
    (folder, {}, "a folder; give the text file"),
    (write(folder, "a b"), {"folder": folder / "nowhere"}, "nowhere: no such folder"),
    (write(folder, "a b"), {"folder": folder / "a.jpg"}, "a file; give the folder"),
  ]:
    with pytest.raises(ValueError, match=says):
      read_pairs(path, **options)


def test_a_hundred_thousand_lines_list_each_folder_once(tmp_path, monkeypatch):
  names = [f"c{i % 50}_{i}" for i in range(2000)]
  touch(tmp_path, *(f"JPEGImages/{n.split('_')[0]}/{n}.jpg" for n in names))
  lines = [f"{names[i % 2000]} {names[i * 7 % 2000]} {i % 2}" for i in range(100_000)]
  path = write(tmp_path, "\n".join(lines))
  listed, scandir = [], os.scandir
  monkeypatch.setattr(photos.os, "scandir", lambda p: listed.append(p) or scandir(p))
  start = time.monotonic()
  pairs, problems = read_pairs(path)
  assert time.monotonic() - start < 10  # it takes half a second
  assert len(listed) == len(set(listed)) == 51  # the root and 50 classes
  assert (len(pairs), problems) == (100_000, [])
  assert pairs[99_999].query == tmp_path / "JPEGImages/c49/c49_1999.jpg"


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="needs the clothing photos")
def test_real_pairs():
  pairs, problems = read_pairs(CLOTHING / "clothing_pairs.txt")
  assert (len(pairs), problems) == (300, [])
  assert sum(pair.label for pair in pairs) == 150
  for pair in pairs:
    assert (pair.query.parent == pair.reference.parent) == bool(pair.label)
  shoes = CLOTHING / "JPEGImages" / "shoes"
  assert pairs[0] == (shoes / "shoes_10004.jpg", shoes / "shoes_10006.jpg", 1)
  assert len(list_photos(CLOTHING)) == 360
  pixels = read_image(pairs[0].query)
  assert min(pixels.shape[:2]) == 224
  assert pixels.max() > 0.5


# --- sample_pairs ---------------------------------------------------------------------------------


def test_sample_pairs_are_pairs_of_different_photos(monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("asked the network")

  monkeypatch.setattr("socket.socket.connect", refuse)
  pairs = sample_pairs()
  assert len(pairs) == 2
  assert len({name for pair in pairs for name in (pair[0], pair[2])}) == 4
  for _, query, _, reference in pairs:
    fitted = []
    for image in (query, reference):
      assert image.dtype == np.uint8
      assert image.ndim == 3
      assert image.shape[2] == 3
      assert min(image.shape[:2]) >= 224
      image[0, 0] = 0  # the caller's own
      fitted.append(fit_image(read_image(image), (64, 64)))
    assert np.abs(fitted[0] - fitted[1]).mean() > 0.05
  assert (sample_pairs()[1][1][0, 0] != 0).any()


def test_the_cats_face_is_in_the_middle_of_both():
  """Nothing but its eyes is yellow to green, and there are two in each."""
  _, query, _, reference = sample_pairs()[1]
  for image in (query, reference):
    r, g, b = np.moveaxis(fit_image(read_image(image), (64, 64)), -1, 0)
    coloured = r - b > 0.2
    eyes = coloured & (60 * (g - b) > 40 * (r - b))  # hue beyond 40 degrees; its fur is at 30
    columns = np.flatnonzero(eyes.any(axis=0))
    gap = np.diff(columns).argmax()
    left, right = columns[: gap + 1], columns[gap + 1 :]
    assert columns[gap + 1] - columns[gap] > 15
    assert 4 < len(left) < 14
    assert 4 < len(right) < 14
    assert 16 < np.flatnonzero(eyes.any(axis=1)).mean() < 32
