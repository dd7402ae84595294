"""How the threads of a program wait for work; to be called before torch is imported."""

import os


def sleep_while_waiting() -> None:
    """Let waiting threads sleep, soon but not at once, unless the user's environment says how they wait.

    Threads that spin slow the other programs of a busy machine down many times over; to sleep at once between two
    small operations costs more than these. OpenMP reads both variables once, when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ["OMP_WAIT_POLICY"].upper() == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
