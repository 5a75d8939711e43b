"""A card: one model's description, parsed from `card.toml` into frozen values. Reads no files; `catalogue.py` does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}(@[1-9][0-9]{0,8})?$")]
"""A model's name, or with it one of its versions: `photos`, `photos@2`."""

# An architecture is `torchvision:<entry>` (weights in one file), `transformers` (a folder with config.json
# and model.safetensors, class chosen by the task).
Architecture = Annotated[str, Field(pattern=r"^(torchvision:[a-z0-9_]+|transformers)$")]

Classes = Annotated[int, Field(ge=1)] | None
"""So many outputs has the last linear layer, if not as many as its architecture gives it (a tuned model has its own labels)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileSource(_Part):
    """Weights beside the card: a file (torchvision) or a folder in the layout of transformers."""

    kind: Literal["file"]
    path: str = "."
    architecture: Architecture = "transformers"
    sha256: Sha256 | None = None
    classes: Classes = None


class PackageSource(_Part):
    """A file or folder inside an installed distribution, whose code is never imported."""

    kind: Literal["package"]
    distribution: str
    path: str
    architecture: Architecture = "transformers"
    sha256: Sha256
    """Hash of the weights file (`model.safetensors` where `path` is a folder)."""


class TorchvisionSource(_Part):
    """A builder of torchvision with one of its published weights."""

    kind: Literal["torchvision"]
    entry: str
    weights: str
    file: str
    """Name of the published file; its suffix `-xxxxxxxx` is the start of its SHA-256 (torch.hub's convention)."""


class HubSource(_Part):
    """A Hugging Face repository at one revision."""

    kind: Literal["hub"]
    repo: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    files: tuple[str, ...] = ("config.json", "model.safetensors", "tokenizer.json")
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    """File name → its hash; one not named here is checked when it is downloaded, against what the hub states, and not again."""


class ModuleSource(_Part):
    """Bring your own network: `model.py` beside the card defines the `nn.Module` class `entry`."""

    kind: Literal["module"]
    entry: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str = "weights.safetensors"
    sha256: Sha256 | None = None
    classes: Classes = None


Source = Annotated[
    FileSource | PackageSource | TorchvisionSource | HubSource | ModuleSource,
    Field(discriminator="kind"),
]


def described(source: Source) -> bool:
    """Whether the network, without its weights, is written beside the card: in `model.py` or `config.json`."""
    return isinstance(source, ModuleSource) or (isinstance(source, FileSource) and source.architecture == "transformers")


class Limits(_Part):
    """Bounds of one model. Cost is in the task's unit: images count 1, text counts tokens, speech counts seconds."""

    max_batch: Annotated[int, Field(ge=1, le=4096)] = 32
    max_cost: Annotated[float, Field(gt=0)] = 64
    max_queue: Annotated[int, Field(ge=1)] = 1024
    max_wait_ms: Annotated[float, Field(ge=0, le=100)] = 0
    """How long a lone sample may wait for company; 0 = never."""
    stall_s: Annotated[float, Field(gt=0)] = 20
    """A worker that neither beats nor finishes a batch for so long is killed. Less than requests are given (`HEARTH_TIMEOUT_S`):
    what was in a batch with an input that hangs is then answered in time by the next worker."""
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    """On the CPU: what a worker may have of memory, MiB; None: what the machine has. An input that takes more fails alone."""


class Serving(_Part):
    """How the model is run."""

    precision: Literal["auto", "fp32"] = "auto"
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    resident: bool = False
    """Start it with the server even if it is nobody's default, as models are that jobs made."""
    preload: bool = True
    """Start it with the server when it is its task's default; others start on `POST /models/{name}/load`."""


class About(_Part):
    """What a person wants to know. Nothing here changes behaviour."""

    title: str = ""
    licence: str
    paper: str = ""
    accuracy: str = ""
    data: str = ""
    reproduce: str = ""
    """The command that trains it again, for models trained by this project."""


class Card(_Part):
    """One model. `name` and `folder` come from where the card lies, the rest from `card.toml`."""

    name: Key
    folder: Path
    task: str
    source: Source
    version: str = "1"
    default: bool = False
    """What its task's endpoint uses when no model is named."""
    starter: bool = False
    """Runs without a network: its weights are in the repository or in a pinned package."""
    input: dict[str, Any] = Field(default_factory=dict)
    """Preprocessing, checked by the task's codec (`app/tasks/<task>/codec.py`)."""
    limits: Limits = Limits()
    serving: Serving = Serving()
    about: About

    @property
    def model(self) -> str:
        """What callers call it, whatever its version."""
        return self.name.partition("@")[0]
