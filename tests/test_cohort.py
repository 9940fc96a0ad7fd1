"""A cohort is a seeded draw that asks about nobody who is not drawn."""

from strategies.cohort import Roster


def roster(num_clients: int, asked: list[int]) -> Roster:
    def num_examples(partition: int) -> int:
        asked.append(partition)
        return partition % 3 + 1

    return Roster(num_clients, lambda partition: partition + 1, num_examples, lambda _: 0)


def test_a_draw_is_a_function_of_seed_and_round_and_asks_only_about_its_cohort() -> None:
    asked: list[int] = []
    drawn = roster(100_000, asked).sample(0, 5, 10, None)
    assert len(set(drawn)) == 10
    assert sorted(asked) == sorted(drawn)
    assert drawn == roster(100_000, []).sample(0, 5, 10, None)
    assert drawn != roster(100_000, []).sample(0, 6, 10, None)
    assert drawn != roster(100_000, []).sample(1, 5, 10, None)


def test_the_largest_come_first_and_equals_by_partition() -> None:
    assert roster(6, []).sample(0, 1, None, None) == [2, 5, 1, 4, 0, 3]


def test_only_those_online_are_drawn_and_all_of_them_when_they_are_too_few() -> None:
    drawn = roster(1000, []).sample(0, 1, 20, lambda partition: partition % 2 == 0)
    assert len(set(drawn)) == 20
    assert all(partition % 2 == 0 for partition in drawn)
    assert sorted(roster(10, []).sample(0, 1, 5, lambda partition: partition < 3)) == [0, 1, 2]


def test_every_client_is_drawn_equally_often() -> None:
    counts = [0] * 10
    for number in range(2000):
        for partition in roster(10, []).sample(0, number, 3, None):
            counts[partition] += 1
    assert all(abs(count - 600) < 3 * (2000 * 0.3 * 0.7) ** 0.5 for count in counts)
