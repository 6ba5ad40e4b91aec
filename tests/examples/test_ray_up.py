"""`ray up` itself on machines of namespaces, with the file for machines over SSH."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.examples.machines import USER, Machine, machines, missing

ROOT = Path(__file__).parents[2]
RAY = f". {ROOT}/examples/cluster/environment.sh; export PATH={sys.prefix}/bin:$PATH; cd {ROOT};"
NODES = "import ray; ray.init(); print('nodes', sorted(n['NodeManagerAddress'] for n in ray.nodes()))"


def config(head: Machine, worker: Machine) -> str:
    """onprem.yaml with the machines' addresses, and this environment in place of an installation."""
    document = yaml.safe_load((ROOT / "examples/cluster/onprem.yaml").read_text(encoding="utf-8"))
    document["provider"].update(head_ip=head.address, worker_ips=[worker.address])
    document["auth"]["ssh_user"] = USER
    assert "venv" in document["setup_commands"][0]
    assert "pip install" in document["setup_commands"][1]
    document["setup_commands"][:2] = [
        f"mkdir -p ~/.transfer-search && ln -sfn {sys.prefix} ~/.transfer-search/venv",
        "echo 'export PYTHONPATH=~/transfer-search' >> ~/.bashrc",
    ]
    return str(yaml.safe_dump(document))


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(600)  # of which a machine with idle cores needs some ninety seconds
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_ray_up_makes_a_cluster_of_machines_over_ssh() -> None:
    carried = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    with machines(["head", "worker", "laptop"], carried) as (head, worker, laptop):
        laptop.run(f"cat > ~/onprem.yaml <<'END'\n{config(head, worker)}\nEND")
        laptop.run(f"{RAY} ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
        laptop.run(f"{RAY} ray up -y --no-config-cache ~/onprem.yaml", timeout=400)
        joined(head)
        job = f"ray job submit --address http://{head.address}:8265 -- python -c"
        output = laptop.run(f'{RAY} {job} "{NODES}; import search; print(search.__file__)"')
        assert f"nodes {sorted([head.address, worker.address])}" in output
        assert f"/home/{USER}/transfer-search/search/__init__.py" in output
        refused(head, laptop)
        for machine in (head, worker):
            assert machine.run("stat -c %a ~/.ray/auth_token").split() == ["600"]
        shown = laptop.run(f"{RAY} ray down -y ~/onprem.yaml", timeout=120)
        assert "Requested" in shown or "shut down" in shown, shown


def joined(head: Machine) -> None:
    """Waits until the head has started Ray on the worker."""
    for _ in range(120):
        if "CPU" in head.run(f"{RAY} ray status", check=False):
            return
        time.sleep(1)
    raise AssertionError(head.run("cat /tmp/ray/session_latest/logs/monitor.*"))


def refused(head: Machine, laptop: Machine) -> None:
    """Neither Ray nor MLflow serves somebody without what it asks for."""
    jobs = f"{RAY} ray job list --address http://{head.address}:8265"
    for token in ("RAY_AUTH_TOKEN_PATH=/nowhere", f"RAY_AUTH_TOKEN={'0' * 64}"):
        assert "AuthenticationError" in laptop.run(f"export {token}; {jobs}", check=False), token
    asked = (
        "import urllib.request as r; "
        f"print(r.urlopen('http://{head.address}:5000/api/2.0/mlflow/experiments/get?experiment_id=0').status)"
    )
    assert "401" in laptop.run(f'{RAY} python -c "{asked}"', check=False)
    search = "from mlflow import MlflowClient; print(len(MlflowClient().search_experiments()))"
    assert head.run(f'{RAY} python -c "{search}"').strip() == "1"
