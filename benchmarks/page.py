"""What looking at a large sweep costs: the page's size, the time and memory of commands, the browser's first view.

    python benchmarks/page.py                  # 10,000 trials of 20 epochs, minutes on 2 cores
    python benchmarks/page.py --trials 300

The table is made up: the stronger a setting unlearns, the lower both rates. Each command is a process of its own, its
imports included, and finds compiled modules, as those of an installed package are; seconds are of the CPU, user and
system, since others may be at work on the machine, and beside them by the clock. The first view is what Chromium's main
thread has done when the first chart is drawn; it needs `chromium`.
"""

import argparse
import compileall
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]


def made_up_table(num_trials: int, num_epochs: int, seed: int = 0) -> pd.DataFrame:
    """One row a point, epoch 0 too, as `sweeplab import` reads it; counts are of 20,000 and 19,000 images."""
    generator = np.random.default_rng(seed)
    rate = 10 ** generator.uniform(-6, -2, num_trials)
    weight = generator.choice([0.5, 1.0, 2.0, 4.0], num_trials)
    strength = 1 / (1 + np.exp(-2.5 * (np.log10(rate) + 4.2 + 0.3 * np.log10(weight))))
    epoch = np.arange(num_epochs + 1)
    done = strength[:, None] * (1 - np.exp(-0.55 * epoch * strength[:, None]))
    noise = generator.normal(0, 0.004, (2, num_trials, num_epochs + 1)) * (epoch > 0)
    accuracy = 0.6 * (1 - 0.35 * done**2) + noise[0]
    # One epoch in four is destroyed where the learning rate is much too high.
    accuracy[(rate[:, None] > 3e-3) & (generator.random(accuracy.shape) < 0.25) & (epoch > 0)] = 0.06
    asr = 0.98 * np.exp(-6.5 * done) + np.abs(noise[1])
    correct, hits = (accuracy * 20_000).round().astype(int), (asr.clip(0, 1) * 19_000).round().astype(int)
    count = num_epochs + 1
    return pd.DataFrame(
        {
            "trial": np.repeat(np.arange(num_trials), count),
            "epoch": np.tile(epoch, num_trials),
            "accuracy_k": correct.ravel(),
            "accuracy_n": 20_000,
            "asr_k": hits.ravel(),
            "asr_n": 19_000,
            "accuracy": correct.ravel() / 20_000,
            "asr": hits.ravel() / 19_000,
            "seconds": 12.5,
            "learning_rate": np.repeat(rate, count),
            "ssl_weight": np.repeat(weight, count),
            "weight_decay": np.repeat(10 ** generator.uniform(-4, 0, num_trials), count),
            "optimizer": np.repeat(generator.choice(["adamw", "sgd", "lion"], num_trials), count),
            "warmup_steps": np.repeat(generator.choice([0, 50, 500], num_trials), count),
        }
    )


def timed(words: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """CPU seconds, seconds by the clock, and peak megabytes of a command."""
    code = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode"
    code += "; used = resource.getrusage(resource.RUSAGE_CHILDREN)"
    code += "; print(used.ru_utime + used.ru_stime, used.ru_maxrss); sys.exit(code)"
    began = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(ran.stderr[-3000:])
    cpu, kilobytes = ran.stdout.split()
    return float(cpu), time.monotonic() - began, int(kilobytes) / 1024


def first_view(page: Path, profile: Path) -> float | None:
    """Seconds of the browser's main thread until the first chart is drawn; None without a browser."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        return None
    browser = Browser(profile)
    try:
        browser.call("Performance.enable", timeDomain="threadTicks")
        browser.open(page.as_uri())
        browser.wait("drawn.get($('trade-off'))")
        metrics = {one["name"]: one["value"] for one in browser.call("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])
    finally:
        browser.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweeplab-page-") as place:
        home, table = Path(place) / "home", Path(place) / "table.csv"
        made_up_table(arguments.trials, arguments.epochs).to_csv(table, index=False)
        environment = {**os.environ, "SWEEPLAB_HOME": str(home), "PYTHONPATH": str(ROOT)}
        for package in ("sweeplab", "dashboards"):
            compileall.compile_dir(ROOT / package, quiet=1)
        sweeplab = [sys.executable, "-m", "sweeplab.cli"]
        commands = {
            "(imports alone)": ["--help"],
            "import": ["import", str(table), "--sweep", "large"],
            "report": ["report", "large"],
            "leaderboard": ["leaderboard", "large"],
            "status": ["status", "large"],
            "list": ["list"],
            "gc": ["gc", "--dry-run"],
        }
        for name, words in commands.items():
            cpu, seconds, megabytes = timed([*sweeplab, *words], environment)
            print(f"{name:16s} {cpu:6.2f} s of CPU, {seconds:6.2f} s, {megabytes:5.0f} MB", flush=True)
        page = home / "sweeps" / "large" / "report.html"
        text = page.read_text(encoding="utf-8")
        plotly = max((len(script) for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)), default=0)
        print(f"page             {len(text) / 1e6:6.2f} MB, of which data {(len(text) - plotly) / 1e6:.2f} MB")
        for name, body in re.findall(r'<script type="[^"]*" id="([^"]*)">(.*?)</script>', text, re.DOTALL):
            print(f"  {name:24s} {len(body) / 1e3:8.0f} KB")
        print(f"summary          {(page.parent / 'summary.npz').stat().st_size / 1e6:6.2f} MB")
        seconds_of_browser = first_view(page, Path(place) / "profile")
        if seconds_of_browser is not None:
            print(f"first view       {seconds_of_browser:6.2f} s of the browser's main thread")


if __name__ == "__main__":
    main()
