"""The public recordings that can be fetched by name: where their files are, how large, and under which licence.

What comes in: words such as `allen session_715093703`. What goes out: `DataSet`s with the `RemoteFile`s to download.

Only what a source was found for is listed, and each data set names it. Sizes and hashes are given where they are
published; the server is asked for the size of every file before anything is downloaded.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from neural_data.allen_sessions import BRAIN_OBSERVATORY, FUNCTIONAL_CONNECTIVITY, Session, sessions

BUCKET = "https://allen-brain-observatory.s3.amazonaws.com"
NEUROPIXELS = f"{BUCKET}/visual-coding-neuropixels/ecephys-cache"
TWO_PHOTON = f"{BUCKET}/visual-coding-2p"
DANDI = "https://api.dandiarchive.org/api/assets"
PACKAGED = "https://mouse-vision-neuraldata.s3.amazonaws.com"
GIN = "https://gin.g-node.org"

ALLEN_TERMS = "Allen Institute terms of use, http://www.alleninstitute.org/legal/terms-use/"
SENSORIUM_2023_LICENCE = "CC BY-NC-ND 4.0 (NeurIPS 2024 paper of the competition, appendix A.8)"
EXPERIMENT = re.compile(r"experiment_(\d{9})")
NATURAL_SCENES = 118
LISTED = 10  # names in a message, before it points to `murine data list`

# animal-session-scan, and the letter that V1T (https://github.com/bryanlimy/V1T) and its successors use for it
SENSORIUM_2022 = {
    "S0": "26872-17-20", "S1": "27204-5-13", "A": "21067-10-18", "B": "22846-10-16", "C": "23343-5-17",
    "D": "23656-14-22", "E": "23964-4-22",
}  # fmt: skip
SENSORIUM_2022_HASH = "94c6ff995dac583098847cfecd43e7b6"
SENSORIUM_2023_OLD = {
    "A": "29156-11-10", "B": "29228-2-10", "C": "29234-6-9", "D": "29513-3-5", "E": "29514-2-9",
}  # fmt: skip
SENSORIUM_2023_OLD_HASH = "8744edeac3b4d1ce16b680916b5267ce"
SENSORIUM_2023_NEW = {
    "F": "29515-10-12", "G": "29623-4-9", "H": "29647-19-8", "I": "29712-5-9", "J": "29755-2-8",
}  # fmt: skip
SENSORIUM_2023_NEW_HASH = "9b4f6a1a067fe51e15306b9628efea20"
FRANKE_2022 = {
    "F": ("25311-10-26", "104e446ed0128d89c639eef0abe4655b"), "G": ("25340-3-19", "104e446ed0128d89c639eef0abe4655b"),
    "H": ("25704-2-12", "b23ac8521543becfd382e56c657ba29b"), "I": ("25830-10-4", "104e446ed0128d89c639eef0abe4655b"),
    "J": ("26085-6-3", "104e446ed0128d89c639eef0abe4655b"), "K": ("26142-2-11", "6a21297215f4dbb802554a60c0e72877"),
    "L": ("26426-18-13", "b23ac8521543becfd382e56c657ba29b"), "M": ("26470-4-5", "104e446ed0128d89c639eef0abe4655b"),
    "N": ("26644-6-2", "b23ac8521543becfd382e56c657ba29b"), "O": ("26872-21-6", "104e446ed0128d89c639eef0abe4655b"),
}  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """A file behind `url`, which goes to `name` below the folder of its source.

    `bytes`: its size when it was listed here, None where that is not known. `hash`: as its source publishes it, in the
    form of pooch (`sha256:...`), None where it publishes none.
    """

    name: str
    url: str
    bytes: int | None = None
    hash: str | None = None


@dataclass(frozen=True)
class DataSet:
    """One or more files that are fetched together as `murine data fetch <source> <name>`.

    `name`: empty for all that a source has. `found`: where addresses, sizes and hashes are from.
    `aliases`: other names. `part`: whether it is one of many of its kind, which a list shows only where asked for.
    """

    source: str
    name: str
    what: str
    licence: str
    found: str
    files: tuple[RemoteFile, ...]
    aliases: tuple[str, ...] = ()
    part: bool = False

    @property
    def title(self) -> str:
        """Source and name, the words to fetch it by."""
        return f"{self.source} {self.name}".strip()

    @property
    def bytes(self) -> int | None:
        """Size of all files, None where that of one is not known."""
        sizes = [file.bytes for file in self.files]
        return None if None in sizes or not sizes else sum(sizes)


def catalogue() -> list[DataSet]:
    """Every data set, those of one source together, the whole before its parts."""
    return [*_allen(), *_sensorium_2022(), *_sensorium_2023(), *_franke_2022()]


def list_data_sets(pattern: str = "*") -> list[DataSet]:
    """The data sets whose title matches a pattern with `*` and `?`; parts only where the pattern asks for them.

    Raises ValueError, with the nearest title, where none matches.
    """
    everything = catalogue()
    if pattern == "*":
        return [data for data in everything if not data.part]
    found = [data for data in everything if fnmatch.fnmatch(data.title, pattern)]
    if not found:
        titles = [data.title for data in everything]
        raise ValueError(
            f"no data set matches {pattern!r}{_nearest(pattern, titles)} (`murine data list` has them all)"
        )
    return found


def find_data_sets(source: str, names: Sequence[str] = ()) -> list[DataSet]:
    """The data sets of a source by name or alias; all that it has where no name is given and it offers that.

    Raises ValueError naming the wrong word, the nearest right one, and what there is.
    """
    everything = catalogue()
    sources = list(dict.fromkeys(data.source for data in everything))
    if source not in sources:
        raise ValueError(f"no source {source!r}{_nearest(source, sources)} (sources: {', '.join(sources)})")
    of_source = [data for data in everything if data.source == source]
    if not names and of_source[0].name:
        offered = ", ".join(data.name for data in of_source if not data.part)
        raise ValueError(f"{source}: say what to fetch: {offered}, session_<id> or experiment_<id>")
    return list(dict.fromkeys(_find(source, name, of_source) for name in names or [""]))


def _find(source: str, name: str, of_source: list[DataSet]) -> DataSet:
    for data in of_source:
        if name == data.name or name in data.aliases:
            return data
    if source == "allen" and (experiment := EXPERIMENT.fullmatch(name)):
        return _experiment(experiment[1])
    names = [known for data in of_source for known in (data.name, *data.aliases) if known]
    offered = [data.name for data in of_source if data.name]
    more = ", ..." if len(offered) > LISTED else ""
    raise ValueError(
        f"{source}: nothing is called {name!r}{_nearest(name, names)} (there are {', '.join(offered[:LISTED])}{more}; "
        f"`murine data list '{source}*'` has them all)"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f": did you mean '{near[0]}'?" if near else ""


def _allen() -> Iterator[DataSet]:
    yield from _packaged()
    yield from _session_sets()
    at_bucket = "bucket allen-brain-observatory, as the AllenSDK has it (https://allensdk.readthedocs.io)"
    scenes = tuple(_neuropixels(f"natural_scene_templates/natural_scene_{i}.tiff") for i in range(NATURAL_SCENES))
    movies = tuple(_neuropixels(f"natural_movie_templates/natural_movie_{i}.h5") for i in (1, 3))
    tables = tuple(_neuropixels(f"{table}.csv") for table in ("sessions", "probes", "channels", "units"))
    metadata = tuple(
        RemoteFile(name, f"{TWO_PHOTON}/{name}") for name in ("ophys_experiments.json", "experiment_containers.json")
    )
    for name, what, files in (
        ("natural_scenes", "the 118 natural scenes that Neuropixels sessions show", scenes),
        ("natural_movies", "natural movies one and three, NumPy arrays in spite of their suffix .h5", movies),
        ("neuropixels_tables", "tables of all Neuropixels sessions, probes, channels and units", tables),
        ("two_photon_tables", "tables of all two-photon experiments, with the ids for experiment_<id>", metadata),
    ):
        yield DataSet("allen", name, what, ALLEN_TERMS, at_bucket, files)


def _packaged() -> Iterator[DataSet]:
    shapes = {
        "neuropixels": "118 scenes x 50 repeats x 25 bins of 10 ms x 8,301 units",
        "calcium": "118 scenes x 50 repeats x 40,064 cells",
    }
    for kind, shape in shapes.items():
        name = f"mouse_{kind}_visual_data_with_reliabilities.pkl"
        yield DataSet(
            "allen",
            f"{kind}_packaged",
            f"mouse-vision's package, {shape}; `murine data convert` makes an open format of it",
            f"none is stated with it; made of data under {ALLEN_TERMS}",
            "https://github.com/neuroailab/mouse-vision, which names no size and no hash",
            (RemoteFile(name, f"{PACKAGED}/{name}"),),
        )


def _session_sets() -> Iterator[DataSet]:
    stimuli = {
        "brain_observatory_1.1": "natural scenes, natural movies, gratings",
        "functional_connectivity": "natural movies, gratings, no natural scenes",
    }
    tables = {"brain_observatory_1.1": BRAIN_OBSERVATORY, "functional_connectivity": FUNCTIONAL_CONNECTIVITY}
    found = "DANDI 000021 and bucket allen-brain-observatory"
    for kind, table in tables.items():
        of_kind = sessions(table)
        what = f"all {len(of_kind)} Neuropixels sessions of this kind, NWB: {stimuli[kind]}"
        yield DataSet("allen", kind, what, ALLEN_TERMS, found, tuple(map(_session_file, of_kind)))
        for session in of_kind:
            licence = f"CC BY 4.0 (DANDI 000021); {ALLEN_TERMS}" if session.dandi_asset else ALLEN_TERMS
            what = f"Neuropixels session, NWB, {kind}: {stimuli[kind]}"
            files = (_session_file(session),)
            yield DataSet("allen", f"session_{session.id}", what, licence, found, files, (str(session.id),), part=True)


def _session_file(session: Session) -> RemoteFile:
    name = f"session_{session.id}/session_{session.id}.nwb"
    if session.dandi_asset is None:
        return RemoteFile(name, f"{NEUROPIXELS}/{name}", session.bytes)
    return RemoteFile(name, f"{DANDI}/{session.dandi_asset}/download/", session.bytes, f"sha256:{session.sha256}")


def _experiment(id: str) -> DataSet:
    """Any two-photon experiment; which ids exist is in `two_photon_tables`."""
    name = f"ophys_experiment_data/{id}.nwb"
    return DataSet(
        "allen",
        f"experiment_{id}",
        "two-photon experiment, NWB; ids are in `murine data fetch allen two_photon_tables`",
        ALLEN_TERMS,
        "bucket allen-brain-observatory",
        (RemoteFile(name, f"{TWO_PHOTON}/{name}"),),
        part=True,
    )


def _neuropixels(name: str) -> RemoteFile:
    return RemoteFile(name, f"{NEUROPIXELS}/{name}")


def _sensorium_2022() -> Iterator[DataSet]:
    repository = f"{GIN}/cajal/Sensorium2022"
    folders = {
        letter: (scan, f"static{scan}-GrayImageNet-{SENSORIUM_2022_HASH}") for letter, scan in SENSORIUM_2022.items()
    }
    what = "static images, 7 scans: S0 (Sensorium), S1 (Sensorium+), A to E (for pretraining)"
    licence = f"the file LICENSE of {repository}"
    yield from _scans("sensorium2022", folders, dict.fromkeys(folders, repository), what, licence)


def _sensorium_2023() -> Iterator[DataSet]:
    old, new = f"{GIN}/pollytur/Sensorium2023Data", f"{GIN}/pollytur/sensorium_2023_dataset"
    folders, repositories = {}, {}
    for scans, hash, repository in (
        (SENSORIUM_2023_OLD, SENSORIUM_2023_OLD_HASH, old),
        (SENSORIUM_2023_NEW, SENSORIUM_2023_NEW_HASH, new),
    ):
        for letter, scan in scans.items():
            folders[letter] = (scan, f"dynamic{scan}-Video-{hash}")
            repositories[letter] = repository
    what = "videos, 10 scans: A to E of the first release, F to J of the one that was scored"
    yield from _scans("sensorium2023", folders, repositories, what, SENSORIUM_2023_LICENCE)


def _franke_2022() -> Iterator[DataSet]:
    repository = f"{GIN}/cajal/Franke_Willeke_2022"
    folders = {letter: (scan, f"static{scan}-ColorImageNet-{hash}") for letter, (scan, hash) in FRANKE_2022.items()}
    what = "static images in UV and green, 10 scans (Franke et al. 2022, https://doi.org/10.1038/s41586-022-05270-3)"
    yield from _scans(
        "franke2022", folders, dict.fromkeys(folders, repository), what, f"as {repository} says, not known here"
    )


def _scans(
    source: str, folders: dict[str, tuple[str, str]], repositories: dict[str, str], what: str, licence: str
) -> Iterator[DataSet]:
    """All scans of a source together, then each: `folders` has scan and folder by letter; GIN has one zip of each."""
    files = {
        letter: RemoteFile(f"{folder}.zip", f"{repositories[letter]}/raw/master/{folder}.zip")
        for letter, (_, folder) in folders.items()
    }
    found = " and ".join(dict.fromkeys(repositories.values()))
    yield DataSet(source, "", what, licence, found, tuple(files.values()))
    for letter, (scan, folder) in folders.items():
        aliases = (scan, folder, f"{folder}.zip")
        what = f"animal-session-scan {scan}"
        yield DataSet(source, letter, what, licence, repositories[letter], (files[letter],), aliases, part=True)
