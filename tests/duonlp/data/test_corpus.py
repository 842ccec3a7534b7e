"""Finding text files, and splitting documents by name."""

import pytest

from duonlp.data.reading.corpus import STANDARD_LIBRARY_SKIPS, is_held_out, standard_library_folder, text_files
from duonlp.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for i in range(200):
        (tmp_path / f"part_{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"part_{i % 3}" / f"m{i}.py").write_text(f"x = {i}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text("assert True\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    return tmp_path


def test_text_files_are_sorted_and_skips_are_left_out(folder):
    files = text_files(folder, "*.py", frozenset({"tests"}))
    assert len(files) == 200 and files == sorted(files)


def test_text_files_errors(folder):
    with pytest.raises(InputError, match="not a folder"):
        text_files(folder / "nowhere")
    with pytest.raises(InputError, match="matches"):
        text_files(folder, "*.rs")


def test_the_split_depends_on_the_name_alone():
    names = [f"part/m{i}.py" for i in range(400)]
    held_out = [name for name in names if is_held_out(name, 0.2)]
    assert 50 <= len(held_out) <= 110
    assert held_out != [name for name in names if is_held_out(name, 0.2, salt="b")]
    with pytest.raises(InputError, match="must be a fraction between 0 and 1"):
        is_held_out("x", 5)


def test_the_standard_library_is_found_without_its_tests():
    files = text_files(standard_library_folder(), "*.py", STANDARD_LIBRARY_SKIPS)
    assert any(path.name == "argparse.py" for path in files)
    assert not any("test" in path.parts or "site-packages" in path.parts for path in files)
