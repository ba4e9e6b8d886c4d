"""What a computation counts, also over interruptions."""

from pathlib import Path

from unlearnlab.progress import Progress


def test_example_passes_count_backward_twice() -> None:
    progress = Progress()
    progress.seen(10, 4)
    progress.seen(1)
    assert (progress.forward, progress.backward, progress.example_passes) == (11, 4, 19)


def test_time_before_an_interruption_counts_once() -> None:
    """Work done again before the state is read back is in the saved seconds already."""
    ticks = iter([100.0, 103.0, 105.0])
    progress = Progress(clock=lambda: next(ticks))
    progress.resume(7, 7, 40.0)
    assert progress.seconds == 42.0
    assert progress.example_passes == 21


def test_states_are_numbered_in_the_order_of_fits(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    assert [progress.state_file(), progress.state_file()] == [tmp_path / "fit-1.safetensors", tmp_path / "fit-2.safetensors"]
    assert Progress().state_file() is None


def test_steps_are_told_at_most_ten_times_a_second_but_the_last_always() -> None:
    told: list[tuple[int, int]] = []
    progress = Progress(tell=lambda done, total: told.append((done, total)))
    for done in range(1, 1001):
        progress.step(done, 1000)
    assert told[-1] == (1000, 1000)
    assert len(told) < 100
