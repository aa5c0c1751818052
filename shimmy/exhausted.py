"""What a person is told whose system gives no more threads or processes. Knows nothing else."""

NO_MORE_THREADS = (
    "the system allows no more threads: raise `ulimit -u` or the container's limit of processes (pids), or update the "
    "container runtime, whose seccomp profile may be older than the system call clone3"
)
NO_MORE_PROCESSES = (
    "the system allows no more processes: raise `ulimit -u` or the container's limit of processes (pids)"
)
