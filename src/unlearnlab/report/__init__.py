"""The report of a stored audit: a table in the terminal, CSV files, figures, one HTML page. It reads the document and computes no metric."""

from unlearnlab.report.canvas import Drawing, write_figures
from unlearnlab.report.figures import draw
from unlearnlab.report.page import write_page, write_report
from unlearnlab.report.tables import Column, columns, print_table, write_csvs

__all__ = ["Column", "Drawing", "columns", "draw", "print_table", "write_csvs", "write_figures", "write_page", "write_report"]
