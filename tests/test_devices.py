"""The same answers on 1, 2, 4 and 8 devices: maps, both images masked, and an index."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

SCRIPT = """
import json, sys
import jax, numpy as np
import sane_jax
from tests import encoders

assert jax.local_device_count() == 8
photos = np.random.default_rng(0).uniform(size=(3, encoders.SIZE, encoders.SIZE, 3))
photos = list(photos.astype(np.float32))
model = sane_jax.from_jax(encoders.nonlinear, encoders.nonlinear_params(), image_size=encoders.SIZE)
out = {}
for count in (1, 2, 4, 8):
  options = dict(devices=jax.local_devices()[:count], num_masks=128, grid=(4, 4))
  maps = [
    np.asarray(sane_jax.Explainer(model, mode=mode, **options).explain(*photos[:2]).saliency_map)
    for mode in ("fixed", "both")
  ]
  explainer = sane_jax.Explainer(model, **options)
  index = sane_jax.ExplanationIndex.build(
    f"{sys.argv[1]}/{count}", explainer, dict(zip("abc", photos))
  )
  maps.append(np.asarray(index.maps("a", ["b", "c"])))
  out[count] = [m.tolist() for m in maps]
  passes = explainer.encoder_passes
  assert 3 * 129 <= passes <= 3 * 129 + 1, passes  # one more by which the model is known again
print(json.dumps(out))
"""


def test_one_to_eight_devices_agree(tmp_path):
  root = pathlib.Path(__file__).parents[1]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(root)}
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment,
    cwd=root,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  for count in ("2", "4", "8"):
    for one, many in zip(found["1"], found[count], strict=True):
      largest = np.abs(one).max()
      assert largest > 1e-3
      # The index (three axes) rounds to float16.
      atol = 1e-5 if np.ndim(one) == 2 else largest / 500
      np.testing.assert_allclose(one, many, rtol=0, atol=atol)
