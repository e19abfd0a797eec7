"""Who joins whom, and who says so."""

import pytest

from sane_jax.runs import hosts

SLURM = {
  "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "8", "SLURM_PROCID": "3",
  "SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "8",
}  # fmt: skip


@pytest.mark.parametrize(
  ("environment", "several"),
  [
    ({}, False),
    (SLURM, True),
    # The batch script's own shell: the job has 8 tasks, this is none of them.
    ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NUM_TASKS"}, False),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_JOB_ID": "7"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    # A cluster without TPU names processes by flags.
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, False),
  ],
)
def test_one_process_waits_for_nobody(environment, several, monkeypatch):
  monkeypatch.setattr(hosts, "_has_tpu", lambda: False)
  assert hosts.on_cluster(environment) == several
  monkeypatch.setattr(hosts, "_has_tpu", lambda: True)
  assert hosts.on_cluster(environment)


def test_what_is_joined(monkeypatch):
  """Explicit flags go to JAX as they are; a cluster's own variables are left to JAX."""
  calls = []
  monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *args, **kw: calls.append(args))
  monkeypatch.setattr(hosts, "on_cluster", lambda environment: False)
  hosts.join_processes()
  assert calls == []
  hosts.join_processes("host:1", 3, 2)
  assert calls.pop() == ("host:1", 3, 2)
  monkeypatch.setattr(hosts, "on_cluster", lambda environment: True)
  hosts.join_processes()
  assert calls == [()]
  for wrong in (("", 2, 0), ("host:1", 1, 0), ("host:1", 2, 2), ("host:1", 2, -1)):
    with pytest.raises(ValueError, match="--coordinator=HOST:PORT"):
      hosts.join_processes(*wrong)


def test_several_processes_say_who_speaks(monkeypatch):
  assert hosts.speaker() == ""
  monkeypatch.setattr(hosts.jax, "process_count", lambda: 4)
  monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
  assert hosts.speaker() == "[2 of 4] "
