"""What `murine data` does: list what can be fetched, fetch it, say what is in a file, convert a package, prepare.

What comes in: a `DataConfig`. What goes out: tables and paths on stdout; sizes, licences, the question whether to
download, and progress on stderr.
"""

import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from neural_data.catalogue import DataSet, find_data_sets, list_data_sets
from neural_data.download import LOCK, Plan, data_folder, download, in_words, plan_download
from pretrain.progress import Meter, progress, say
from ray_jobs.config import DataConfig
from ray_jobs.keys import ConfigError

MEGABYTE = 10**6
PIPED_WIDTH = 120  # characters in a line of a table where there is no terminal to ask


def data(config: DataConfig) -> None:
    """Do what the first word says."""
    actions = {"fetch": fetch, "list": list_known, "info": info, "convert": convert, "prepare": prepare}
    if config.action is None:
        raise ConfigError(f"say what to do: {', '.join(actions)} (`murine data --help` has examples)")
    actions[config.action](config)


def list_known(config: DataConfig) -> None:
    """The catalogue, or what of it matches a pattern."""
    shown = Table(
        box=None, pad_edge=False, caption="sizes that are not given are asked from the server before a download"
    )
    shown.add_column("name", no_wrap=True)
    shown.add_column("what", overflow="fold")
    for heading in ("files", "size"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("licence", overflow="fold")
    for known in list_data_sets(" ".join(config.what) or "*"):
        size = "" if known.bytes is None else in_words(known.bytes)
        shown.add_row(known.title, known.what, str(len(known.files)), size, known.licence)
    Console(width=shutil.get_terminal_size((PIPED_WIDTH, 0)).columns, highlight=False).print(shown)


def fetch(config: DataConfig) -> None:
    """Show size and licence, ask, download, and print the paths."""
    if not config.what:
        raise ConfigError("fetch: say what, for example `murine data fetch sensorium2022 A` (`murine data list`)")
    source, *names = config.what
    wanted = find_data_sets(source, names)
    files = list(dict.fromkeys(file for each in wanted for file in each.files))
    with progress("looking", len(files)) as meter:
        plan = plan_download(files, data_folder(source, config.out), config.mirror, meter.advance)
    describe(wanted, plan)
    if plan.missing and not config.yes and not agreed(plan):
        say("nothing was downloaded")
        return
    here = sum(item.have for item in plan.missing)
    with progress("downloading, MB", (here + plan.bytes_left) // MEGABYTE, here // MEGABYTE) as meter:
        paths = download(plan, Megabytes(meter).advance)
    for path in paths:
        print(path)


def describe(wanted: list[DataSet], plan: Plan) -> None:
    """What is about to be downloaded: licence, source, place, size, and how it will be checked."""
    for each in wanted:
        say(f"{each.title}: {each.what}")
    for licence in dict.fromkeys(each.licence for each in wanted):
        say(f"  licence: {licence}")
    say(f"  from: {', '.join(dict.fromkeys(each.found for each in wanted))}")
    say(f"  into: {plan.folder}, where {in_words(plan.bytes_free)} are free")
    size = "of unknown size" if plan.bytes is None else in_words(plan.bytes)
    say(f"  files: {len(plan.items)}, {size}; {len(plan.missing)} are missing, {in_words(plan.bytes_left)} to come")
    published = sum(item.hash_is == "published" for item in plan.items)
    others = f"{len(plan.items) - published} by S3's ETag where there is one, and by {LOCK} from the first time on"
    say(f"  checked: {published} by published hashes, {others}")


def agreed(plan: Plan) -> bool:
    """Whether the user wants it; without a terminal to ask at, ValueError that says how to answer."""
    if not sys.stdin.isatty():
        raise ValueError(f"fetch: {in_words(plan.bytes_left)} are to come and nobody can be asked; say yes=true")
    try:
        return Confirm.ask(f"Download {in_words(plan.bytes_left)}?", console=Console(stderr=True), default=False)
    except EOFError:
        return False


class Megabytes:
    """Shows bytes that come as megabytes on a meter, with their pace since the beginning."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.bytes, self.started = meter, 0, time.monotonic()
        self.shown = 0

    def advance(self, bytes: int) -> None:
        self.bytes += bytes
        count = self.bytes // MEGABYTE - self.shown
        if count:
            self.shown += count
            pace = self.bytes / MEGABYTE / max(time.monotonic() - self.started, 0.001)
            self.meter.advance(count, f"{pace:.1f} MB/s")


def info(config: DataConfig) -> None:
    """What each recording at a path has and lacks."""
    path = one_path(config, "info")
    from neural_data.formats import read_recordings

    for recording in read_recordings(Path(path)):
        print(recording.summary())


def convert(config: DataConfig) -> None:
    """Make an open format of a package of mouse-vision."""
    path = one_path(config, "convert")
    if config.out is None:
        raise ConfigError("convert: out is not set; name the folder that receives the recording, out=<folder>")
    from neural_data.allen_packaged import convert_packaged

    convert_packaged(Path(path), Path(config.out))
    print(config.out)


def prepare(config: DataConfig) -> None:
    """Write each recording at a path as training reads it fastest; those that are there already are left."""
    path = one_path(config, "prepare")
    if config.out is None:
        raise ConfigError("prepare: out is not set; name the folder that receives a folder per recording, out=<folder>")
    from neural_data.formats import read_recordings
    from neural_data.prepared import read_prepared
    from neural_data.prepared_writer import prepared_bytes, prepared_rows, require_space, write_prepared

    recordings = {Path(config.out) / recording.name: recording for recording in read_recordings(Path(path))}
    missing = {folder: recording for folder, recording in recordings.items() if not folder.exists()}
    types = {"stimuli": config.stimuli, "responses": config.responses}
    require_space(Path(config.out), sum(prepared_bytes(recording, **types) for recording in missing.values()))
    # Everything is written once, and read once to check it.
    with progress("preparing", 2 * sum(map(prepared_rows, missing.values()))) as meter:
        for folder, recording in missing.items():
            write_prepared(recording, folder, **types, advance=meter.advance)
    for folder, recording in recordings.items():
        if folder not in missing and read_prepared(folder).name != recording.name:
            raise ValueError(f"{folder}: found another recording, expected {recording.name}")
        print(folder)


def one_path(config: DataConfig, action: str) -> str:
    """The one word after the action."""
    if len(config.what) != 1:
        raise ConfigError(f"{action} takes one path, given {len(config.what)}: `murine data {action} <path>`")
    return config.what[0]
