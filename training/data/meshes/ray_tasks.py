"""Objects rendered as tasks of a Ray cluster, which needs the extra `ray`.

The code and its packages must be on every machine: on a file system that all share, or sent by
``ray job submit --working-dir . -- python -m training data render MESHES OUT --ray``.
"""

from collections.abc import Iterator, Sequence

from training.data.meshes.job import Job, Outcome, run_job


def ray_outcomes(jobs: Sequence[Job], address: str) -> Iterator[Outcome]:
    """Outcomes as they come.

    Args:
        jobs: Objects; sources and output lie on a file system that all machines share.
        address: Of the cluster's head; if empty, that of RAY_ADDRESS, or else a cluster is started on this machine.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ValueError("--ray needs Ray: pip install -e .[ray]") from error
    try:
        ray.init(
            address=address or None,
            include_dashboard=False if not address else None,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address or 'RAY_ADDRESS'}: {error}") from error
    try:
        task = ray.remote(num_cpus=1, max_retries=1)(run_job)
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = list(reversed(jobs))
        running: dict[ray.ObjectRef, Job] = {}
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.pop()
                running[task.remote(job)] = job
            for done in ray.wait(list(running), num_returns=1)[0]:
                job = running.pop(done)
                try:
                    yield ray.get(done)
                except RayTaskError as error:  # what `run_job` raises: the output cannot be written
                    raise error.as_instanceof_cause() from None
                except RayError as error:  # the task's process died, twice
                    yield Outcome(job.uid, str(job.source), failure=f"its Ray task died: {str(error).splitlines()[0]}")
    finally:
        ray.shutdown()
