"""What folders take on the disk, measured by the program that the Docker backend runs beside its volumes."""

import json
import os
import subprocess
import sys

import pytest

from engines.backends import walk

MB = 2**20
LEVELS, NAME = 800, "folder"
FILES = 12_000  # more than find can say into a pipe that nobody reads


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "volume"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of many empty files."""
    made = tmp_path_factory.mktemp("many")
    for number in range(FILES):
        os.close(os.open(made / str(number), os.O_CREAT | os.O_WRONLY))
    return made


def whole(*folders):
    """The MB of each folder, rounded up."""
    found = walk.measure([str(each) for each in folders], 30)
    assert all(is_whole for _, is_whole in found)
    return [-(-size // MB) for size, _ in found]


def test_measure_counts_blocks_and_not_what_a_file_claims(folder):
    with (folder / "sparse").open("wb") as file:
        file.truncate(50 * MB)
    (folder / "written").write_bytes(os.urandom(3 * MB))
    assert whole(folder) == [4]  # and the folder itself


def test_measure_counts_a_file_with_many_names_once(folder):
    (folder / "one").write_bytes(os.urandom(3 * MB))
    for number in range(9):
        (folder / f"name-{number}").hardlink_to(folder / "one")
    assert whole(folder) == [4]


def test_measure_follows_no_symbolic_link(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_bytes(os.urandom(3 * MB))
    (folder / "away").symlink_to(tmp_path / "elsewhere")
    (folder / "root").symlink_to("/")
    assert whole(folder) == [1]


def test_measure_counts_the_inodes_of_empty_files(folder):
    for number in range(1000):
        (folder / f"empty-{number}").touch()
    assert whole(folder) == [4]


def test_measure_is_not_misled_by_names_of_files(folder):
    (folder / "f 999999999 1\nf 999999999 1\n").touch()
    (folder / "-delete").touch()
    assert whole(folder) == [1]


def test_measure_reaches_the_ground_of_a_deep_tree(folder):
    place = os.open(folder, os.O_RDONLY)
    for _ in range(LEVELS):  # the path is longer than the kernel takes at once
        os.mkdir(NAME, dir_fd=place)
        place, above = os.open(NAME, os.O_RDONLY, dir_fd=place), place
        os.close(above)
    ground = os.open("big", os.O_CREAT | os.O_WRONLY, dir_fd=place)
    os.write(ground, os.urandom(3 * MB))
    os.close(ground)
    os.close(place)
    assert whole(folder) == [-(-(3 * MB + (LEVELS + 1) * walk.LEAST) // MB)]
    subprocess.run(["rm", "-r", str(folder)], check=True)  # as `shutil.rmtree` cannot


def test_measure_says_the_least_when_the_time_is_over(many):
    ((cut, is_whole),) = walk.measure([str(many)], 0.001)
    assert not is_whole
    assert cut < FILES * walk.LEAST
    assert walk.measure([str(many)], 0) == [(0, False)]


def test_walk_goes_on_where_it_stood(many):
    stage = walk.Walk(str(many))
    stage.advance(0)
    assert not stage.is_over
    stage.advance(60)
    assert stage.is_whole
    assert stage.bytes >= FILES * walk.LEAST


def test_room_names_the_fullest_disk(tmp_path):
    total, free, share = walk.room([str(tmp_path), "/proc"])  # /proc has no blocks at all
    assert 0 < free < total
    assert 0 < share < 1


def test_program_prints_json(folder):
    command = [sys.executable, "-I", "-S", walk.__file__, "5", json.dumps([str(folder)]), json.dumps([str(folder)])]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert told["folders"] == [[walk.LEAST, True]]
    assert len(told["disk"]) == 3
