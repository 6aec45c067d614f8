"""Read tables that people write, csv or xlsx, strictly: as text, cell by cell."""

import csv
import difflib
import io
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pylon.system.errors import UserError

MOST_COLUMNS = 2_000
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
EXCEL = "pip install openpyxl (or pip install -e '.[excel]'), or save it as csv"


def read_cells(path: Path, needed: str) -> pd.DataFrame:
    """Read a table as text, without spaces around cells; it must have the column `needed`.

    A csv file may be separated by commas, semicolons or tabs; of an xlsx file the first sheet is
    read. The index holds the numbers of the rows in the file.

    Raises:
        UserError: the file is missing, is not a table in UTF-8, has rows that are too short or too
            long, columns without a name or of one name, or no rows.
    """
    try:
        rows = read_rows(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its name") from error
    if not rows:
        raise UserError(f"{path} is empty; it must start with the names of its columns")
    header = [plain(name) for name in rows[0][1]]
    require_header(header, needed, path)
    if len(rows) == 1:
        raise UserError(f"{path} has no rows below its header; add some")
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise UserError(
                f"{path}: row {number} has {len(row)} cells, but the header has {len(header)}; "
                "correct it (a cell with a comma must be in quotes)"
            )
    cells = [[plain(cell) for cell in row] for _, row in rows[1:]]
    index = [number for number, _ in rows[1:]]
    table = pd.DataFrame(cells, index=index, columns=header, dtype=str)
    column = header.index(needed)  # paths are those of files, letter by letter
    table[needed] = [row[column].strip() for _, row in rows[1:]]
    if "patient_id" in table:
        table["patient_id"] = table["patient_id"].map(visible)
    return table


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a table that are not blank, with their numbers.

    Raises:
        UserError: the file is not a table in UTF-8, or pandas cannot read its sheet.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() == ".xlsx":
        rows = rows_of_sheet(path)
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text; save it as a csv file in UTF-8") from error
        lines = io.StringIO(text, newline="")
        try:
            rows = list(csv.reader(lines, delimiter=separator_of(text), strict=True))
        except csv.Error as error:
            raise UserError(
                f"{path} is not a table of comma-separated values ({error}); save it as csv"
            ) from error
    return [(number, row) for number, row in enumerate(rows, 1) if any(map(str.strip, row))]


def separator_of(text: str) -> str:
    """What separates the cells: that of commas, semicolons, tabs which the header has most of."""
    header = text.lstrip().partition("\n")[0]
    return max(SEPARATORS, key=header.count)


def rows_of_sheet(path: Path) -> list[list[str]]:
    """The rows of the first sheet of an xlsx file, as text."""
    try:
        sheet = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise UserError(f"{path} needs openpyxl: {EXCEL}") from error
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a sheet that can be read; save it as csv") from error
    return sheet.fillna("").to_numpy().tolist()


def note_on_form(path: Path) -> list[str]:
    """What a table is, if not a csv file with commas: a sentence, or none."""
    if path.suffix.lower() == ".xlsx":
        return [f"{path}: its first sheet is read"]
    name = SEPARATORS[separator_of(path.read_text(encoding="utf-8-sig"))]
    return [] if name == "commas" else [f"{path} is separated by {name}"]


def columns_of(path: Path) -> list[str]:
    """The names of the columns of a table that `read_cells` has accepted."""
    return [plain(name) for name in read_rows(path)[0][1]]


def plain(text: str) -> str:
    """A text without spaces around it, in the one of Unicode's forms that most programs write.

    An é that is one letter, or an e and an accent, as on a Mac, looks the same.
    """
    return unicodedata.normalize("NFC", text.strip())


def visible(text: str) -> str:
    """A text without letters that cannot be seen, such as spaces without width."""
    if text.isascii():
        return text
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf").strip()


def require_header(header: list[str], needed: str, path: Path) -> None:
    """Raise a UserError if the names of the columns cannot be used."""
    if len(header) > MOST_COLUMNS:
        raise UserError(
            f"{path} has {len(header):,} columns, more than {MOST_COLUMNS:,}; keep path, the "
            "classes, patient_id and split"
        )
    if needed not in header:
        alike = [name for name in header if name.lower() == needed]
        hint = f"rename {alike[0]!r} to {needed!r}" if alike else its_columns(header)
        raise UserError(f"{path} has no column {needed!r}; {hint}")
    broken = [name for name in header if is_broken(name)]
    if broken:
        raise UserError(f"{path}: the column {broken[0]!r} has a line break in its name; rename it")
    if "" in header:
        raise UserError(
            f"{path}: column {header.index('') + 1} has no name; name it or remove it (in pandas, "
            "to_csv(index=False) writes none)"
        )
    again = [name for k, name in enumerate(header) if name in header[:k]]
    if again:
        raise UserError(f"{path} has two columns {again[0]!r}; remove one")


def is_broken(text: str) -> bool:
    """Whether a text does not fit into one line of a message."""
    return "\0" in text or text.splitlines() not in ([], [text])


def its_columns(header: Sequence[str]) -> str:
    listed = ", ".join(name[:60] for name in header[:12]) + (", ..." if len(header) > 12 else "")
    return f"its columns are {listed[:400]}"


def hint_on(name: str, header: Sequence[str]) -> str:
    """What to do about a name that is not among the columns."""
    if all(part in header for part in name.split(",")):
        return "separate names by spaces, not commas"
    near = difflib.get_close_matches(name.lower(), [each.lower() for each in header], n=1)
    alike = [each for each in header if each.lower() in near]
    return f"did you mean {alike[0]!r}?" if alike else its_columns(header)
