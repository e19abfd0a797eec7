"""What the viewer answers is what the index and the explainer answer; whatever else is refused."""

import base64
import io
import json
import urllib.parse
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from web import viewer_tools as tools

import sane_jax
from sane_jax.maps import index as index_lib
from sane_jax.maps import reasons
from sane_jax.maps.index import ExplanationIndex
from sane_jax.models.model import Model
from sane_jax.ops import matches, ranking, resampling
from sane_jax.viewer.collection import Cache, Collection, key_of, shorten
from sane_jax.viewer.measuring import Measuring
from sane_jax.web.guard import Limit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def paths(folder):
  (folder / "photos").mkdir()
  return tools.draw_photos(folder / "photos", np.random.default_rng(0))


@pytest.fixture(scope="module")
def both(folder, paths):
  return tools.build(folder / "both", paths, mode="both")


@pytest.fixture(scope="module")
def viewer(both, folder, paths):
  return tools.Viewer([both, tools.build(folder / "rise", paths, "rise")])


@pytest.fixture
def client(viewer):
  return viewer.client()


def get(client, path, status=200, **parameters):
  got = client.get(f"/api/{path}", params=parameters)
  assert got.status_code == status, got.text
  return got.json()


def unpack(text, kind):
  codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)
  return np.cumsum(codes, dtype=kind)


def values(map_json):
  return np.array(map_json["values"], np.float64).reshape(map_json["rows"], map_json["columns"])


def jpeg(pixels, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=95, **options)
  return buffer.getvalue()


# --- answers --------------------------------------------------------------------------------------


def test_nearest_is_brute_force(client, viewer, both, paths):
  explainer = tools.explainer()
  every = explainer.embed(paths)
  for row in (0, 4, 11):
    found = get(client, "nearest", query=viewer.key(row), count=5)
    scores = every @ every[row]
    scores[row] = -2
    order = np.argsort(-scores)[:5]
    assert [m["key"] for m in found["matches"]] == [viewer.key(r) for r in order]
    np.testing.assert_allclose([m["score"] for m in found["matches"]], scores[order], atol=1e-6)
    assert found["encoder_passes"] == 0


@pytest.mark.parametrize("mode", ["fixed", "both"])
def test_a_pair_is_the_index_s(client, viewer, both, mode):
  q, r = both.ids[1], both.ids[6]
  found = get(client, "pair", query=viewer.keys[q], reference=viewer.keys[r], mode=mode)
  np.testing.assert_allclose(values(found["query_map"]), both.maps(q, [r], mode=mode)[0], atol=1e-6)
  np.testing.assert_allclose(
    values(found["reference_map"]), both.maps(r, [q], mode=mode)[0], atol=1e-6
  )
  assert found["score"] == pytest.approx(both.scores(q, [r])[0], abs=1e-6)
  table = found["correspondence"]
  codes = unpack(table["codes"], np.int8).reshape(16, 16)
  exact = both.correspondence(q, r)
  np.testing.assert_allclose(codes / 127 * table["limit"], exact, atol=0.51 / 127)
  least = table["least"]
  assert least == pytest.approx(matches.match_threshold(16, 16, both.embeddings([0]).shape[1]))
  for side, rows in (("of_query", exact), ("of_reference", exact.T)):
    assert [best and best[0] for best in table[side]] == [
      row.argmax() if row.max() >= least else None for row in rows
    ]
  error = both.standard_errors(q, [r])[0]
  if mode == "fixed":
    assert found["query_map"]["standard_error"] == pytest.approx(error, rel=1e-5)
    z = np.sort(np.abs(values(found["query_map"])).ravel() / error)[::-1]
    held = 2 * stats.norm.sf(z) * np.arange(len(z), 0, -1) <= 0.05  # Holm's, step by step
    assert sum(found["query_map"]["sure"]) == np.argmin([*held, False])
  else:  # nobody kept the spread over masked references
    assert found["query_map"]["standard_error"] is None
  assert found["encoder_passes"] == 0
  assert not found["missing"]


def test_a_pair_is_the_explainer_s(client, viewer, both, paths):
  """What the encoder would say of it, to the index's float16."""
  e = tools.explainer().explain(paths[2], paths[3])
  found = get(client, "pair", query=viewer.key(2), reference=viewer.key(3))
  tolerance = 2**-11 * np.linalg.norm(both.effect_matrix(2), axis=1).max()
  np.testing.assert_allclose(values(found["query_map"]).ravel(), e.saliency.cells, atol=tolerance)
  assert found["score"] == pytest.approx(e.score, abs=1e-6)


def test_a_contrast_is_the_index_s(client, viewer, both):
  q, a, b = (both.ids[n] for n in (0, 5, 9))
  found = get(client, "contrast", query=viewer.keys[q], a=viewer.keys[a], b=viewer.keys[b])
  np.testing.assert_allclose(values(found["query_map"]), both.contrast(q, a, b), atol=1e-6)
  scores = both.scores(q, [a, b])
  assert found["score"] == pytest.approx(scores[0] - scores[1], abs=1e-6)
  difference = both.embeddings([a])[0] - both.embeddings([b])[0]
  error = both.error_factor(q)(difference)
  assert found["query_map"]["standard_error"] == pytest.approx(error, rel=1e-5)
  same = get(client, "contrast", query=viewer.keys[q], a=viewer.keys[a], b=viewer.keys[a])
  assert not values(same["query_map"]).any()


def test_another_index_answers_in_its_own_design(client, viewer, folder):
  rise = viewer.collection.indexes[1]
  key = "rise~grey"
  found = get(client, "pair", query=viewer.key(0), reference=viewer.key(1), view=key)
  np.testing.assert_allclose(values(found["query_map"]), rise.maps(0, [1])[0], atol=1e-6)
  assert found["query_map"]["smooth"]
  refused = get(
    client, "pair", 409, query=viewer.key(0), reference=viewer.key(1), view=key, mode="both"
  )
  assert "both" in refused["detail"]


def test_no_question_of_the_index_runs_the_encoder(both):
  def refuse(params, images):
    raise AssertionError("the encoder ran")

  viewer = tools.Viewer([both], uploads=False)
  viewer.model = Model("small", (28, 28), refuse)
  client = viewer.client()
  a, b, c = (viewer.key(n) for n in range(3))
  get(client, "nearest", query=a)
  get(client, "pair", query=a, reference=b)
  get(client, "pair", query=a, reference=b, mode="both")
  get(client, "contrast", query=a, a=b, b=c)


def test_fine_grids_are_pooled_for_pointing(folder, paths):
  index = tools.build(folder / "window", paths, "sliding_window")
  viewer = tools.Viewer([index], uploads=False)
  found = get(viewer.client(), "pair", query=viewer.key(0), reference=viewer.key(1))
  table = found["correspondence"]
  assert table["query_grid"] == [14, 14]
  codes = unpack(table["codes"], np.int8).reshape(196, 196) / 127 * table["limit"]
  exact = index.correspondence(0, 1)
  # The first of 14 cells on an axis of 20 is the first of the 20 and 3/7 of the second, rounded to
  # whole ones as `averaging` does it.
  pool = np.arange(20) * 14 // 20
  first = np.flatnonzero(np.add.outer(pool * 14, pool).ravel() == 0)
  assert codes[0, 0] == pytest.approx(exact[np.ix_(first, first)].mean(), abs=0.01)


def test_attributes_are_the_ranker_s(both, paths):
  names = ("striped", "<b>floral</b>")
  rng = np.random.default_rng(3)
  maps = rng.uniform(size=(7, 7, 2)).astype(np.float32)
  vectors = rng.normal(size=(2, 6)).astype(np.float32)

  def look(image):
    return np.array([0.9, 0.2], np.float32), maps

  rank = reasons.make_ranker(
    names, look, (np.array([0.6, 0.4]), vectors), (0.7, 0.1, 0.0, 0.2), ranking.RAW
  )
  viewer = tools.Viewer([both], uploads=False, rankers=lambda query, reference: rank)
  found = get(viewer.client(), "attributes", query=viewer.key(0), reference=viewer.key(1))
  e = sane_jax.Explainer(
    tools.model(), design=tools.explainer().design, fill="grey", attributes=rank
  ).explain(paths[0], paths[1])
  assert [a["name"] for a in found["attributes"]] == [a.name for a in e.attributes]
  for mine, theirs in zip(found["attributes"], e.attributes, strict=True):
    assert mine["total"] == pytest.approx(theirs.total, abs=1e-3)
    codes = unpack(mine["map"], np.uint8).reshape(28, 28)
    np.testing.assert_allclose(codes / 254, theirs.map / theirs.map.max(), atol=0.51 / 254)
  assert found["sentence"] == e.sentence
  missing = get(
    tools.Viewer([both], uploads=False, no_attributes="None here.").client(),
    "attributes",
    404,
    query=viewer.key(0),
    reference=viewer.key(1),
  )
  assert missing["detail"] == "None here."


# --- the collection -------------------------------------------------------------------------------


def test_all_images_are_found_by_page_and_by_name(client, viewer):
  every = get(client, "images", count=5)
  assert every["total"] == len(tools.NAMES)
  pages = [get(client, "images", count=5, offset=o)["images"] for o in (0, 5, 10)]
  assert [i["key"] for page in pages for i in page] == list(viewer.collection.keys)
  # Nobody sees in which folder they are.
  assert [i["name"] for page in pages for i in page] == tools.NAMES
  assert get(client, "images", search="SCRIPT")["images"][0]["name"] == tools.NAMES[1]
  assert get(client, "images", search="no such name")["total"] == 0
  assert get(client, "images/random")["key"] in viewer.collection.keys


def test_ids_are_looked_up_and_lead_nowhere(client, viewer, paths):
  for text in (
    "../../etc/passwd",
    "..%2f..",
    str(paths[0]),
    "",
    "u-",
    "u-x",
    "0",
    "a" * 65,
    "\x00",
  ):
    for path, parameters in (
      ("nearest", {"query": text}), ("pair", {"query": text, "reference": viewer.key(0)}),
      ("pair", {"query": viewer.key(0), "reference": text}),
      ("contrast", {"query": viewer.key(0), "a": text, "b": viewer.key(1)}),
    ):  # fmt: skip
      got = client.get(f"/api/{path}", params=parameters)
      assert got.status_code in (404, 422), (text, got.text)
      assert "/tmp" not in got.text
    quoted = urllib.parse.quote(text, safe="")
    assert client.get(f"/api/images/{quoted}/picture").status_code in (307, 404, 422), text
  assert get(client, "pair", 404, query=viewer.key(0), reference=viewer.key(1), view="no~view")


def test_keys_and_names_of_whatever_ids():
  nasty = ["\udcff.png", "\U0001f600" * 300, "a\x00b", "", "a/b"]
  assert len({key_of(name) for name in nasty}) == len(nasty)
  assert all(key_of(name).isalnum() for name in nasty)
  assert shorten(["/home/me/photos/a.jpg", "/home/me/photos/sub/a.jpg"]) == ["a.jpg", "sub/a.jpg"]
  assert shorten(["/a/x.jpg", "/b/x.jpg"]) == ["a/x.jpg", "b/x.jpg"]
  assert shorten(["x", "y"]) == ["x", "y"]


def test_lone_surrogates_are_answered(folder, photos):
  index = ExplanationIndex.build(
    folder / "surrogates", tools.explainer(), {"\udcff\udcfe.png": photos[0], "b": photos[1]}
  )
  viewer = tools.Viewer([index], uploads=False)
  client = viewer.client()
  assert get(client, "images")["images"][0]["name"] == "\udcff\udcfe.png"
  assert get(client, "pair", query=viewer.key(0), reference=viewer.key(1))["score"]
  # Given as an array: there is no picture.
  assert client.get(f"/api/images/{viewer.key(0)}/picture").status_code == 410
  assert client.get("/").status_code == 200


def test_a_photo_that_was_replaced_is_not_shown_under_its_old_map(tmp_path, rng):
  paths = tools.draw_photos(tmp_path, rng)
  index = tools.build(tmp_path / "index", paths, mode="both")
  for viewer in (tools.Viewer([index], uploads=False), tools.Viewer([index])):
    client, key, other = viewer.client(), viewer.key(3), viewer.key(4)
    before = get(client, "pair", query=key, reference=other)
    path, version = f"/api/images/{key}/picture", before["query"]["version"]
    old = client.get(path, params={"version": version})
    assert old.status_code == 200
    tag = client.get("/api/pair", params={"query": key, "reference": other}).headers["etag"]
    whole = paths[3].read_bytes()
    pixels = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 32), Image.Resampling.BILINEAR).save(paths[3])

    # The picture that goes with the old map is no longer given, nor is the map.
    assert client.get(path, params={"version": version}).status_code == 410
    assert client.get(path).content != old.content
    got = client.get(
      "/api/pair", params={"query": key, "reference": other}, headers={"if-none-match": tag}
    )
    found = got.json()
    assert (found["score"], found["query_map"], found["reference_map"]) == (None, None, None)
    (missing,) = found["missing"]
    assert "replaced by another photo" in missing["why"]
    assert missing["can_measure"] == (viewer.measuring is not None)
    assert (
      client.get("/api/contrast", params={"query": other, "a": key, "b": other}).status_code == 409
    )
    near = get(client, "nearest", query=other, count=len(paths))["matches"]
    assert key not in [m["key"] for m in near]
    assert len(near) == len(paths) - 2
    if viewer.measuring is not None:
      # It may be measured anew, and is then what its file shows.
      headers = {"x-form-token": tools.token_of(client)}
      task = client.post("/api/measurements", params={"image": key}, headers=headers).json()
      tools.wait(client, task["task"])
      found = get(client, "pair", query=key, reference=other)
      e = tools.explainer(mode="both").explain(paths[3], paths[4])
      assert found["score"] == pytest.approx(e.score, abs=1e-5)
      direct = tools.explainer().explain(paths[3], paths[4]).saliency.cells
      np.testing.assert_allclose(values(found["query_map"]).ravel(), direct, atol=2e-3)
      now = client.get(path, params={"version": found["query"]["version"]})
      assert now.content == client.get(path).content != old.content
      (best,) = get(client, "nearest", query=key, count=1)["matches"]
      assert best["key"] != key
    paths[3].write_bytes(whole)  # what was measured is there again
    assert get(client, "pair", query=key, reference=other)["score"] == before["score"]


def test_the_page_takes_no_name_for_markup(client):
  text = client.get("/").text
  assert "window.pwned" not in text.split("</head>")[1]
  policy = client.get("/").headers["content-security-policy"]
  assert "unsafe" not in policy


def test_pictures_are_encoded_anew_and_kept(client, viewer, paths):
  path = f"/api/images/{viewer.key(0)}/picture"
  got = client.get(path)
  assert got.headers["content-type"] in ("image/jpeg", "image/png")
  seen = np.asarray(Image.open(io.BytesIO(got.content)).convert("RGB"), float)
  wanted = tools.explainer().photo(paths[0]).pixels * 255
  assert np.abs(seen - wanted).mean() < 4
  again = client.get(path, headers={"if-none-match": got.headers["etag"]})
  assert (again.status_code, again.content) == (304, b"")
  small = client.get(path, params={"thumbnail": True})
  assert max(Image.open(io.BytesIO(small.content)).size) <= 144


def test_answers_of_the_index_are_kept_by_browsers(client, viewer):
  parameters = {"query": viewer.key(0), "reference": viewer.key(1)}
  got = client.get("/api/pair", params=parameters)
  again = client.get("/api/pair", params=parameters, headers={"if-none-match": got.headers["etag"]})
  assert (again.status_code, again.content) == (304, b"")
  other = client.get("/api/pair", params=parameters | {"mode": "both"})
  assert other.headers["etag"] != got.headers["etag"]


def test_photos_that_are_gone_cost_their_pictures_alone(tmp_path, rng):
  paths = tools.draw_photos(tmp_path, rng)
  index = tools.build(tmp_path / "index", paths)
  for path in paths:
    path.unlink()
  viewer = tools.Viewer([index])
  client = viewer.client()
  got = client.get(f"/api/images/{viewer.key(0)}/picture")
  assert got.status_code == 410
  assert "maps are still here" in got.json()["detail"]
  found = get(client, "pair", query=viewer.key(0), reference=viewer.key(1))
  assert found["query"]["missing"]
  np.testing.assert_allclose(values(found["query_map"]), index.maps(0, [1])[0], atol=1e-6)


def test_a_damaged_shard_is_said_and_the_rest_goes_on(tmp_path, paths, caplog):
  index = tools.build(tmp_path / "index", paths, design="hadamard")
  shards = [p for p in (tmp_path / "index" / "effects").rglob("*") if p.is_file()]
  data = max(shards, key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[10 : len(content) // 2] = b"\xff" * (len(content) // 2 - 10)
  data.write_bytes(bytes(content))
  viewer = tools.Viewer([ExplanationIndex(tmp_path / "index")], uploads=False)
  client = viewer.client()
  got = client.get("/api/pair", params={"query": viewer.key(0), "reference": viewer.key(1)})
  assert got.status_code == 500
  assert "damaged" in got.json()["detail"]
  assert "damaged" in caplog.text
  assert get(client, "nearest", query=viewer.key(0))["matches"]
  del index


def test_what_was_left_out_or_interrupted_is_said(tmp_path, rng):
  paths = tools.draw_photos(tmp_path, rng)
  paths[3].write_bytes(b"no image")
  index = tools.build(tmp_path / "index", paths)
  viewer = tools.Viewer([index], uploads=False)
  client = viewer.client()
  assert get(client, "status")["left_out"] == 1
  assert "could not be read" in get(client, "status")["notices"][0]
  assert get(client, "images")["total"] == len(paths) - 1
  refused = get(client, "nearest", 409, query=viewer.key(3))
  assert "left out" in refused["detail"]
  matches = get(client, "nearest", query=viewer.key(0), count=50)["matches"]
  assert len(matches) == len(paths) - 2


# --- photos that are sent -------------------------------------------------------------------------


def test_a_photo_that_was_sent_is_the_explainer_s(viewer, paths, rng):
  client = viewer.client()
  coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
  pixels = np.asarray(coarse.resize((60, 44), Image.Resampling.BILINEAR))
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  sent = tools.send(client, buffer.getvalue(), name="../C:\\x\\<b>my photo</b>.png")
  assert sent.status_code == 200, sent.text
  task = tools.wait(client, sent.json()["task"])
  assert task["done"] == task["total"] == 128 + 1 + 30 + 1
  key = task["image"]
  explainer = tools.explainer(mode="fixed")
  e = explainer.explain(pixels, paths[4])
  found = get(client, "pair", query=key, reference=viewer.key(4))
  np.testing.assert_allclose(values(found["query_map"]).ravel(), e.saliency.cells, atol=1e-5)
  assert found["score"] == pytest.approx(e.score, abs=1e-5)
  assert found["measured_passes"][key] == 160
  assert found["encoder_passes"] == 0
  assert found["query"]["name"] == "b>.png"  # behind the last slash
  scores = explainer.embed(paths) @ explainer.embed([pixels])[0]
  matches = get(client, "nearest", query=key, count=4)["matches"]
  assert [m["key"] for m in matches] == [viewer.key(n) for n in np.argsort(-scores)[:4]]
  # As a reference it lights up what it matches, and both may be perturbed.
  back = get(client, "pair", query=viewer.key(4), reference=key, mode="both")
  masked = tools.explainer(mode="both").masked_embeddings(pixels).mean(axis=0)
  index = viewer.collection.indexes[0]
  np.testing.assert_allclose(
    values(back["query_map"]).ravel(), index.effect_matrix(4) @ masked, atol=1e-5
  )
  picture = client.get(f"/api/images/{key}/picture")
  assert picture.status_code == 200


def test_another_design_is_measured_on_demand(viewer, paths):
  client = viewer.client()
  view, image = "kernel_shap~black", viewer.key(2)
  before = get(client, "pair", query=image, reference=viewer.key(3), view=view)
  assert before["query_map"] is None
  assert [m["can_measure"] for m in before["missing"]] == [True, True]
  headers = {"x-form-token": tools.token_of(client)}
  got = client.post(
    "/api/measurements", params={"image": image, "view": view}, headers=headers
  ).json()
  tools.wait(client, got["task"])
  after = get(client, "pair", query=image, reference=viewer.key(3), view=view)
  e = sane_jax.Explainer(tools.model(), design="kernel_shap", fill="black").explain(
    paths[2], paths[3]
  )
  np.testing.assert_allclose(values(after["query_map"]).ravel(), e.saliency.cells, atol=1e-4)
  assert after["measured_passes"][image] == 1002
  assert [m["key"] for m in after["missing"]] == [viewer.key(3)]
  again = client.post(
    "/api/measurements", params={"image": image, "view": view}, headers=headers
  ).json()
  assert again["state"] == "done"
  held = client.post(
    "/api/measurements", params={"image": image, "view": "rise~grey"}, headers=headers
  )
  assert held.status_code == 409


def hold(viewer, monkeypatch):
  """Keeps the worker at its next image until the event is set."""
  import threading

  release, entered = threading.Event(), threading.Event()
  original = viewer.measuring._measure

  def held(task):
    entered.set()
    release.wait(60)
    original(task)

  monkeypatch.setattr(viewer.measuring, "_measure", held)
  return release, entered


def test_photos_wait_in_a_queue_that_is_bounded_and_can_be_left(both, rng, monkeypatch):
  viewer = tools.Viewer([both])
  client = viewer.client()
  release, entered = hold(viewer, monkeypatch)
  data = [jpeg(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)) for _ in range(3)]
  tasks = [tools.send(client, d).json() for d in data]
  assert entered.wait(30)
  states = [get(client, f"tasks/{t['task']}") for t in tasks]
  assert [s["state"] for s in states] == ["measuring", "waiting", "waiting"]
  assert [s["place"] for s in states] == [0, 1, 2]
  headers = {"x-form-token": tools.token_of(client)}
  left = client.delete(f"/api/tasks/{tasks[1]['task']}", headers=headers).json()
  assert left["state"] == "cancelled"
  assert get(client, f"tasks/{tasks[2]['task']}")["place"] == 1
  codes = [tools.send(client, data[0]).status_code for _ in range(20)]
  assert codes.count(200) == 15  # 16 wait with the third
  assert set(codes) == {200, 503}
  client.delete(f"/api/tasks/{tasks[0]['task']}", headers=headers)
  release.set()
  assert tools.wait(client, tasks[0]["task"], ("cancelled",))["state"] == "cancelled"
  tools.wait(client, tasks[2]["task"])
  refused = get(client, "pair", 409, query=tasks[0]["image"], reference=viewer.key(0))
  assert "not measured" in refused["detail"]
  viewer.measuring.close()


def test_a_photo_that_can_not_be_measured_costs_itself_alone(both, monkeypatch, rng):
  viewer = tools.Viewer([both])
  client = viewer.client()
  original, broken = viewer.measuring._measure, []

  def breaks(task):
    if not broken:
      broken.append(task)
      raise RuntimeError("secret inside")
    original(task)

  monkeypatch.setattr(viewer.measuring, "_measure", breaks)
  data = jpeg(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
  first = tools.send(client, data).json()
  failed = tools.wait(client, first["task"], ("failed",))
  assert "secret" not in failed["error"]
  tools.wait(client, tools.send(client, data).json()["task"])


def png_bomb(side):
  """A PNG that says it has side² pixels, in a few kB."""
  import struct

  def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
  rows = zlib.compress(b"\x00" * (side + 1) * 200, 9)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
  ("data", "status", "words"),
  [
    (b"", 422, ""),
    (b"no image at all", 422, "no image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 422, "no image"),
    (b"<!doctype html><script>alert(1)</script>", 422, "no image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "no image"),
    (b"%PDF-1.4 nothing", 422, "no image"),
    (b"\xff\xd8\xff\xe0" + b"\x00" * 400, 422, ""),
    (png_bomb(60_000), 422, "pixels"),
    (jpeg(np.zeros((90, 90, 3), np.uint8))[:300], 422, "broken or cut short"),
    (b"\x89PNG" + b"x" * (1 << 20), 413, "at most"),
  ],
)
def test_what_is_no_photo_is_refused(viewer, data, status, words):
  client = viewer.client()
  kept = len(viewer.collection.uploads)
  got = tools.send(client, data)
  assert got.status_code == status, got.text
  assert words in got.json()["detail"].lower()
  assert len(viewer.collection.uploads) == kept
  assert get(client, "status")["images"] == len(tools.NAMES)


def test_what_a_photo_s_file_holds_beside_its_pixels_is_gone(viewer, rng):
  exif = Image.Exif()
  exif[0x010E] = "SECRETPLACE <script>"
  pixels = rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)
  data = jpeg(pixels, exif=exif, comment=b"SECRETPLACE") + b"<script>SECRETPLACE</script>"
  assert data.count(b"SECRETPLACE") == 3
  client = viewer.client()
  key = tools.send(client, data).json()["image"]
  for thumbnail in (False, True):
    got = client.get(f"/api/images/{key}/picture", params={"thumbnail": thumbnail}).content
    assert b"SECRETPLACE" not in got
    assert not Image.open(io.BytesIO(got)).getexif()


def test_a_photo_is_sent_from_our_page_alone_and_not_too_often(both, rng):
  data = jpeg(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
  viewer = tools.Viewer([both], limits=(Limit("/api/uploads", 0.001, 2, ("POST",)),))
  client = viewer.client()
  kind = {"content-type": "application/octet-stream"}
  client.get("/")
  assert client.post("/api/uploads", content=data, headers=kind).status_code == 403
  assert tools.send(client, data).status_code == 200
  assert tools.send(client, data).status_code == 429
  foreign = {"origin": "http://evil.example", "x-form-token": tools.token_of(client)}
  assert client.post("/api/measurements", headers=kind | foreign).status_code == 403
  assert client.delete("/api/tasks/none").status_code == 403
  viewer.measuring.close()


def test_without_a_model_nothing_is_measured_and_the_reason_is_told(both):
  viewer = tools.Viewer([both], uploads=False, no_uploads="Started without.")
  client = viewer.client()
  assert get(client, "status")["no_uploads"] == "Started without."
  assert [v["held"] for v in get(client, "status")["views"]] == [True]
  got = tools.send(client, b"x")
  assert (got.status_code, got.json()["detail"]) == (409, "Started without.")


def test_an_index_of_another_model_is_named(both, folder, paths):
  with pytest.raises(ValueError, match="other weights"):
    Measuring(tools.model(seed=1), Collection([both]))
  other = ExplanationIndex.build(
    folder / "other",
    sane_jax.Explainer(
      sane_jax.from_jax(lambda p, x: x.mean((1, 2)), None, image_size=28, name="another"),
      num_masks=128, grid=(4, 4),
    ), paths,
  )  # fmt: skip
  with pytest.raises(ValueError, match="not of one model: model is 'small' and 'another'"):
    Collection([both, other])
  with pytest.raises(ValueError, match="both of design hadamard and fill grey"):
    Collection([both, both])


def test_the_cache_is_bounded():
  cache = Cache(100, lambda value: value)
  for n in range(50):
    cache.put(n, 30)
  assert len(cache) == 3
  assert cache.get(49) == 30
  assert cache.get(0) is None
  assert cache.get(47) == 30  # and is now the last to go
  cache.put("new", 30)
  assert cache.get(47) == 30
  assert cache.get(48) is None
  cache.put("large", 1000)  # the last one always stays: whoever sent it is looking at it
  assert cache.get("large") == 1000
  assert len(cache) == 1
  cache.put("small", 1)
  assert cache.get("large") is None


def test_links_to_photos_live_as_long_as_the_server(client):
  refused = get(client, "nearest", 404, query="u-" + "A" * 24)
  assert "until the server ends" in refused["detail"]


def test_the_index_finds_nearest_to_any_embedding(both, paths):
  vector = both.embeddings([3])[0]
  assert both.nearest_to(vector, 3) == [both.ids[3], *both.nearest(3, 2)]
  assert "no such" not in both
  assert both.ids[0] in both
  assert resampling.page_grid((25, 7)) == (14, 7)
  assert index_lib.check_same(both, tools.explainer(mode="both")) is None


def test_openapi_is_the_application_s_own(client):
  described = client.get("/api/openapi.json").json()
  assert set(described["paths"]) >= {"/api/nearest", "/api/pair", "/api/contrast", "/api/uploads"}
  assert "/" not in described["paths"]
  assert client.get("/docs").status_code == 404
  json.dumps(described)
