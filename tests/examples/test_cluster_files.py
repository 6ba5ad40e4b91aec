"""The files for Ray's launcher and for KubeRay, read by what reads them on a cluster."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LAUNCHED = (ROOT / "cluster.yaml", ROOT / "examples/cluster/onprem.yaml")
MANIFESTS = (ROOT / "examples/cluster/raycluster.yaml", ROOT / "examples/cluster/rayjob.yaml")
IMAGE = ROOT / "examples/cluster/Dockerfile"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def ray_versions(text: str) -> set[str]:
    """The versions of Ray that a file pins: as a requirement, as the tag of an image, to the operator."""
    return set(re.findall(r"(?:ray\[[\w,]+\]==|rayproject/ray:|rayVersion: [\"']?)([\d.]+)", text))


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_rays_own_loader_takes_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(read(path), schema)
    prepared = prepare_config(read(path))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    # Ray's defaults would install a nightly Ray: none of them is left.
    assert not re.search("nightly|latest/ray|dev0", json.dumps(prepared))


def test_aws_has_a_small_head_and_spot_gpus_from_none() -> None:
    types = read(LAUNCHED[0])["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    gpu = types["gpu"]
    assert gpu["min_workers"] == 0 < gpu["resources"]["GPU"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["node_config"]["ImageId"] == types["head"]["node_config"]["ImageId"]


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_every_start_of_ray_demands_the_token(path: Path) -> None:
    config = read(path)
    for role in ("head", "worker"):
        (start,) = (line for line in config[f"{role}_start_ray_commands"] if "ray start" in line)
        assert "RAY_AUTH_MODE=token" in start
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", [*LAUNCHED, MANIFESTS[0], IMAGE], ids=lambda path: path.name)
def test_one_version_of_ray_that_the_project_allows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ray_versions(text) == {ray.__version__}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    wanted = [each for each in map(Requirement, named) if each.name == "ray"]
    assert len(wanted) == 2
    assert all(Version(ray.__version__) in each.specifier for each in wanted)


@pytest.mark.parametrize("path", [*LAUNCHED, *MANIFESTS], ids=lambda path: path.name)
def test_no_secret_is_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"(?i)(password|secret_key|token)['\"]?\s*[:=]\s*['\"]?[0-9a-f]{8}|AKIA|://\w+:\w+@", text
    )


# KubeRay's published schema is a megabyte of Kubernetes's own. These are the fields that its Go types
# (apis/ray/v1) have beside it, typed by hand, for what the manifests use; Kubernetes's are not checked.
POD = {"type": "object", "required": ["spec"]}
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": POD,
}
COUNT = {"type": "integer", "minimum": 0}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


RAY_CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    authOptions=closed([], mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        [],
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources={"type": "object"},
        env={"type": "array"},
    ),
    headGroupSpec=closed(["template"], serviceType={"type": "string"}, **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ["groupName", "maxReplicas", "minReplicas", "template"],
            groupName={"type": "string"},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            **GROUP,
        ),
    },
)
RAY_JOB = closed(
    [],
    clusterSelector={"type": "object", "additionalProperties": {"type": "string"}},
    rayClusterSpec=RAY_CLUSTER,
    entrypoint={"type": "string"},
    jobId={"type": "string"},
    runtimeEnvYAML={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    submitterConfig=closed([], backoffLimit=COUNT),
)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_only_fields_of_kuberays_types(path: Path) -> None:
    manifest = read(path)
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.validate(manifest["spec"], {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}[manifest["kind"]])


def test_rays_autoscaler_reads_the_manifest() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    manifest = read(MANIFESTS[0])
    manifest["metadata"]["namespace"] = "default"
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(manifest)
    types = derived["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert read(MANIFESTS[1])["spec"]["clusterSelector"] == {"ray.io/cluster": manifest["metadata"]["name"]}
