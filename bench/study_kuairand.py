"""Study `kuairand`: every model on the real log, beside LightGBM retrained daily and river."""

from __future__ import annotations

from study_frame import run_study
from study_logs import compare

if __name__ == "__main__":
    run_study("kuairand", lambda options: compare("kuairand", options))
