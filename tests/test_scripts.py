"""The scripts that compare benchmarks and count words."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def load(name):
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_bench_against_reads_every_number_by_its_line_and_place():
    figures = load("bench-against").read("Roundhouse    831     11.1  0.62 x\nPASS  p99 3.0 ms\n")
    assert figures == {
        ("Roundhouse # # # x", 0): 831.0,
        ("Roundhouse # # # x", 1): 11.1,
        ("Roundhouse # # # x", 2): 0.62,
        ("PASS p99 # ms", 0): 3.0,
    }


def test_bench_against_reports_the_median_of_the_ratios(capsys):
    key = ("admit # # ms", 1)
    load("bench-against").report({key: [10.0, 10.0, 10.0]}, {key: [10.0, 11.0, 20.0]})
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[0] == "1.100"
    assert line.endswith("admit # [#] ms")


@pytest.mark.parametrize(
    ("text", "pointing", "words"),
    [
        ('"""What it is."""\n', 2, 3),
        ("limit = 3  # engines of the product\n", 0, 4),
        ("x = 1  # noqa: E501\n", 0, 0),
        ('limit = 3\n"""One of those."""\n', 2, 3),
    ],
)
def test_pointing_words_counts_docstrings_and_comments(tmp_path, text, pointing, words):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert load("pointing-words").count(path) == (pointing, words)
