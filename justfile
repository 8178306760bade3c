# Commands for developing SweepLab; `just --list` shows them. Without just, copy a line into the shell.

# One torch thread a process: more of them spin while they wait for each other.
export OMP_NUM_THREADS := "1"

# What passes before every commit.
check:
    ruff check .
    ruff format --check .
    mypy

# The fast tests, under two minutes.
test *words:
    pytest {{words}}

# Ranks, Ray, kill and resume, the page in a browser.
test-slow *words:
    pytest -m "slow and not alone" -n 2 {{words}}
    pytest -m "slow and alone" {{words}}

# Random kills of every process of ours, and a checker of what is left.
chaos kills="100" seed="1":
    python tests/chaos/harness.py --kills {{kills}} --seed {{seed}}

# What the machinery costs, against a bare loop.
bench:
    python benchmarks/overhead.py

# docs/experiments.md, from the rows in sweeplab/commands/papers.py.
experiments:
    python docs/make_experiments.py

# docs/reference.md, from the docstrings.
reference:
    python docs/make_reference.py

# Every sweep and victim of the papers' scripts in miniature, in this process: about two hours on two cores.
smoke-all *words:
    python benchmarks/smoke_table.py {{words}}

# How much code there is, beside an older commit.
size base="HEAD":
    python benchmarks/code_size.py --base {{base}}
