"""Registered models: a promoted model as a version of a name in MLflow, with the run of its trial."""

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.records import SweepRecord
from sweeplab.specs import Failed, InvalidInput
from sweeplab.tracking.runs import KEY, key_of
from sweeplab.tracking.store import redacted, tracking_store

ALIAS = re.compile(r"(?!latest$|v\d+$)[\w-]{1,255}", re.ASCII | re.IGNORECASE)
"""What MLflow takes for an alias."""


@dataclass(frozen=True)
class Registration:
    """Under which name a model is registered in MLflow."""

    name: str
    alias: str | None = None
    """Moves to the new version; None: none does."""

    def __post_init__(self) -> None:
        if not self.name.strip() or set("/:") & set(self.name) or not self.name.isprintable() or len(self.name) > 256:
            raise InvalidInput(
                f"--register {self.name!r} is no name of a model in MLflow: it has at most 256 characters, and neither "
                "'/' nor ':'"
            )
        if self.alias is not None and not ALIAS.fullmatch(self.alias):
            raise InvalidInput(
                f"--alias {self.alias!r} is no alias in MLflow: it has letters, digits, '_' and '-', and is neither "
                "'latest' nor a 'v' with a number"
            )


class Registry:
    """Registers models in MLflow, as versions of a name, each with the run of its trial."""

    def __init__(self, home: Path, sweep: SweepRecord, identity: str, trial: int) -> None:
        """Find the trial's run.

        Raises:
            InvalidInput: if MLflow has none, its store is damaged or does not answer, or keeps files elsewhere.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self.sweep, self.trial = sweep, trial
        store, what = tracking_store(home), f"trial {trial} of {sweep.name}"
        runs: list[Any] = []
        try:
            if store.path is None or store.path.exists():
                self.client = store.client(is_patient=True)
                experiment = self.client.get_experiment_by_name(sweep.name)
                wanted = f"tags.`{KEY}` = '{key_of(sweep, identity, trial)}'"
                runs = self.client.search_runs([experiment.experiment_id], wanted) if experiment is not None else []
        except (MlflowException, SQLAlchemyError, sqlite3.DatabaseError) as error:
            # The chain would show passwords.
            raise InvalidInput(f"--register: MLflow's store {store} fails: {redacted(error)}") from None
        if not runs:
            raise InvalidInput(
                f"--register: MLflow holds no run of {what}; the sweep's command brings MLflow up to date"
            )
        self.run = runs[0].info
        if not store.takes_files(self.run.artifact_uri):
            raise InvalidInput(
                f"--register: the run of {what} keeps its files in {self.run.artifact_uri}, which is not this home's; "
                "promote in the home that ran the sweep"
            )

    def register(self, folder: Path, registration: Registration, facts: Mapping[str, str]) -> int:
        """Copy a folder among the run's files, and make it the newest version of a model.

        Args:
            folder: of the model.
            registration: its name, and the alias that moves to it.
            facts: tags of the version.

        Returns:
            The version's number.

        Raises:
            Failed: if MLflow does not take it.
        """
        from mlflow.exceptions import ErrorCode, MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

        place = f"promoted/{facts['sweeplab.weights']}"
        try:
            self.client.log_artifacts(self.run.run_id, str(folder), place)
            try:
                self.client.create_registered_model(registration.name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
            made = self.client.create_model_version(
                registration.name,
                source=f"{self.run.artifact_uri}/{place}",
                run_id=self.run.run_id,
                tags=dict(facts),
                description=f"Trial {self.trial} of {self.sweep.name}; README.md among the files is its card.",
            )
            if registration.alias is not None:
                self.client.set_registered_model_alias(registration.name, registration.alias, made.version)
        except (MlflowException, OSError) as error:
            raise Failed(f"{folder} is written and measured, but MLflow did not take it: {redacted(error)}") from None
        return int(made.version)
