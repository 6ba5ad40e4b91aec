"""What installed packages add and cannot be used: told by name, before a trial, and in nobody else's way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.search.commands import transfer_search
from trainables import modalities, plugins

SPEC = """\
name: small
data: {{source: digits, image_size: 32, limit: {{train: 20, validation: 20, test: 20}}}}
search: {{trials: 2, max_epochs: 1, sampler: {sampler}}}
space: {{backbone: {backbone}, weights: none, policy: {policy}, lr: [0.001, 0.01]}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""

Install = Callable[..., None]


def clear() -> None:
    plugins._installed.cache_clear()
    plugins._loaded.cache_clear()
    modalities.modality.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module with one entry point."""

    def installed(package: str, group: str, name: str, code: str) -> None:
        site = tmp_path / package
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        point = f"[transfer_search.{group}]\n{name} = {package}_code:added\n"
        (info / "entry_points.txt").write_text(point)
        (site / f"{package}_code.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))
        sys.modules.pop(f"{package}_code", None)
        clear()

    yield installed
    clear()


def planned(
    folder: Path,
    code: int,
    policy: str = "none",
    backbone: str = "shufflenet_v2_x0_5",
    sampler: str = "random",
) -> str:
    (folder / "spec.yaml").write_text(SPEC.format(policy=policy, backbone=backbone, sampler=sampler))
    return transfer_search("launch", "spec.yaml", "--dry-run", code=code)


BROKEN = {
    "raises at import": ("raise RuntimeError('no such day')", "RuntimeError: no such day"),
    "no attribute": ("other = 1", "has no attribute 'added'"),
    "no function": ("added = 1", "must be callable with (image_size=, orientation_matters=)"),
    "wrong signature": ("def added(size): ...", "must be callable with (image_size=, orientation_matters=)"),
    "no stage": ("def added(image_size, orientation_matters): return []", "it has no stage"),
    "fails": ("def added(image_size, orientation_matters): 1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize(("code", "message"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_policy_is_told_by_name_before_a_trial(
    folder: Path, install: Install, code: str, message: str
) -> None:
    install("gloomy", "policies", "dusk", code)
    error = planned(folder, 2, policy="dusk")
    assert "'dusk' of gloomy 1.0" in error
    assert message in error


def test_a_policy_must_draw_from_the_seeds_and_give_inputs(folder: Path, install: Install) -> None:
    install(
        "careless",
        "policies",
        "dice",
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from trainables.image.transforms import CenterCrop\n"
        "@dataclass(frozen=True)\n"
        "class Dice:\n"
        "    def __call__(self, images, seeds): return torch.randint_like(images, 256)\n"
        "    def describe(self): return ['chance']\n"
        "def added(*, image_size, orientation_matters): return [CenterCrop(size=image_size), Dice()]\n",
    )
    assert "draw from the seeds alone" in planned(folder, 2, policy="dice")


def test_one_that_is_broken_is_in_nobodys_way_and_is_listed(folder: Path, install: Install) -> None:
    install("gloomy", "policies", "dusk", "raise RuntimeError('no such day')")
    install("thief", "policies", "flip_crop", "added = None")
    assert "flip_crop" in planned(folder, 0, policy="flip_crop")
    from tests.search.commands import both_streams

    listed, warned = both_streams("policies", code=0)
    assert "dusk" not in listed
    assert "'dusk' of gloomy 1.0" in warned
    assert "'flip_crop' of thief 1.0 is not used: the name is taken by transfer-search itself" in warned


def test_a_name_that_two_packages_give_is_nobodys(folder: Path, install: Install) -> None:
    for package in ("one", "other"):
        install(package, "policies", "dawn", "def added(*, image_size, orientation_matters): ...")
    error = planned(folder, 2, policy="dawn")
    assert "in more than one package: " in error
    assert "one 1.0" in error
    assert "other 1.0" in error


def test_a_broken_backbone_and_sampler_are_told_by_name(folder: Path, install: Install) -> None:
    install("hollow", "backbones", "void", "added = object()")
    install("lazy", "samplers", "nap", "def added(): ...")
    assert "'void' of hollow 1.0" in planned(folder, 2, backbone="void")
    error = planned(folder, 2, sampler="nap")
    assert "'nap' of lazy 1.0" in error
    assert "must be callable with (seed=)" in error


def test_a_modality_lacks_what_it_lacks_by_name(folder: Path, install: Install) -> None:
    install("silent", "modalities", "sound", "class Sound:\n    name = 'sound'\nadded = Sound()\n")
    spec = SPEC.format(policy="none", backbone="x", sampler="random").replace(
        "{source", "{modality: sound, source"
    )
    (folder / "spec.yaml").write_text(spec)
    error = transfer_search("launch", "spec.yaml", "--dry-run", code=2)
    assert "'sound' of silent 1.0" in error
    assert "it has no hparams" in error


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"policy": "flip_corp"}, "flip_crop"),
        ({"sampler": "rnadom"}, "random"),
        ({"backbone": "efficientnet_lit0"}, "efficientnet_lite0"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_what_there_is(
    folder: Path, given: dict[str, str], meant: str
) -> None:
    error = planned(folder, 2, **given)
    (name,) = given.values()
    assert name in error
    assert f"did you mean {meant}" in error


def test_code_is_never_named_by_path(folder: Path) -> None:
    for place in ("os:system", "tests.plugins.package.vector_noise.images:negative", "./negative.py"):
        assert "must be one of none, flip_crop" in planned(folder, 2, policy=f'"{place}"')
