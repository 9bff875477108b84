"""Files that are written whole or not at all."""

import numpy as np
import pytest

from research.data.replacing import replacing, save_arrays


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "found.npz"
    save_arrays(path, {"a": np.arange(3)})
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["found.npz"]
    with np.load(path) as file:
        np.testing.assert_array_equal(file["a"], np.arange(3))
    save_arrays(path, {"b": np.ones(2)})
    with np.load(path) as file:
        assert file.files == ["b"]


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_arrays(tmp_path / "none" / "found.npz", {"a": np.arange(3)})
