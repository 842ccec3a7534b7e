"""Users' texts are printed as they are, in every table and line."""

import io

import pytest
from rich.console import Console

from duonlp.util.console import plain_console

TEXT = "[red]x[/red] :smile: [/]"


def shown(*renderables, console=plain_console):
    out = io.StringIO()
    for renderable in renderables:
        console(file=out, width=200).print(renderable)
    return out.getvalue()


def test_text_is_plain():
    from rich.table import Table

    table = Table(TEXT)
    table.add_row(TEXT)
    assert shown(TEXT, table).count(TEXT) == 3


def test_run_prints_labels_and_inputs_as_they_are(capsys, monkeypatch):
    from duonlp.cli.run import print_results

    monkeypatch.setenv("COLUMNS", "200")
    print_results([TEXT], [[{"label": TEXT, "score": 0.5}]])
    assert capsys.readouterr().out.count(TEXT) == 2
    print_results([TEXT], [{"generated_text": TEXT}])
    assert capsys.readouterr().out == TEXT + "\n"


def test_a_line_of_a_run_is_plain_on_any_console():
    from duonlp.runs.folder import make_printer

    out = io.StringIO()
    make_printer(Console(file=out, width=200))(TEXT)
    assert out.getvalue() == TEXT + "\n"


@pytest.mark.parametrize("console", [plain_console, Console])
def test_reports_are_plain_on_any_console(console):
    from duonlp.benchmark.report import _table

    out = io.StringIO()
    console(file=out, width=200).print(_table([TEXT, "b"], [[TEXT, TEXT]], left=1, colors={TEXT: "red"}))
    assert out.getvalue().count(TEXT) == 3
