import numpy as np
import pandas as pd

from pylon.results import print_table, table_of_seeds, write_csv


def test_table(tmp_path, capsys):
    table = table_of_seeds({"0": {"Mass": 0.5, "Hernia": np.nan}, "3": {"Mass": 0.7, "Hernia": np.nan}})
    print_table(table)
    assert capsys.readouterr().out.splitlines() == [
        "| seed | Mass     | Hernia |",
        "| ---- | -------- | ------ |",
        "| 0    | 0.500000 |        |",
        "| 3    | 0.700000 |        |",
        "| mean | 0.600000 |        |",
        "| std  | 0.141421 |        |",
    ]
    write_csv(tmp_path / "a" / "b.csv", table)
    assert (tmp_path / "a" / "b.csv").read_text().splitlines()[:3] == ["seed,Mass,Hernia", "0,0.5,", "3,0.7,"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "b.csv", index_col="seed"), table)


def test_one_seed_has_no_deviation(capsys):
    print_table(table_of_seeds({"0": {"Mass": 0.5}}))
    assert capsys.readouterr().out.splitlines()[-1] == "| std  |          |"
