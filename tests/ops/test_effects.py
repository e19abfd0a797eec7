"""What enters the sums: unit embeddings, one a condition, counted."""

import jax.numpy as jnp
import numpy as np

from sane_jax.ops import effects


def test_conditions_are_normalised_each_by_itself(rng):
  """[n k d] enters as k unit vectors side by side; a zero in one of them is counted."""
  outputs = rng.normal(size=(4, 3, 5)).astype(np.float32)
  outputs[2, 1] = 0
  seen = effects.reduce_outputs(
    lambda args, total, y, features, indices: y,
    None, effects.start_reduction(jnp.zeros(())), jnp.asarray(outputs), None, None, unit=True,
  )  # fmt: skip
  each = [
    effects.reduce_outputs(
      lambda args, total, y, features, indices: y,
      None, effects.start_reduction(jnp.zeros(())), jnp.asarray(outputs[:, k]), None, None,
      unit=True,
    ).total
    for k in range(3)
  ]  # fmt: skip
  np.testing.assert_allclose(seen.total, np.concatenate(each, axis=1), rtol=1e-6)
  assert int(seen.without_direction) == 1
  assert int(seen.passes) == 4
