"""``skyrl report``: one HTML file about one run or several, made from their folders alone."""

from skyrl_kernel.report.build import Report, build_report

__all__ = ["Report", "build_report"]
