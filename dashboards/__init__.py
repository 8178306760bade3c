"""The report of a sweep: a data and a drawing function for each view, joined into one page by build.py."""
