"""The cards of tables: every row is a task that the library accepts, as far as data are at hand."""

import pytest

from launch import card
from launch.__main__ import main

CARDS = ("table.py", "table.py:full", "mnist_distill.py:every", "mnist_distill.py:paper")


def leaves(name, tmp_path):
    values = card.resolve(card.read(f"configs/isnet/{name}"))
    return card.leaves(values, tmp_path)


@pytest.mark.parametrize("name", CARDS)
def test_rows_are_known_methods_and_seeds_at_least_three_in_tables(name, tmp_path):
    found = leaves(name, tmp_path)
    for run in {leaf.run for leaf in found}:
        assert not name.startswith("table") or sum(leaf.run == run for leaf in found) >= 3
    if name == "table.py":
        from isnet_jax.methods import METHODS

        methods = {leaf.experiment.task["method"] for leaf in found}
        assert methods == set(METHODS) - {"plain", "softmax_grad_x_input"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table.py:minst", "argument 'minst': legal are mnist, fashion, coloured"),
        ("mnist_distill.py:lpr", "argument 'lpr': legal are erm, lrp"),
        ("photos.py:cats", "argument 'cats': legal are xray, chexpert, dogs, celeba"),
        ("photos.py:xray-erm", "data folder ''"),
        ("photos.py:dogs-erm", "data folder ''"),
        ("photos.py:celeba-erm", "data folder ''"),
        ("photos.py:chexpert-erm", "no table train.csv"),
    ],
)
def test_what_is_wrong_or_missing_is_one_line(name, said, tmp_path, capsys):
    where = ["--config", f"configs/isnet/{name}", "--workdir", str(tmp_path / "w")]
    assert main(["benchmark", *where]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
