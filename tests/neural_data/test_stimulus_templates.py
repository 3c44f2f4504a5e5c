"""Images and movies of a session, in its file or beside it."""

import h5py
import numpy as np
import pytest

from neural_data.stimulus_templates import images_of, is_movie, movie_name, movie_of, movie_order
from neural_data.trial_files import TrialFiles

STACK = np.random.default_rng(0).integers(0, 256, (12, 6, 8)).astype(np.uint8)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "session.nwb", "w") as file:
        yield file


def test_which_stimuli_are_movies():
    assert is_movie("natural_movie_three")
    assert not is_movie("natural_scenes")
    assert not is_movie("natural_movie_one_shuffled")


def test_names_of_movies_and_their_order():
    names = [movie_name(number) for number in range(1, 13)]
    assert names[:4] == ["natural_movie_one", "natural_movie_two", "natural_movie_three", "natural_movie_4"]
    assert all(is_movie(name) for name in names)
    assert sorted(["natural_movie_one_more_repeats", *sorted(names)], key=movie_order) == [
        *names,
        "natural_movie_one_more_repeats",
    ]


def test_places_in_the_file(file):
    for place in ("natural_scenes_image_stack/data", "natural_scenes/data", "natural_scenes_template/data"):
        file[f"stimulus/templates/{place}"] = STACK.astype(np.float32)
        found = images_of(file, "natural_scenes", None)
        np.testing.assert_array_equal(found, STACK)
        assert found.dtype == np.uint8
        del file["stimulus"]
    # One image each; h5py lists image 10 before image 2.
    for at, image in enumerate(STACK):
        file[f"stimulus/templates/natural_scenes_template/NaturalScene{at}"] = image
    np.testing.assert_array_equal(images_of(file, "natural_scenes", None), STACK)
    del file["stimulus/templates/natural_scenes_template/NaturalScene3"]
    with pytest.raises(ValueError, match="found 11 images, expected names that end in 0, 1, 2"):
        images_of(file, "natural_scenes", None)
    file["stimulus/templates/natural_scenes_template/NaturalScene3"] = STACK[0, :2]
    with pytest.raises(ValueError, match=r"found images of \(2, 8\), \(6, 8\), expected one size"):
        images_of(file, "natural_scenes", None)


def test_images_with_fractions_stay_floats(file):
    file["stimulus/templates/natural_scenes/data"] = STACK / 2
    np.testing.assert_array_equal(images_of(file, "natural_scenes", None), STACK / 2)


def test_movies_stay_in_the_file(file):
    file.create_dataset("stimulus/templates/natural_movie_one/data", data=STACK, chunks=(3, 6, 8), compression="gzip")
    movie = movie_of(file, "natural_movie_one", None)
    assert isinstance(movie, TrialFiles)
    assert movie.shape == (1, *STACK.shape)
    file.close()  # the movie opens the file by itself
    np.testing.assert_array_equal(movie[0, 2:5], STACK[2:5])
    np.testing.assert_array_equal(movie[0], STACK)


def test_files_beside(file, tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    np.testing.assert_array_equal(images_of(file, "natural_scenes", tmp_path / "a.npy"), STACK)
    movie = movie_of(file, "natural_movie_one", tmp_path / "a.npy")
    assert isinstance(movie, np.memmap)
    np.testing.assert_array_equal(movie[0], STACK)
    np.save(tmp_path / "flat.npy", STACK[0])
    with pytest.raises(
        ValueError, match=r"flat\.npy: found uint8 of shape \(6, 8\), expected numbers \(images or frames"
    ):
        images_of(file, "natural_scenes", tmp_path / "flat.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with pytest.raises(ValueError, match=r"objects\.npy: cannot be read as an array"):
        images_of(file, "natural_scenes", tmp_path / "objects.npy")
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        images_of(file, "natural_scenes", tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"a\.txt: is no \.npy file and no folder of natural_scene_<n>\.tiff"):
        images_of(file, "natural_scenes", tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: found 0 images"):
        images_of(file, "natural_scenes", tmp_path / "empty")
    (tmp_path / "empty" / "natural_scene_0.tiff").write_text("no image")
    with pytest.raises(ValueError, match=r"natural_scene_0\.tiff: cannot be read as an image"):
        images_of(file, "natural_scenes", tmp_path / "empty")
