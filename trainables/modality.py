"""What makes a trial one of images, or of anything else: the protocol that a modality implements.

`training/` and the whole service know a modality by this protocol alone. Examples and inputs are each one
tensor whose first axis counts them, so that they can be indexed, split and moved: of images frames uint8
[B, 3, S, S]; of texts int64 [B, 3, L] that hold tokens, their mask and their words. What the numbers mean is
between the modality's data, its policies and its preprocessing.

Nothing here imports torch, and a module that holds a modality should not either before a method is called:
a spec is read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "Backbone",
    "BackboneInfo",
    "Data",
    "Examples",
    "Exporter",
    "Mixing",
    "Modality",
    "Policy",
    "Predictor",
    "Preprocessing",
    "Progress",
    "Report",
]

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) during anything slow."""


class Preprocessing(Hashable, Protocol):
    """How an example becomes what a network takes: a value that is saved with the model.

    Nobody but its modality looks inside. Its `repr` names all that it does; equal ones do the same.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `Modality.preprocessing`."""

    def normaliser(self) -> nn.Module:
        """A module without a state dict that maps inputs [B, ...] to what the backbone's module takes."""

    def blank(self, count: int) -> Tensor:
        """So many inputs of the right shape and type, all alike."""


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, in evaluation mode.

    Attributes:
        name, weights: as they were asked for.
        module: normalised inputs [B, ...] -> features float [B, features]; of images, float [B, 3, s, s].
        features: width of the output.
        groups: names of the module's parameters and buffers (its state dict), each in exactly one
            group, ordered from input to output.
        preprocessing: what the weights were trained with, at the asked size.
        weights_hash: hex digest of the state; for `weights: none` of what determines it.
    """

    name: str
    weights: str
    module: nn.Module
    features: int
    groups: tuple[tuple[str, ...], ...]
    preprocessing: Any
    weights_hash: str


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What is known of a backbone without building it.

    Attributes:
        name: the value of the knob `backbone`.
        parameters: their number, the classifier included; None where only building would tell.
        weights_at_hand: whether `weights: pretrained` works on this machine as it is.
        details: what else a list shows, by column, such as `image_size`.
    """

    name: str
    parameters: int | None
    weights_at_hand: bool
    details: Mapping[str, Any] = field(default_factory=dict)


class Policy(Hashable, Protocol):
    """An augmentation policy as built.

    An example's random numbers come from its own seed alone: whatever batch it is in, the same example and
    the same seed give the same input.
    """

    @property
    def is_identity(self) -> bool:
        """Whether the seeds change nothing."""

    @property
    def key(self) -> str:
        """Text that changes with everything that changes what an example and a seed become."""

    def __call__(self, examples: Tensor, seeds: Tensor, /) -> Tensor:
        """Inputs [B, ...] of examples [B, ...] and seeds int64 [B]."""

    def describe(self) -> list[str]:
        """What it does, line by line, for a person."""


class Mixing(Protocol):
    """Mixes a batch with itself, as mixup does."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator, /
    ) -> tuple[Tensor, Tensor]:
        """Mixed inputs, and mixed targets float [B, C], each row a distribution."""


class Examples(Protocol):
    """All examples of the data, as one preprocessing takes them.

    Where they differ in length, as texts do, they may say so as `lengths`, int64 [N]: those of one length
    then pass a frozen trunk together.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The examples [B, ...] at int64 indices [B]."""

    def on(self, device: torch.device, indices: Tensor) -> Tensor:
        """The same on a device, where the last bits may differ: from what is kept there, if anything is."""


class Report(Protocol):
    """What was found in the data."""

    def lines(self) -> Iterable[str]:
        """The report for a person."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON."""


class Data(Hashable, Protocol):
    """Labelled examples, checked, split and ready to be trained on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""

    @property
    def splits(self) -> Mapping[str, Tensor]:
        """Ascending int64 indices of `train`, `validation` and `test`."""

    @property
    def fingerprint(self) -> str:
        """Changes if and only if examples, labels, classes or splits change."""

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each example to a person."""

    @property
    def report(self) -> Report:
        """What was found."""

    def examples(self, preprocessing: Any) -> Examples:
        """Every example in the form that policies of this preprocessing take.

        Raises:
            DataError: when the data has changed since it was loaded.
        """


class Predictor(Protocol):
    """A saved model in use."""

    @property
    def card(self) -> Any:
        """What the model is, a `training.card.Card`."""

    @property
    def logits(self) -> Callable[[Tensor], Tensor]:
        """Maps examples [B, ...] to logits [B, C]."""

    def example(self, item: Any) -> Tensor:
        """What `probabilities` takes of an example as a person has it: a file's path, or an array.

        Raises:
            ValueError: for what is no example.
        """

    def probabilities(self, examples: list[Tensor], /) -> Tensor:
        """Probabilities [B, C] of examples, each [...]."""

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A frame with a row an example: `label`, `probability`, and `probabilities` of all classes in order.

        Raises:
            ValueError: for what is no example.
        """


class Exporter(Protocol):
    """A model on its way into files."""

    @property
    def needs(self) -> Sequence[str]:
        """The packages that a served model needs beside MLflow's own."""

    def names(self, kind: str) -> Sequence[str]:
        """What the files of a format are called, the model's first."""

    def write(self, kind: str, folder: Path) -> None:
        """Writes the files of a format into a folder."""

    def difference(self, predictor: Any, data: Any) -> str:
        """What of a file that was read back was compared beside its accuracy, in words, if anything.

        Raises:
            ValueError: where it differs from the model.
        """

    def sample(self, data: Any) -> Mapping[str, bytes | str]:
        """A validation example as a served model takes it: by the column's name a file's bytes, or text.

        Raises:
            ValueError: where none is served.
        """

    def facts(self, folder: Path) -> Mapping[str, Any]:
        """What a README tells of the files."""


H = TypeVar("H")
"""The hyperparameters of a modality."""


class Modality(Hashable, Protocol[H]):
    """A kind of data and all that trials need to know of it.

    Attributes:
        name: the value of the spec's `data.modality`.
        hparams: what a trial can vary: a subclass of `training.hparams.HParams`.
        item: what one example is called, such as `image`.
        suffixes: how the names of files end that hold an example each, in lower case.
        export_files: the formats that a model is exported in, and what their files are called.
        backbone_knobs: the knobs that decide which backbone is built, `backbone` and `weights` among them.
        portfolio: the file of trials on other tasks that `search.study.portfolio` reads; None: there is none.
    """

    @property
    def name(self) -> str: ...

    @property
    def hparams(self) -> type[H]: ...

    @property
    def item(self) -> str: ...

    @property
    def backbone_knobs(self) -> tuple[str, ...]: ...

    @property
    def portfolio(self) -> Path | None: ...

    @property
    def suffixes(self) -> Collection[str]: ...

    @property
    def export_files(self) -> Mapping[str, str]: ...

    def load(self, config: Mapping[str, Any], *, cache_dir: Path, progress: Progress | None = None) -> Data:
        """The data of a spec's `data` section, checked and split.

        Args:
            config: plain values: `source`, `root`, the shares `validation` and `test`, `seed`,
                `train_limit`, `validation_limit` and `test_limit`, and the modality's own options.
            cache_dir: where the node keeps what it computes.

        Raises:
            DataError: naming everything that keeps the data from being used, unknown options too.
        """

    def backbone(self, values: Mapping[str, Any], *, preprocessing: Any = None) -> Backbone:
        """The backbone that the `backbone_knobs` in `values` ask for.

        Args:
            preprocessing: of a model that was saved; the backbone is built for that.

        Raises:
            BackboneError: for an unknown name, or weights that are not on this machine or do not fit.
        """

    def preprocessing(self, values: Mapping[str, Any]) -> Preprocessing:
        """The value that `Preprocessing.to_dict` described.

        Raises:
            ValueError: for missing, unknown or impossible values.
        """

    def policy(self, hparams: H, data: Data, preprocessing: Any) -> Policy:
        """The policy that training examples go through.

        Raises:
            ValueError: for an unknown policy, or one that cannot be built so.
        """

    def plain(self, preprocessing: Any) -> Policy:
        """The identity: what examples go through where a metric is computed."""

    def mixing(self, hparams: H, classes: int) -> Mixing | None:
        """What mixes the batches of a trial that trains its backbone; None: nothing."""

    def loss(
        self, logits: Tensor, targets: Tensor, *, weights: Tensor | None, label_smoothing: float
    ) -> Tensor:
        """What a step minimises, a scalar.

        Args:
            logits: float [B, C].
            targets: classes int64 [B], or float [B, C] of a batch that was mixed.
            weights: of the classes, float [C].
        """

    def scores(self, logits: Tensor, labels: Tensor) -> Any:
        """What an epoch is measured by: `training.metrics.Scores` of logits [N, C] for labels int64 [N]."""

    def preview(self, policy: Policy, examples: Tensor) -> bytes | None:
        """A PNG of what a policy draws of some examples; None where there is nothing to look at."""

    def picture(self, example: Tensor) -> bytes | None:
        """A JPEG of an example [...]; None where there is nothing to look at."""

    def thumbnails(self, examples: Tensor) -> Tensor | None:
        """Float [B, 32, 32] of examples, by which copies are found; None where nothing is like that."""

    def predictor(self, loaded: Any) -> Predictor:
        """What uses a `training.delta.LoadedModel`."""

    def exporter(self, loaded: Any) -> Exporter:
        """What writes a `training.delta.LoadedModel` into files."""

    def read_export(self, kind: str, path: Path) -> Predictor:
        """What uses a file of a format, a key of `export_files`.

        Raises:
            ValueError: where the file is damaged, or none.
        """

    def licence(self, card: Any) -> str:
        """Under which terms the weights are that a model's training began with, as the end of a sentence."""

    def backbones(self, pattern: str | None) -> Sequence[BackboneInfo]:
        """The backbones whose names match `pattern`; without one, those that are worth a list."""

    def problems(self) -> Sequence[str]:
        """What is wrong with what installed packages add to it, a message for each."""

    def policies(self) -> Mapping[str, Sequence[str]]:
        """What each policy does with its defaults, by name."""

    def draw_policies(self, file: Path) -> bytes:
        """A PNG of one example under every policy.

        Raises:
            DataError: where the file is no such example, or there is nothing to draw.
        """
