"""Reports: run folders in, one self-contained HTML file out. Reads run folders and nothing else."""

from overnight.report.page import write_report

__all__ = ["write_report"]
