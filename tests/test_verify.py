"""Published weights against their records: agreement is found, and so is the smallest disagreement."""

import shutil

import pytest

from lib import records, verify
from lib.verify import PUBLISHED

RUNS = PUBLISHED / "quick" / "runs"


@pytest.fixture
def run(tmp_path):
    """A copy of a published run."""
    return shutil.copytree(RUNS / "k9-p4-seed0", tmp_path / "k9-p4-seed0")


def test_published_weights_classify_as_their_record_says(run):
    agrees, text = verify.weights(run)
    assert agrees, text
    assert "0 of 10000 images classified otherwise" in text or "another processor" in text


def test_weights_trained_in_float16_are_read_where_there_is_none(run):
    record = records.read_json(run / records.RESULT)
    record["params"]["dtype"] = "float16"
    records.write_json(run / records.RESULT, record)
    assert verify.weights(run)[0]


def test_weights_of_another_run_are_found(run):
    other = RUNS / "k9-p4-seed1"
    if not (other / records.WEIGHTS).exists():  # git has those of seed 0 alone
        other = RUNS / "k7-p4-seed0"
        record = records.read_json(run / records.RESULT)
        record["params"]["kernel"] = 7
        records.write_json(run / records.RESULT, record)
    shutil.copy(other / records.WEIGHTS, run / records.WEIGHTS)
    agrees, text = verify.weights(run)
    assert not agrees and "images classified otherwise" in text


def test_damaged_weights_are_one_line(run, capsys, monkeypatch):
    (run / records.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(records.RecordError, match="not readable"):
        verify.weights(run)
    assert verify.main(["nothing"]) == 1 and "nothing: no published run\n" in capsys.readouterr().err


def test_every_published_study_is_verified_whether_or_not_git_has_weights_of_it(monkeypatch, capsys):
    """Of a study whose seeds are not 0, such as the trials, git has none: its tables are compared all the same."""
    seen: dict = {"weights": [], "tables": []}
    monkeypatch.setattr(verify, "weights", lambda folder: (not seen["weights"].append(folder), "weights"))
    monkeypatch.setattr(verify, "tables", lambda study: (not seen["tables"].append(study), "tables"))
    assert verify.main([]) == 0 and capsys.readouterr().out.endswith("all agree\n")
    published = {path.parent.name for path in PUBLISHED.glob("*/runs")}
    assert set(seen["tables"]) == published > {folder.parent.parent.name for folder in seen["weights"]}


def test_the_readmes_results_are_compared(monkeypatch, tmp_path):
    assert verify.results()[0]
    changed = tmp_path / "README.md"
    changed.write_text(verify.readme.README.read_text().replace("| k=9, p=4 | ", "| k=9, p=4 | 1"))
    monkeypatch.setattr(verify.readme, "README", changed)
    assert not verify.results()[0]


def test_a_table_that_was_typed_in_is_found(tmp_path, monkeypatch):
    published = shutil.copytree(PUBLISHED, tmp_path / "published", ignore=shutil.ignore_patterns(records.WEIGHTS))
    monkeypatch.setattr(verify, "PUBLISHED", published)
    table = published / "quick" / "tables" / "table-iii-patch.csv"
    table.write_text(table.read_text().replace("9,4,48.", "9,4,58."))
    agrees, text = verify.tables("quick")
    assert not agrees and text.endswith("these differ: table-iii-patch.csv")


@pytest.mark.parametrize("wrong", ["weights", "tables", "results", None])
def test_one_that_does_not_agree_is_the_verdict(wrong, monkeypatch, capsys):
    for name in ("weights", "tables", "results"):
        monkeypatch.setattr(verify, name, lambda *_, name=name: (name != wrong, "checked"))
    assert verify.main(["tuned"]) == (1 if wrong else 0)
    assert capsys.readouterr().out.splitlines()[-1] == ("1 do not agree" if wrong else "all agree")
