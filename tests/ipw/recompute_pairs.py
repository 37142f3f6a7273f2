#!/usr/bin/env python3
"""Recomputes the figures of two runs with their 95 % intervals with numpy, and prints them as JSON.

    recompute_pairs.py FIRST OTHER

Follows docs/ipw.md, sections "Two runs" and "Routes", without the program's code: what OTHER has over FIRST, and what is saved
where FIRST takes the questions of OTHER that it covers. tests/ipw/intervals.rs compares the output with the program's to 1e-9.
"""

import json
import math
import sys

import numpy
from recompute_intervals import Sample, agresti_coull, rows_of, student


def by_question(values, names):
    """The sums over each question of what the values are above their mean."""
    questions = sorted(set(names))
    deviations = numpy.array(values) - numpy.mean(values)
    return numpy.array([deviations[[name == question for name in names]].sum() for question in questions])


def correlation(one, other):
    spread = math.sqrt((one @ one) * (other @ other))
    return float(one @ other) / spread if spread > 0 else 0.0


def score_correlation(one, other, queries):
    """With Newcombe's continuity correction of a positive covariance."""
    questions = len(one)
    per_question = queries / questions
    variances = (one @ one) / questions / per_question**2, (other @ other) / questions / per_question**2
    covariance = (one @ other) / questions / per_question**2
    if covariance > 0:
        covariance = max(covariance - 1 / (2 * questions), 0)
    spread = math.sqrt(variances[0] * variances[1])
    return covariance / spread if spread > 0 else 0.0


def difference(means, limits, r):
    """MOVER for the difference of the second mean and the first."""
    (first_low, first_high), (low, high) = limits
    first, other = means

    def combined(one, another):
        return math.sqrt(max(numpy.array([one, another]) @ [[1, -r], [-r, 1]] @ [one, another], 0))

    value = other - first
    return [value, value - combined(other - low, first_high - first), value + combined(high - other, first - first_low)]


class Run:
    """A run over the queries that both have, in its own order of time."""

    def __init__(self, rows):
        self.sample = Sample(rows)
        self.score = self.sample.score.mean()
        low, high = agresti_coull(self.score, self.sample.questions)
        self.limits = min(float(low), self.score), max(float(high), self.score)

    def efficiency(self, cost):
        costs = getattr(self.sample, cost)
        mean, half_width = self.sample.cost(costs)
        low, high = self.sample.score_per_cost(costs)
        return self.score / mean, half_width, float(low), float(high)


def ratio(first, other, cost, sums, queries):
    first_value, first_cost, first_low, first_high = first.efficiency(cost)
    value, other_cost, low, high = other.efficiency(cost)
    (first_scores, first_costs), (scores, costs) = sums
    # In the order: the other run's score and cost, the first run's score and cost.
    r = numpy.zeros((4, 4))
    r[0, 2] = score_correlation(first_scores, scores, queries)
    r[0, 3] = correlation(scores, first_costs)
    r[1, 2] = correlation(costs, first_scores)
    r[1, 3] = correlation(costs, first_costs)

    def combined(other_ratio, other_score, first_ratio, first_score):
        # Each part moves the ratio up by its distance.
        parts = numpy.array([other_score, -other_cost, -first_score, first_cost])
        return math.sqrt(max(other_ratio**2 + first_ratio**2 + 2 * (parts @ r @ parts), 0))

    of = value / first_value
    upper, lower = math.inf, 0.0
    if first_low > 0:
        upper = high / first_low
        if other.score > 0:
            score_up, score_down = math.log(other.limits[1] / other.score), math.log(first.score / first.limits[0])
            upper = of * math.exp(
                combined(math.log(high / value), score_up, math.log(first_value / first_low), score_down)
            )
    if low > 0:
        score_down, score_up = math.log(other.score / other.limits[0]), math.log(first.limits[1] / first.score)
        lower = of / math.exp(combined(math.log(value / low), score_down, math.log(first_high / first_value), score_up))
    return [of, lower, upper]


def group_limits(samples, name):
    """The mean of what is saved or costs over a group, and its limits over all orders."""
    lows, highs = [], []
    for sample in samples:
        values = getattr(sample, name)
        mean = values.mean()
        if sample.questions > 1 and (values > 0).all():
            half_width = min(sample.cost(values)[1], 50)
            ends = sorted([mean * math.exp(-half_width), mean * math.exp(half_width)])
        elif sample.questions < 2:
            ends = sorted([mean * math.exp(-2), mean * math.exp(2)])
        else:
            half_width = linear_half_width(sample, values - mean)
            ends = [mean - half_width, mean + half_width]
        lows.append(ends[0])
        highs.append(ends[1])
    return mean, min(lows), max(highs)


def linear_half_width(sample, deviations):
    if sample.questions < 2:
        return 0.0
    between, in_time = sample.errors(deviations)
    return student(0.96, sample.degrees) * max((1 + 1.1 / math.sqrt(sample.questions)) * between, in_time)


def saving(local, reference):
    """The energy that is saved where the local model takes what it answers rightly and as well as the reference."""
    pairs = []
    for one, other in zip(local, reference):
        is_covered = one["score"] >= 0.5 and one["score"] >= other["score"]
        pairs.append((is_covered, one, other))
    questions = len({row["question"] for row in local})
    fraction = sum(is_covered for is_covered, *_ in pairs) / len(pairs)
    mean_cost = numpy.mean([row["energy"] for row in reference])

    def group(wanted):
        """What is saved ("energy") and the reference's costs ("power") of a group, in the order of both runs."""
        chosen = [(one, other) for is_covered, one, other in pairs if is_covered == wanted]
        rows = [[one | {"energy": other["energy"] - one["energy"], "power": other["energy"]} for one, other in chosen]]
        rows.append([of | {"start": row["start"], "end": row["end"]} for of, (_, row) in zip(rows[0], chosen)])
        return [Sample(sorted(of, key=lambda row: row["start"])) for of in rows] if chosen else []

    covered, others = group(True), group(False)
    saved, *saved_limits = group_limits(covered, "energy")
    outside, *outside_limits = group_limits(others, "power") if others else [mean_cost] * 3
    sample = covered[0]
    inside = sample.power.mean()
    sums = [sample.by_question(values - values.mean()) for values in (sample.energy, sample.power)]
    slope = float(sums[0] @ sums[1]) / float(sums[0] @ sums[0]) if sums[0].any() else 0.0

    def at(fraction, saved_now, outside_now):
        cost = max(inside + slope * (saved_now - saved), inside * 1e-9)
        return fraction * saved_now / (fraction * cost + (1 - fraction) * outside_now)

    value = fraction * saved / mean_cost
    limits = [float(limit) for limit in agresti_coull(fraction, questions)]
    limits = [min(limits[0], fraction), max(limits[1], fraction)]
    residual = max(
        linear_half_width(of, of.power - of.power.mean() - slope * (of.energy - of.energy.mean())) for of in covered
    )
    parts = [
        [at(limit, saved, outside) for limit in limits],
        [at(fraction, limit, outside) for limit in saved_limits],
        [at(fraction, saved, limit) for limit in outside_limits],
    ]
    residual *= value / mean_cost * fraction

    def distance(sign):
        return math.sqrt(residual**2 + sum(max(0, *(sign * (end - value) for end in ends)) ** 2 for ends in parts))

    return [fraction, *limits], [value, value - distance(-1), max(min(value + distance(1), 1), value)]


def main():
    rows = [{(row["question"], row["repeat"]): row for row in rows_of(run)} for run in sys.argv[1:3]]
    keys = [key for key in rows[1] if key in rows[0]]
    pairs = [[of[key] for key in keys] for of in rows]
    runs = [Run(sorted(of, key=lambda row: row["start"])) for of in pairs]
    names = [question for question, _ in keys]

    def sums(cost):
        return [[by_question([row[name] for row in of], names) for name in ("score", cost)] for of in pairs]

    def of_cost(cost):
        means = [getattr(run.sample, cost).mean() for run in runs]
        limits = [run.sample.mean_interval(getattr(run.sample, cost)) for run in runs]
        (_, first), (_, other) = sums(cost)
        return difference(means, limits, correlation(first, other))

    (first, _), (other, _) = sums("energy")
    figures = {
        "accuracy": difference(
            [run.score for run in runs], [run.limits for run in runs], score_correlation(first, other, len(keys))
        ),
        "energy_j": of_cost("energy"),
        "power_w": of_cost("power"),
        "per_watt_ratio": ratio(*runs, "power", sums("power"), len(keys)),
        "per_joule_ratio": ratio(*runs, "energy", sums("energy"), len(keys)),
    }
    figures["covered"], figures["saving"] = saving(*pairs)
    figures["quarter_of_saving"] = [0.25 * limit for limit in figures["saving"]]
    print(json.dumps({name: [float(value) for value in of] for name, of in figures.items()}))


main()
