"""Where the figures of a run go besides metrics.csv: TensorBoard, Weights & Biases, MLflow.

What comes in: names of `logging.trackers`, the run folder and the config, then figures by step. What goes out: events
in `tensorboard/`, one W&B run, one MLflow run; `trackers.json` in the run folder holds their ids, so that a resumed
training goes on with the same ones. Each library finds its server and its user as it always does (WANDB_MODE=offline,
MLFLOW_TRACKING_URI, ...); MLflow without a server keeps its runs in `mlflow.db` beside the run folder. Only the first
process of a training opens trackers. Once they are open, nothing that they raise ends it.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pretrain.durable import write_atomically
from pretrain.progress import say
from pretrain.run_folder import flatten

PROJECT = "murine"
# What MLflow takes at once.
MOST_PARAMS, MOST_METRICS = 100, 1000
# A server that is away lets a call wait for minutes, so it is not asked at each row.
RETRY_AFTER_S = 600.0


class Tracker(Protocol):
    """A place where figures go; `name` is what lines for the user call it."""

    name: str

    def add(self, step: int, values: dict[str, float]) -> None:
        """The figures of a step."""

    def close(self, failed: bool = False) -> None:
        """Nothing more comes; `failed` where training did not reach its end."""


def open_trackers(names: Sequence[str], run_folder: Path, config: Any, step: int) -> list[Tracker]:
    """The trackers of those names.

    Args:
        names: of `TRACKERS`.
        run_folder: where they keep their files and ids.
        config: the dataclass of the run's keys, which W&B and MLflow show.
        step: that training goes on from; what was logged of later ones is forgotten or repeated.

    Raises:
        ValueError: one is not installed, or cannot be reached; one line.
    """
    require_installed(names)
    return [TRACKERS[name](run_folder, config, step) for name in dict.fromkeys(names)]


def attempted(tracker: Tracker, call: Callable[[], None]) -> bool:
    """Whether a call of a tracker succeeded; what it raises is said in one line, for it must not end a training."""
    try:
        call()
    except Exception as error:
        say(
            f"WARNING: {tracker.name} takes no more of this run ({type(error).__name__}: {first_line(error)}); "
            "metrics.csv has the figures"
        )
        return False
    return True


def require_installed(names: Sequence[str]) -> None:
    """One line for what is wanted and not installed; quick, so that it can be asked before anything is read."""
    for name in names:
        found = find_spec(name)
        # A folder of that name, such as the one that W&B writes, is found too, and has no file.
        if found is None or found.origin is None:
            raise ValueError(
                f"logging.trackers names {name}, which is not installed; say pip install 'murine[{name}]', or leave "
                "it out"
            )


class TensorBoard:
    """Event files in `tensorboard/`; later steps of a run that was killed are hidden."""

    name = "TensorBoard"

    def __init__(self, run_folder: Path, config: Any, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(run_folder / "tensorboard", purge_step=step + 1)

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, failed: bool = False) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One W&B run, online or offline.

    Each start of an offline run writes a folder of its own, `wandb/offline-run-*` in the run folder: all of them are
    one run and are to be synced in one command, `wandb sync RUN/wandb/offline-run-*`, which takes them in order.
    """

    name = "W&B"

    def __init__(self, run_folder: Path, config: Any, step: int) -> None:
        import wandb

        identity = stored_id(run_folder, "wandb", lambda: secrets.token_hex(4))
        try:
            self.run = wandb.init(
                project=PROJECT,
                id=identity,
                resume="allow",
                name=run_folder.name,
                dir=str(run_folder),
                config=asdict(config),
                # Our progress bar redraws the terminal, which would fill its log.
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ValueError(
                f"logging.trackers: W&B does not start ({first_line(error)}); say `wandb login`, set "
                "WANDB_MODE=offline, or leave wandb out"
            ) from error
        # W&B's own step only rises, and would drop what a run that was killed trains again.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def add(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self, failed: bool = False) -> None:
        import wandb

        try:
            self.run.finish(exit_code=int(failed))
        except Exception:
            # Its hook at exit would print a traceback where its helper process has died, and this takes the hook away;
            # it also ends our process where the helper ended badly.
            with suppress(Exception, SystemExit):
                wandb.teardown()
            raise


class MLflow:
    """One MLflow run; rows that a server does not take are kept and sent later."""

    name = "MLflow"

    def __init__(self, run_folder: Path, config: Any, step: int) -> None:
        # MLflow's own retries hold up the training for minutes, and what does not arrive is sent again later anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        import mlflow
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        # It prints the traceback of each call that a database does not take, which we say in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.metric = Metric
        local = f"sqlite:///{run_folder.resolve().parent / 'mlflow.db'}"
        self.uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else local
        self.waiting: list[Metric] = []
        self.failed_at: float | None = None
        try:
            self.client = mlflow.MlflowClient(self.uri)
            self.identity = stored_id(run_folder, "mlflow", lambda: self.create(run_folder.name, config))
            self.client.update_run(self.identity, status="RUNNING")
        except MlflowException as error:
            raise ValueError(
                f"logging.trackers: MLflow at {self.uri} does not start ({first_line(error)}); set "
                f"MLFLOW_TRACKING_URI to the server that has the run of {run_folder / ID_FILE}, remove that file for "
                "a new run, or leave mlflow out"
            ) from error

    def create(self, name: str, config: Any) -> str:
        """The id of a new run with the config as its parameters."""
        from mlflow.entities import Param

        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        identity = self.client.create_run(number, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in flatten(asdict(config)).items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(identity, params=params[start : start + MOST_PARAMS])
        return identity

    def add(self, step: int, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self.waiting += [self.metric(name, value, now, step) for name, value in values.items()]
        if self.failed_at is None or time.monotonic() - self.failed_at > RETRY_AFTER_S:
            self.send()

    def send(self) -> None:
        """Send what waits; training goes on where that fails, and it is said once until it succeeds again."""
        try:
            while self.waiting:
                self.client.log_batch(self.identity, metrics=self.waiting[:MOST_METRICS])
                del self.waiting[:MOST_METRICS]
        except Exception as error:
            if self.failed_at is None:
                say(f"WARNING: MLflow at {self.uri} takes no figures ({first_line(error)}); they wait to be sent later")
            self.failed_at = time.monotonic()
        else:
            self.failed_at = None

    def close(self, failed: bool = False) -> None:
        self.send()
        if self.waiting:
            say(f"WARNING: {len(self.waiting):,} figures did not reach MLflow at {self.uri}; metrics.csv has them")
            return
        try:
            self.client.set_terminated(self.identity, "FAILED" if failed else "FINISHED")
        except Exception as error:
            say(f"WARNING: MLflow at {self.uri} does not take the end of the run ({first_line(error)})")


TRACKERS: dict[str, type] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
ID_FILE = "trackers.json"


def stored_id(run_folder: Path, name: str, create: Callable[[], str]) -> str:
    """The id of the run folder's run at a tracker; made and kept where there is none."""
    path = run_folder / ID_FILE
    ids = json.loads(path.read_text()) if path.exists() else {}
    if name not in ids:
        ids[name] = create()
        text = json.dumps(ids, indent=1) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
    return ids[name]


def first_line(error: Exception) -> str:
    """The first line that says what happened, or the error's type where it has no text."""
    # SQLAlchemy puts a hint for its programmers before what the database said.
    lines = (line for line in str(error).splitlines() if "(raised as a result of " not in line)
    return next(lines, type(error).__name__)
