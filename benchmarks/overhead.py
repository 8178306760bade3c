"""What the machinery costs: trials of fixed work through each executor, and trivial trials against stock Ray Tune.

    python benchmarks/overhead.py                          # all of it, about 30 minutes; most of that is sleeping
    python benchmarks/overhead.py --only fixed --seconds 20 --trials 4
    python benchmarks/overhead.py --only trivial --num-trivial 500

The work of a trial is sleep, cut into epochs, each with a point and a checkpoint of 1 MB: what is measured is what the
executors, the ledger, Optuna and MLflow add, also on a machine whose cores are shared. Every measurement runs in a
process of its own, one after the other; compare numbers of one run only.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweeplab.attacks.badnet import BadNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.cores import usable_cores
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CheckpointVictim, CleaningSweep, Resources, Search
from sweeplab.records import Measurement, Outcomes, Point, Victim
from sweeplab.search_space import LogUniform, SearchSpace, Uniform
from sweeplab.training.optimisation import Optimization
from sweeplab.worker.jobs import CleaningJob, Machine

IMAGES = 1000
EPOCHS = 4


def measured(index: int) -> tuple[Measurement, Outcomes]:
    """Made-up numbers: 90 % accuracy, ASR that falls with the epochs."""
    import numpy as np

    correct, hits = 900, max(0, 900 - 450 * index)
    return (
        Measurement(correct, IMAGES, hits, IMAGES, "made up"),
        Outcomes.of(np.arange(IMAGES) < correct, np.arange(IMAGES) < hits),
    )


def fixed_work(job: CleaningJob, context: Any) -> None:
    """Stands in for training: sleeps `weight_decay` seconds an epoch, with checkpoints and reports as the real loop."""
    import torch

    from sweeplab.training import ranks

    seconds = job.sweep.optimization.weight_decay
    for index in range(job.sweep.epochs + 1):
        name = None
        if index:
            time.sleep(seconds)
            name = f"attempt-{job.attempt}-epoch-{index:04d}.pt"
            if ranks.rank() == 0:
                Path(job.checkpoints).mkdir(parents=True, exist_ok=True)
                torch.save({"weights": torch.zeros(250_000)}, Path(job.checkpoints) / name)
        measurement, outcomes = measured(index)
        stamp = time.time_ns() // 1_000_000
        ranks.barrier()
        context.report(
            Point(index, float(index), index, job.attempt, measurement, timestamp_ms=stamp, checkpoint=name), outcomes
        )
        ranks.broadcast_object(context.should_stop())


def sweep_of(
    name: str, *, trials: int, epochs: int, seconds: float, executor: Any, workers: int, sampler: Any = "random"
) -> CleaningSweep:
    """A sweep whose optimization carries the seconds of an epoch."""
    architecture = SmallCLIP(image_size=32).architecture()
    return CleaningSweep(
        name=name,
        victim=CheckpointVictim(
            name="victim",
            path=Path("victim.pt"),
            architecture=architecture,
            attack=BadNet(patch_size=4),
            target="banana",
        ),
        method=CleanCLIP(),
        optimization=Optimization(weight_decay=seconds),
        epochs=epochs,
        data=FruitStall(num_pairs=64, image_size=32),
        evaluation=Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES),
        space=SearchSpace(
            dimensions={
                "learning_rate": LogUniform(low=1e-4, high=1e-1),
                "ssl_weight": Uniform(low=0.0, high=4.0),
                "mmcl_weight": Uniform(low=0.5, high=2.0),
            },
            source="made up",
        ),
        search=Search(sampler=sampler, trials=trials),
        resources=Resources(executor=executor, workers=workers, gpus_per_worker=0),
    )


def through_sweeplab(
    executor: str, trials: int, epochs: int, seconds: float, workers: int, sampler: str = "random"
) -> dict[str, float]:
    """Run trials through the real driver's parts: controller, executor, ledger, Optuna's journal, MLflow."""
    from sweeplab.execution.cluster import ray_session
    from sweeplab.sweep.controller import SweepController
    from sweeplab.sweep.mlflow_sync import MLflowSync, full_setting
    from sweeplab.sweep.run import execute
    from sweeplab.sweep.session import Session
    from sweeplab.sweep.tracking_process import Ledger, TrackingProcess
    from sweeplab.sweep_folder import SweepFolder

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        home = Path(place)
        sweep = sweep_of(
            "overhead",
            trials=trials,
            epochs=epochs,
            seconds=seconds,
            executor=executor,
            workers=workers,
            sampler=sampler,
        )
        folder = SweepFolder(home / "sweeps" / sweep.name)
        folder.write_header(sweep, sweep.digest(), {})
        measurement, outcomes = measured(0)
        victim = Victim("victim", "0" * 16, str(home / "victim.pt"), 0.0, measurement, outcomes)
        (home / "victim.pt").write_bytes(b"weights")
        folder.commit_victim(victim)
        began = time.perf_counter()
        sync = MLflowSync(
            TrackingProcess(lambda: Ledger(home, folder.path, folder.record(), folder.header(), {}, True)),
            lambda params: full_setting(sweep.setting(params)),
        )
        with ray_session(needs_train=executor != "tune"):
            machine = Machine(home / "data", 1, use_cuda=False)
            controller = SweepController(sweep, folder, victim, machine, (sync.hear,), work=fixed_work)
            started = time.perf_counter()
            execute(controller, Session(home, reads=[]))
            caught_up = sync.close(600)
            ended = time.perf_counter()
        assert controller.is_complete()
        assert caught_up
        size = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
        return {
            "seconds": ended - started,
            "with_start": ended - began,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "folder_kb_per_trial": size / 1024 / trials,
            "mlflow_kb_per_trial": (home / "mlflow.db").stat().st_size / 1024 / trials,
        }


def bare_loop(trials: int, epochs: int, seconds: float) -> dict[str, float]:
    """The same work, trial after trial, in this process: sleep, point, checkpoint; nothing else."""
    sweep = sweep_of("bare", trials=trials, epochs=epochs, seconds=seconds, executor="inline", workers=1)

    class Nothing:
        def report(self, point: Point, outcomes: Outcomes) -> None: ...

        def should_stop(self) -> bool:
            return False

    with tempfile.TemporaryDirectory() as place:
        measurement, outcomes = measured(0)
        victim = Victim("victim", "0" * 16, "", 0.0, measurement, outcomes)
        machine = Machine(Path(place), 1, use_cuda=False)
        began = time.perf_counter()
        for number in range(trials):
            checkpoints = f"{place}/{number}"
            fixed_work(CleaningJob(sweep, victim, number, 1, {}, machine, checkpoints, None), Nothing())
        return {"seconds": time.perf_counter() - began}


def stock_tune(trials: int, *, with_records: bool, sampler: str = "random") -> dict[str, float]:
    """Ray Tune as it comes, reused actors, one report a trial; with Optuna on SQLite and MLflow's callback, or bare."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray
    from ray import tune

    def trivial(config: dict[str, Any]) -> None:
        tune.report({"score": config["learning_rate"] * config["ssl_weight"]})

    space = {
        "learning_rate": tune.loguniform(1e-4, 1e-1),
        "ssl_weight": tune.uniform(0.0, 4.0),
        "mmcl_weight": tune.uniform(0.5, 2.0),
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
        search, callbacks = None, []
        if with_records:
            import optuna
            from ray.air.integrations.mlflow import MLflowLoggerCallback
            from ray.tune.search.optuna import OptunaSearch

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            storage = optuna.storages.RDBStorage(f"sqlite:///{place}/optuna.db")
            samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
            search = OptunaSearch(
                metric="score", mode="max", storage=storage, study_name="s", sampler=samplers[sampler]()
            )
            callbacks = [MLflowLoggerCallback(tracking_uri=f"sqlite:///{place}/mlflow.db", experiment_name="s")]
        began = time.perf_counter()
        tune.Tuner(
            tune.with_resources(trivial, {"CPU": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=trials,
                reuse_actors=True,
                search_alg=search,
                max_concurrent_trials=int(ray.cluster_resources()["CPU"]),
            ),
            run_config=tune.RunConfig(name="stock", storage_path=place, verbose=0, callbacks=callbacks),
        ).fit()
        seconds = time.perf_counter() - began
        ray.shutdown()
    return {"seconds": seconds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(what: str, **arguments: Any) -> dict[str, float]:
    """One measurement in a process of its own."""
    words = [sys.executable, __file__, "--measure", json.dumps({"what": what, **arguments})]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_here(what: str, **arguments: Any) -> dict[str, float]:
    """The same in this process."""
    if what == "bare loop":
        return bare_loop(**arguments)
    if what == "stock":
        return stock_tune(**arguments)
    return through_sweeplab(what, **arguments)


def fixed(seconds: list[float], trials: int, slots: int, executors: list[str]) -> None:
    """Trials of fixed work through each executor against a bare loop."""
    print(f"{trials} trials of {EPOCHS} epochs of fixed work; ideal: as many slots as cores ({slots}), none idle")
    print("| executor | work a trial | bare loop | ideal | measured | overhead | with Ray's start |")
    print("|---|---|---|---|---|---|---|")
    for work in seconds:
        bare = measure("bare loop", trials=1, epochs=EPOCHS, seconds=work / EPOCHS)["seconds"]
        for executor in executors:
            ideal = bare * -(-trials // slots)
            found = measure(executor, trials=trials, epochs=EPOCHS, seconds=work / EPOCHS, workers=1)
            print(
                f"| {executor} | {work:g} s | {bare:.1f} s | {ideal:.1f} s | {found['seconds']:.1f} s "
                f"| {found['seconds'] / ideal - 1:+.1%} | {found['with_start'] / ideal - 1:+.1%} |",
                flush=True,
            )


def trivial(trials: int, stock_trials: int, sampler: str) -> None:
    """Trivial trials with all records on, against stock Ray Tune."""
    bare = measure("stock", trials=trials, with_records=False)
    ours = measure("tune", trials=trials, epochs=0, seconds=0.0, workers=1, sampler=sampler)
    pool = measure("pool", trials=trials, epochs=0, seconds=0.0, workers=1, sampler=sampler)
    stock = measure("stock", trials=stock_trials, with_records=True, sampler=sampler)
    print(f"sampler of all but bare Ray Tune: {sampler}")
    print("| what | trials | seconds | a trial | peak memory |")
    print("|---|---|---|---|---|")
    rows = [
        ("bare Ray Tune, reused actors, no records", trials, bare),
        ("SweepLab `tune`: ledger, Optuna, MLflow", trials, ours),
        ("SweepLab `pool`: ledger, Optuna, MLflow", trials, pool),
        ("stock Ray Tune: OptunaSearch (SQLite), MLflowLoggerCallback", stock_trials, stock),
    ]
    for name, count, found in rows:
        print(
            f"| {name} | {count} | {found['seconds']:.1f} | {1000 * found['seconds'] / count:.1f} ms "
            f"| {found['memory_mb']:.0f} MB |"
        )
    each = {name: found["seconds"] / count for name, count, found in rows}
    bare_each, ours_each, pool_each, stock_each = each.values()
    print(
        f"over bare Ray Tune: {1000 * (ours_each - bare_each):+.1f} ms a trial (tune), "
        f"{1000 * (pool_each - bare_each):+.1f} ms (pool); rate against stock: {stock_each / ours_each:.1f}x (tune), "
        f"{stock_each / pool_each:.1f}x (pool); {ours['folder_kb_per_trial']:.1f} KB a trial in the sweep's folder, "
        f"{ours['mlflow_kb_per_trial']:.1f} KB in MLflow's database"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["fixed", "trivial"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 60.0], help="work of a trial")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--executors", nargs="+", default=["tune", "pool"])
    parser.add_argument("--num-trivial", type=int, default=2000)
    parser.add_argument("--num-stock", type=int, default=500, help="trials of stock Ray Tune with records")
    parser.add_argument("--sampler", choices=["random", "tpe"], default="random", help="of the trivial trials")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print("\n" + json.dumps(measure_here(**json.loads(arguments.measure))))
        return
    cores = usable_cores()
    if arguments.only != "trivial":
        fixed(arguments.seconds, arguments.trials, cores, arguments.executors)
    if arguments.only != "fixed":
        trivial(arguments.num_trivial, arguments.num_stock, arguments.sampler)


if __name__ == "__main__":
    main()
