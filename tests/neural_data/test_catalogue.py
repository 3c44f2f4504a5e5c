"""The catalogue: what the sources publish, found by every name that the field uses."""

import re
from pathlib import PurePosixPath

import pytest

from neural_data.allen_sessions import BRAIN_OBSERVATORY, FUNCTIONAL_CONNECTIVITY, sessions
from neural_data.catalogue import catalogue, find_data_sets, list_data_sets


def test_every_data_set_says_what_it_is_and_where_its_files_are():
    known = catalogue()
    titles = [data.title for data in known]
    assert len(set(titles)) == len(titles)
    for data in known:
        assert data.what
        assert data.licence
        assert data.found
        names = [file.name for file in data.files]
        assert len(set(names)) == len(names) > 0
        for file in data.files:
            assert re.fullmatch(r"https://[a-z0-9.-]+/\S+", file.url)
            assert file.hash is None or re.fullmatch("sha256:[0-9a-f]{64}", file.hash)
            place = PurePosixPath(file.name)
            assert not place.is_absolute()
            assert ".." not in place.parts
            assert " " not in file.name  # the lock separates by blanks


def test_one_name_of_a_file_has_one_address_in_each_source():
    for source in {data.source for data in catalogue()}:
        files = {file for data in catalogue() if data.source == source for file in data.files}
        assert len({file.name for file in files}) == len(files)


def test_the_sessions_are_those_of_the_release():
    observatory, connectivity = sessions(BRAIN_OBSERVATORY), sessions(FUNCTIONAL_CONNECTIVITY)
    assert (len(observatory), len(connectivity)) == (32, 26)
    ids = [session.id for session in observatory + connectivity]
    assert len(set(ids)) == 58
    assert all(715_000_000 < id < 848_000_000 for id in ids)
    # Nayebi et al. 2023 and Siegle et al. 2021 count 32 sessions of the first kind; all of them have a known size
    assert all(1.5e9 < session.bytes < 3.5e9 for session in observatory)
    assert sum(session.sha256 is not None for session in observatory) == 30
    assert len({session.sha256 for session in observatory} - {None}) == 30
    assert len({session.dandi_asset for session in observatory} - {None}) == 30


def test_a_session_is_fetched_where_its_hash_is_published():
    (data,) = find_data_sets("allen", ["session_715093703"])
    assert data.files == find_data_sets("allen", ["715093703"])[0].files
    (file,) = data.files
    # dandisets/000021, .dandi/assets.json
    assert file.name == "session_715093703/session_715093703.nwb"
    assert file.url == "https://api.dandiarchive.org/api/assets/58703c97-c0a9-4736-b684-73c85c1a444a/download/"
    assert file.bytes == data.bytes == 2_856_232_912
    assert file.hash == "sha256:8bf172c54eba23835c3780ff91463177d959badb87034a784f024bceb429406a"
    assert "CC BY 4.0" in data.licence
    (other,) = find_data_sets("allen", ["session_797828357"])
    assert other.files[0].url == (
        "https://allen-brain-observatory.s3.amazonaws.com/visual-coding-neuropixels/ecephys-cache/"
        "session_797828357/session_797828357.nwb"
    )


def test_a_kind_of_session_is_its_sessions():
    for kind, count in (("brain_observatory_1.1", 32), ("functional_connectivity", 26)):
        (whole,) = find_data_sets("allen", [kind])
        assert len(whole.files) == count
        for file in whole.files:
            (part,) = find_data_sets("allen", [file.name.split("/")[0]])
            assert part.files == (file,)
            assert kind in part.what


def test_any_two_photon_experiment_has_an_address():
    (data,) = find_data_sets("allen", ["experiment_501271265"])
    assert data.files[0].url == (
        "https://allen-brain-observatory.s3.amazonaws.com/visual-coding-2p/ophys_experiment_data/501271265.nwb"
    )
    assert data.files[0].name == "ophys_experiment_data/501271265.nwb"
    with pytest.raises(ValueError, match="nothing is called 'experiment_5012'"):
        find_data_sets("allen", ["experiment_5012"])


def test_templates_and_packages():
    (scenes,) = find_data_sets("allen", ["natural_scenes"])
    assert [file.name for file in scenes.files][::117] == [
        "natural_scene_templates/natural_scene_0.tiff", "natural_scene_templates/natural_scene_117.tiff",
    ]  # fmt: skip
    urls = [data.files[0].url for data in find_data_sets("allen", ["neuropixels_packaged", "calcium_packaged"])]
    pattern = "https://mouse-vision-neuraldata.s3.amazonaws.com/mouse_{}_visual_data_with_reliabilities.pkl"
    assert urls == [pattern.format("neuropixels"), pattern.format("calcium")]


@pytest.mark.parametrize(
    ("source", "sheet", "count"),
    [
        ("sensorium2022", "static_readouts", 7),
        ("sensorium2023", "sensorium_video", 10),
        ("franke2022", "static_readouts", 10),
    ],
)
def test_every_scan_of_the_sheets_is_there_by_each_of_its_names(shared, source, sheet, count):
    text = (shared / f"reference/{sheet}.md").read_text()
    (whole,) = find_data_sets(source)
    assert len(whole.files) == count
    for data in [data for data in catalogue() if data.source == source and data.part]:
        scan, folder, archive = data.aliases
        (file,) = data.files
        assert file in whole.files
        assert file.name == archive == f"{folder}.zip"
        assert file.url.startswith("https://gin.g-node.org/")
        assert file.url.endswith(f"/raw/master/{archive}")
        assert (folder if source == "sensorium2023" else scan) in text
        for name in (data.name, *data.aliases):
            assert find_data_sets(source, [name]) == [data]
        if source == "sensorium2023":
            group = re.search(rf"\| {data.name} \| {folder} \| (old|new) \|", text)[1]
            assert ("sensorium_2023_dataset" if group == "new" else "Sensorium2023Data") in file.url


def test_several_names_give_each_once_in_their_order():
    found = find_data_sets("sensorium2023", ["J", "29156-11-10", "A"])
    assert [data.name for data in found] == ["J", "A"]


@pytest.mark.parametrize(
    ("source", "names", "message"),
    [
        ("alen", [], r"no source 'alen': did you mean 'allen'\? \(sources: allen, sensorium2022, "),
        ("allen", [], "allen: say what to fetch: neuropixels_packaged, .*, session_<id> or experiment_<id>"),
        ("allen", ["session_71509370"], r"nothing is called 'session_71509370': did you mean 'session_715093703'\?"),
        ("allen", ["neuropixels"], r"did you mean 'neuropixels_"),
        ("sensorium2023", ["A", "29156-11-1"], r"did you mean '29156-11-10'\? \(there are A, B, .*, J; `murine data"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_nearest_right_one(source, names, message):
    with pytest.raises(ValueError, match=message) as caught:
        find_data_sets(source, names)
    assert "\n" not in str(caught.value)


def test_lists():
    assert not [data.title for data in list_data_sets() if data.part]
    titles = [data.title for data in list_data_sets("allen session_7*")]
    assert "allen session_715093703" in titles
    assert not [title for title in titles if not title.startswith("allen session_7")]
    assert [data.title for data in list_data_sets("sensorium2022")] == ["sensorium2022"]
    with pytest.raises(ValueError, match=r"no data set matches 'sensrium2022': did you mean 'sensorium2022'\?"):
        list_data_sets("sensrium2022")
