"""All settings, each born once: name, type, default, unit, reason. The only file that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from app.errors import Invalid
from app.rates import Rate

_PREFIX = "HEARTH_"


def _home() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "hearth"


class Settings(BaseModel):
    """`HEARTH_<NAME>` in the environment, `--<name>` of `hearth serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="TCP port; 0 picks a free one")
    home: Path = Field(default_factory=_home, description="weights, caches and added models")
    profile: Literal["auto", "pretrained", "starter"] = Field(
        "auto",
        description="auto: pretrained models, or the starters where they cannot be had; pretrained: or fail; starter: no network",
    )
    models: tuple[str, ...] = Field((), description="models to start with, comma-separated; empty: the profile's defaults")
    weights_path: tuple[Path, ...] = Field(
        (), description="folders searched for weight files before any download, colon-separated"
    )
    frontends: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto", description="HTTP processes; auto: one per four cores"
    )
    devices: tuple[str, ...] = Field(("auto",), description="auto, or a list such as cuda:0,cuda:1 or cpu")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="CPU threads per worker; auto: one per core"
    )
    precision: Literal["auto", "fp32"] = Field(
        "auto", description="auto: bf16 where the device has it and a model's sample agrees; fp32: never less"
    )
    compute: Literal["auto", "eager", "openvino", "inductor"] = Field(
        "auto", description="what runs the models; auto: the fastest that agrees with eager PyTorch, measured once per machine"
    )
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        30.0, description="a request's deadline from when it is all here; its own timeout_ms counts from its beginning"
    )
    silence_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        30.0, description="how long a header may take, and a pause in the middle of a body"
    )
    drain_s: Annotated[float, Field(ge=0, le=3600)] = Field(30.0, description="how long SIGTERM waits for what was accepted")
    keys_file: str = Field("", description="file of keys (hearth keys add); empty: only this machine may tune, load and unload")
    key: str = Field(
        "",
        exclude=True,
        repr=False,
        pattern="^[!-~]*$",
        description="the key that hearth predict and hearth jobs send; no option",
    )
    address_rate: str = Field("", description="requests that one address may send, as 10/s or 600/min; empty: any number")
    cors_origins: tuple[str, ...] = Field(
        (), description="web pages that may ask, as https://example.org, comma-separated; *: all; empty: none but our own"
    )
    database: str = Field("", description="jobs of this server alone, as SQLAlchemy writes it; empty: SQLite in HEARTH_HOME")
    tuners: Annotated[int, Field(ge=1, le=64)] = Field(1, description="jobs that are trained at once on each device")
    tuner_share: Annotated[float, Field(ge=0.01, le=1)] = Field(
        0.1, description="share of the time that jobs get while models answer requests; 1: they are not held back"
    )
    checkpoint_s: Annotated[float, Field(gt=0)] = Field(
        10.0, description="seconds between two checkpoints of a job; more where they would take above a twentieth of the time"
    )
    versions: Annotated[int, Field(ge=2)] = Field(5, description="newest versions of a tuned model that are kept on the disk")
    max_jobs: Annotated[int, Field(ge=1)] = Field(32, description="jobs that may be open at once")
    max_dataset_mb: Annotated[float, Field(gt=0)] = Field(4096.0, description="largest data set of a job, MiB")
    max_body_mb: Annotated[float, Field(gt=0)] = Field(
        64.0, description="largest request body, MiB; of JSON 16, or a quarter if that is more"
    )
    max_bodies_mb: Annotated[float, Field(gt=0)] = Field(
        1024.0, description="all request bodies that an HTTP process has at a time, MiB; more of them are refused"
    )
    max_pixels_mp: Annotated[float, Field(gt=0)] = Field(50.0, description="largest picture, megapixels, read from its header")
    max_audio_min: Annotated[float, Field(gt=0)] = Field(30.0, description="longest recording, minutes")
    max_inputs: Annotated[int, Field(ge=1)] = Field(256, description="inputs or files in one request")
    log: Literal["text", "json"] = Field("text", description="shape of the log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line that is written")
    hub_url: str = Field("https://huggingface.co", description="the Hugging Face hub, or a mirror of it")
    torchvision_url: str = Field(
        "https://download.pytorch.org/models", description="where torchvision's weights lie, or a mirror"
    )

    @field_validator("models", "devices", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("weights_path", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("address_rate")
    @classmethod
    def _is_rate(cls, value: str) -> str:
        if value:
            Rate.parse(value)
        return value

    @classmethod
    def from_environment(cls, overrides: Mapping[str, Any] | None = None) -> Settings:
        """The environment's settings, with `overrides` (by field name; None = not given) on top.

        Raises Invalid, one line per mistake, naming the variable, the value and what is allowed.
        """
        given: dict[str, Any] = {
            name.removeprefix(_PREFIX).lower(): value for name, value in os.environ.items() if name.startswith(_PREFIX)
        }
        unknown = sorted(set(given) - set(cls.model_fields))
        if unknown:
            known = ", ".join(variable(name) for name in cls.model_fields)
            raise Invalid(f"unknown setting {variable(unknown[0])}; there are: {known}")
        given |= {name: value for name, value in (overrides or {}).items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise Invalid("\n".join(dict.fromkeys(_told(e, given) for e in error.errors(include_url=False)))) from None

    def frontend_count(self) -> int:
        """HTTP processes: beside a model that fills the cores, one suffices for four of them."""
        return max(1, cores() // 4) if self.frontends == "auto" else self.frontends

    def thread_count(self) -> int | None:
        """CPU threads per worker; None: the worker decides."""
        return None if self.threads == "auto" else self.threads

    def to_environment(self) -> dict[str, str]:
        """The same settings as variables, for child processes; but for a caller's key, which is none of the server's."""
        return {variable(name): _text(getattr(self, name)) for name in public_fields()}


def traffic_file(home: Path) -> Path:
    """Which versions of models answer, and how it was before."""
    return home / "traffic.json"


def jobs_folder(home: Path) -> Path:
    """Where jobs keep their data, checkpoints and logs, a folder each; and by default the database of them."""
    return home / "jobs"


def public_fields() -> dict[str, FieldInfo]:
    """The settings that may stand in a command line, which everybody on the machine can read: all but secrets."""
    return {name: field for name, field in Settings.model_fields.items() if not field.exclude}


def variable(name: str) -> str:
    """The environment variable of a field."""
    return _PREFIX + name.upper()


def _told(error: Any, given: Mapping[str, Any]) -> str:
    """A mistake in one line. What is secret is not repeated."""
    name, why = str(error["loc"][0]), f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{variable(name)}={given.get(name) if name in public_fields() else '…'}: {why}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        separator = os.pathsep if value and isinstance(value[0], Path) else ","
        return separator.join(str(part) for part in value)
    return str(value)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inherited_environment() -> dict[str, str]:
    """What a child process inherits: everything but our own settings, which it gets from `Settings.to_environment`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}


def export(name: str, value: str) -> None:
    """Set a variable for libraries that read the environment themselves, in this process and its children."""
    os.environ[name] = value
