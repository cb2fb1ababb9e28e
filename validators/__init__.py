"""File in, evidence out: run artifacts, measure them, judge the evidence."""
