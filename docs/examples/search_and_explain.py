"""A vector index finds the matches, the explanation index says why: ids in, explanations out.

  python -m pip install faiss-cpu
  python docs/examples/search_and_explain.py FOLDER_OF_PHOTOS [QUERY.jpg]

Measures each photo once (run again, only new ones), asks FAISS for the query's nearest, and writes
a page that shows why each of them matches; the model does not run for that.
"""

import pathlib
import sys

import faiss
import numpy as np

import sane_jax
from sane_jax import report
from sane_jax.datasets import photos


def main(folder: str, query: str | None = None, matches: int = 5) -> pathlib.Path:
  paths = [str(path) for path in photos.list_photos(folder)]
  model = sane_jax.load_model("efficientnet_lite0", image_size=112)
  explainer = sane_jax.Explainer(model)
  index = sane_jax.ExplanationIndex.build("runs/search/index", explainer, paths)

  known = [name for name in index.ids if name in set(paths) and name not in index.left_out]
  vectors = index.embeddings(known)
  search = faiss.IndexFlatIP(vectors.shape[1])  # or any other: it is asked for positions alone
  search.add(vectors)  # pyright: ignore[reportCallIssue]

  query = query or known[0]
  asked = index.embeddings([query])
  _, found = search.search(asked, matches + 1)  # pyright: ignore[reportCallIssue]
  ids = [known[i] for i in np.ravel(found) if known[i] != query][:matches]

  maps = index.maps(query, ids)
  for name, map_, score in zip(ids, maps, index.scores(query, ids), strict=True):
    row, column = np.unravel_index(map_.argmax(), map_.shape)
    print(
      f"{score:.3f} {name}: most of it lies in row {row + 1}, column {column + 1} of {index.grid}"
    )
  views = [index.explain(query, name).view() for name in ids]
  page = pathlib.Path("runs/search/why.html")
  page.write_text(report.render_page(views, title=f"Why do these match {query}?"))
  print(f"open {page}")
  return page


if __name__ == "__main__":
  main(*sys.argv[1:3])
